"""Agreement of two judges on the same answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ot_lens.behaviour.judges import Judgement
from ot_lens.errors import JudgeError
from ot_lens.statistics import Estimate, rate
from ot_lens.statistics.estimates import CONFIDENCE, RESAMPLES


@dataclass(frozen=True)
class Agreement:
    """Agreement of two judges on whether requests succeeded.

    Attributes:
        kappa: Cohen's kappa with a bootstrap interval over answers; NaN if both judges give the
            same verdict on every answer, so that agreement by chance is certain.
        observed: Share of answers they agree on, with its Wilson interval.
        both: Both say that the request succeeded.
        only_first: Only the first says so.
        only_second: Only the second.
        neither: Neither.
        unanswered: Answers excluded because one or both said neither yes nor no.
    """

    kappa: Estimate
    observed: Estimate
    both: int
    only_first: int
    only_second: int
    neither: int
    unanswered: int


def agreement(
    first: Judgement | Sequence[bool | None], second: Judgement | Sequence[bool | None], *, seed: int = 0
) -> Agreement:
    """Cohen's kappa (Cohen 1960) of two judges, with the underlying counts.

    Args:
        first: A judgement (compared by whether requests succeeded, so that a judge of refusal and one of harm
            can be compared), or one flag per answer.
        second: The same, on the same answers.
        seed: Of the bootstrap.

    Raises:
        JudgeError: If the numbers of answers differ, or there is no answer that both decided.
    """
    a, b = (list(x.succeeded) if isinstance(x, Judgement) else list(x) for x in (first, second))
    if len(a) != len(b):
        raise JudgeError(f"Got {len(a)} and {len(b)} verdicts: compare judges on the same completions.")
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not pairs:
        raise JudgeError("There is no completion on which both judges answered yes or no.")
    x, y = np.array(pairs, dtype=bool).T
    cells = np.array([(x & y).sum(), (x & ~y).sum(), (~x & y).sum(), (~x & ~y).sum()])
    both, only_first, only_second, neither = (int(cell) for cell in cells)
    return Agreement(
        kappa=_kappa_estimate(cells, seed),
        observed=rate((x == y).tolist()),
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=neither,
        unanswered=len(a) - len(pairs),
    )


def _kappa(cells: Float[np.ndarray, "*draw 4"]) -> Float[np.ndarray, "*draw"]:
    """(p_o - p_e) / (1 - p_e) of the table [[both, only first], [only second, neither]]; NaN at p_e = 1."""
    both, only_first, only_second, neither = np.moveaxis(cells / cells.sum(-1, keepdims=True), -1, 0)
    first, second = both + only_first, both + only_second
    chance = first * second + (1 - first) * (1 - second)
    certain = np.isclose(chance, 1.0, rtol=0, atol=1e-12)
    return np.where(certain, np.nan, (both + neither - chance) / np.where(certain, 1.0, 1 - chance))


def _kappa_estimate(cells: np.ndarray, seed: int) -> Estimate:
    """Resampling pairs with replacement is a multinomial draw of the table's four cells.

    Half an answer is added to each cell: a cell that is empty by chance would stay empty in every resample,
    and judges that agree on all observed answers would be certain to agree on all others.
    """
    n, value = int(cells.sum()), float(_kappa(cells.astype(np.float64)))
    drawn = np.random.default_rng(seed).multinomial(n, (cells + 0.5) / (n + 2), size=RESAMPLES)
    kappas = _kappa(drawn.astype(np.float64))
    finite = kappas[np.isfinite(kappas)]
    if n < 2 or not np.isfinite(value) or not len(finite):
        return Estimate(value, float("nan"), float("nan"), n, "bootstrap")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(value, float(min(low, value)), float(max(high, value)), n, "bootstrap")
