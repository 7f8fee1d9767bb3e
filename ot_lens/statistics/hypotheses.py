"""Paired tests on the same prompts, and the correction of p-values for several tests."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from ot_lens.errors import ActivationError
from ot_lens.statistics.estimates import BootstrapRatio

# Enough for a p-value that remains below 0.05 after correction over 100 layers.
RESAMPLES = 4999
ROUNDING = 1e-12


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided McNemar test of two rates on the same prompts, in the same order (McNemar 1947)."""
    if len(before) != len(after):
        raise ActivationError(
            f"A paired test needs the same prompts: got {len(before)} flags before and {len(after)} after."
        )
    gained = sum(b and not a for b, a in zip(before, after, strict=True))
    lost = sum(a and not b for b, a in zip(before, after, strict=True))
    return _sign_test(gained, gained + lost)


@lru_cache(maxsize=4096)
def _sign_test(gained: int, changed: int) -> float:
    return float(stats.binomtest(gained, changed).pvalue) if changed else 1.0


def paired_bootstrap(differences: Float[np.ndarray, " n"], *, seed: int) -> float:
    """Two-sided studentized bootstrap test that the mean of paired differences is zero.

    Too lax for few and very skewed differences: about 10 % of log-normal ones with mean zero are called
    significant at n = 8 to 16.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        raise ActivationError("A paired test needs at least one prompt, got none.")
    observed = BootstrapRatio.of(d, np.ones_like(d), count=RESAMPLES, seed=seed)
    # Equal differences of the size of rounding are no evidence.
    if abs(observed.value) <= ROUNDING:
        return 1.0
    # Studentized (Efron & Tibshirani 1993, 16.4): few differences have resamples that vary too little.
    t = observed.value / observed.error if observed.error > 0 else float(np.copysign(np.inf, observed.value))
    tail = min((observed.t >= t).sum(), (observed.t <= t).sum())
    beyond = (np.abs(observed.t) >= abs(t)).sum()
    # Twice one tail is too lax for long symmetric tails, both tails for skewed ones (Hall 1992, 3.6); n signs
    # allow no less than 2 / 2^n.
    p = max(2 * (tail + 1), beyond + 1) / (RESAMPLES + 1)
    return float(min(1.0, max(p, 2.0 ** (1 - len(d)))))


def holm(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Holm's step-down adjusted p-values (Holm 1979); NaN, a test that was not made, does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN sorts last
    stepped = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
