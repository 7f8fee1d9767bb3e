"""Two conditions on the same prompts: the difference of their rates, and a test of any other difference."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from ot_lens.errors import ActivationError
from ot_lens.statistics.estimates import Estimate, share

Flags = Bool[np.ndarray, " _"]
SIGNS = 4999


def rate_difference(first: Sequence[bool] | Flags, second: Sequence[bool] | Flags) -> Estimate:
    """Rate of `first` minus rate of `second` on the same prompts, in the same order, with its 95 % interval.

    Newcombe's square-and-add interval of Wilson limits, with the continuity-corrected correlation (Newcombe
    1998, Statistics in Medicine 17, 2635-2650, method 10).

    Args:
        first: One flag per prompt.
        second: The same prompts under the other condition.

    Raises:
        ActivationError: If there is no prompt, or the numbers of prompts differ.
    """
    a, b = (np.asarray(flags, dtype=bool) for flags in (first, second))
    if len(a) != len(b):
        raise ActivationError(f"A paired difference needs the same prompts: got {len(a)} and {len(b)} flags.")
    p, q, phi = share(int(a.sum()), len(a)), share(int(b.sum()), len(b)), _correlation(a, b)

    def distance(x: float, y: float) -> float:
        return float(np.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)))

    difference = p.value - q.value
    low = difference - distance(p.value - p.low, q.high - q.value)
    high = difference + distance(p.high - p.value, q.value - q.low)
    return Estimate(difference, max(-1.0, low), min(1.0, high), len(a), "newcombe")


def _correlation(a: Flags, b: Flags) -> float:
    """Correlation of two flags with Newcombe's continuity correction; 0 where one of them never varies."""
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    one, other = int((a & ~b).sum()), int((~a & b).sum())
    margins = float(a.sum()) * float((~a).sum()) * float(b.sum()) * float((~b).sum())
    excess = float(both * neither - one * other)
    if not margins:
        return 0.0
    if excess > 0:
        excess = max(0.0, excess - len(a) / 2)
    return excess / float(np.sqrt(margins))


def sign_flip(differences: Float[np.ndarray, " n"], *, seed: int) -> float:
    """Two-sided randomization test that two conditions do the same: the sides of each prompt are exchanged.

    Exact whatever the distribution, but for the number of random exchanges (Ernst 2004, Statistical Science
    19, 676-685). With differences of flags it is McNemar's test.

    Args:
        differences: One per prompt.
        seed: Of the exchanges.

    Raises:
        ActivationError: If there is no prompt.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        raise ActivationError("A paired test needs at least one prompt, got none.")
    signs = np.random.default_rng(seed).integers(0, 2, size=(SIGNS, len(d))) * 2.0 - 1.0
    rounding = 1e-9 * np.abs(d).sum()
    return float(((np.abs(signs @ d) >= abs(d.sum()) - rounding).sum() + 1) / (SIGNS + 1))
