"""Two conditions on the same prompts: the difference of their rates."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from ot_lens.errors import ActivationError
from ot_lens.statistics.estimates import Estimate, share

Flags = Bool[np.ndarray, " n"]


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
