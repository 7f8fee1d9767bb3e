"""Paired tests on the same prompts."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from ot_lens.errors import ActivationError
from ot_lens.statistics.estimates import BootstrapRatio

# Enough for a p-value that remains below 0.05 after correction over 100 layers.
RESAMPLES = 4999
ROUNDING = 1e-12


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided McNemar test of two rates on the same prompts (McNemar 1947).

    Only prompts whose flag changed count: under the null each change goes either way with equal probability.

    Args:
        before: One flag per prompt.
        after: Flags of the same prompts, in the same order.

    Raises:
        ActivationError: If the numbers of flags differ.
    """
    if len(before) != len(after):
        raise ActivationError(
            f"A paired test needs the same prompts: got {len(before)} flags before and {len(after)} after."
        )
    gained = sum(b and not a for b, a in zip(before, after, strict=True))
    lost = sum(a and not b for b, a in zip(before, after, strict=True))
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)


def paired_bootstrap(differences: Float[np.ndarray, " n"], *, seed: int) -> float:
    """Two-sided bootstrap test that the mean of paired differences is zero.

    Studentized: the mean over its standard error is compared with that of resamples, about the mean they
    were drawn from (Efron & Tibshirani 1993, 16.4). Without the division the test is too lax for few
    differences, because their resamples vary too little. The p-value is twice the smaller tail, or both tails
    where that is larger: the first is too lax for long symmetric tails, as with the differences of two
    similar methods, the second for skewed ones (Hall 1992, 3.6).

    The smallest possible p-value is 2 / (RESAMPLES + 1), and 2 / 2^n with n differences, the smallest that
    their signs allow. The test is too lax for few and very skewed differences: log-normal ones with mean zero
    are called significant in about 10 % of cases at n = 8 to 16, at a nominal 5 %.

    Args:
        differences: One difference per prompt.
        seed: Seed of the resampling.

    Raises:
        ActivationError: If there are no differences.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        raise ActivationError("A paired test needs at least one prompt, got none.")
    observed = BootstrapRatio.of(d, np.ones_like(d), count=RESAMPLES, seed=seed)
    # Equal differences of the size of rounding are no evidence.
    if abs(observed.value) <= ROUNDING:
        return 1.0
    t = observed.value / observed.error if observed.error > 0 else float(np.copysign(np.inf, observed.value))
    tail = min((observed.t >= t).sum(), (observed.t <= t).sum())
    beyond = (np.abs(observed.t) >= abs(t)).sum()
    p = max(2 * (tail + 1), beyond + 1) / (RESAMPLES + 1)
    return float(min(1.0, max(p, 2.0 ** (1 - len(d)))))
