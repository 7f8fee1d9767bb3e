"""Paired tests on the same prompts, and Holm's correction for several of them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from ot_lens.errors import ActivationError
from ot_lens.statistics.estimates import Resampled

# Small enough a p-value to remain below 0.05 after correction over 100 layers.
RESAMPLES = 4999
ROUNDING = 1e-12


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided McNemar test of two rates on the same prompts (McNemar 1947).

    Only the prompts whose flag changed speak: under the null each change goes either way with equal chance.

    Raises:
        ActivationError: If the two do not have one flag a prompt each.
    """
    if len(before) != len(after):
        raise ActivationError(
            f"{len(before)} flags before and {len(after)} after: a paired test needs the same prompts."
        )
    gained = sum(b and not a for b, a in zip(before, after, strict=True))
    lost = sum(a and not b for b, a in zip(before, after, strict=True))
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)


def paired_bootstrap(differences: Float[np.ndarray, " n"], *, seed: int) -> float:
    """Two-sided bootstrap test that the mean of paired differences is zero.

    Studentized: the mean over its standard error is compared with the same of resamples, about the mean they
    were drawn from (Efron & Tibshirani 1993, 16.4). Without the division the test is too lax for few
    differences, because a resample of them scatters too little. Twice the smaller tail counts, or both tails
    beyond the distance where that is more: the first is too lax for long symmetric tails, as the differences
    of two methods that are alike have, the second for skewed ones (Hall 1992, 3.6).

    The smallest p-value it can give is 2 / (RESAMPLES + 1), and with n differences 2 / 2^n: the least that
    their signs allow. Few and very skewed differences are called too often: log-normal ones with mean zero
    by about 10 % at n = 8 to 16, at a nominal 5 %.

    Args:
        differences: One difference a prompt.
        seed: Of the resampling.

    Raises:
        ActivationError: If there are no differences.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        raise ActivationError("no differences: a paired test needs at least one prompt.")
    found = Resampled.of(d, np.ones_like(d), count=RESAMPLES, seed=seed)
    # A difference of rounding size, all alike, is no evidence.
    if abs(found.value) <= ROUNDING:
        return 1.0
    t = found.value / found.error if found.error > 0 else float(np.copysign(np.inf, found.value))
    tail = min((found.t >= t).sum(), (found.t <= t).sum())
    beyond = (np.abs(found.t) >= abs(t)).sum()
    p = max(2 * (tail + 1), beyond + 1) / (RESAMPLES + 1)
    return float(min(1.0, max(p, 2.0 ** (1 - len(d)))))


def holm(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Holm's step-down adjusted p-values, which bound the family-wise error (Holm 1979).

    NaN, a test that was not made, stays NaN and does not count.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN sorts last
    stepped = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
