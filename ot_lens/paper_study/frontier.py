"""How much more one edit reaches than another at no larger cost, along the strengths of both.

The strengths of an edit trace a curve of success against cost from the unedited model on. What the other edit
reaches at no larger cost is the best point of its curve, interpolated linearly between its strengths, whose
cost is at most that of the first edit.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from ot_lens.statistics import Estimate
from ot_lens.statistics.estimates import CONFIDENCE, TAIL

DRAWS = 4999  # enough for a p-value below 0.05 after correction over 100 comparisons
# Prompts added to the resamples, one for each of two edits, at which it alone succeeds: rates of 0 and 1
# would have no spread (Agresti & Min 2005, Statistics in Medicine 24, 729-740, add as many observations).
ADDED = 2

Weights = Float[np.ndarray, "draws _"]
Points = Float[np.ndarray, "draws strengths"]


@dataclass(frozen=True)
class Frontier:
    """What an edit does at ascending strengths, the first of which is 0: the unedited model."""

    success: Float[np.ndarray, "strengths n"]  # 0 or 1 for each harmful prompt, NaN where unknown
    cost: Float[np.ndarray, "strengths m"]  # summed over the units of a harmless prompt, such as tokens
    units: Float[np.ndarray, " m"]
    log: bool  # whether the cost is the exponential of the mean over units, as a perplexity is

    def costs(self, weights: Weights) -> Points:
        """The cost at every strength in each resample of the harmless prompts."""
        means = (weights @ self.cost.T) / (weights @ self.units)[:, None]
        with np.errstate(over="ignore"):
            return np.exp(means) if self.log else means


def on_known(first: Frontier, second: Frontier) -> tuple[Frontier, Frontier]:
    """Two curves of the harmful prompts whose success is known at every strength of both."""
    known = np.isfinite(first.success).all(axis=0) & np.isfinite(second.success).all(axis=0)
    return replace(first, success=first.success[:, known]), replace(second, success=second.success[:, known])


def reached(success: Points, cost: Points, limit: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
    """The largest success at a cost of at most `limit`, or that of the first strength if none is so cheap."""
    limit = np.maximum(limit, cost[:, 0])
    best = success[:, 0].copy()
    for i in range(success.shape[1] - 1):
        (c0, c1), (s0, s1) = (x[:, i : i + 2].T for x in (cost, success))
        best = np.where(c1 <= limit, np.maximum(best, s1), best)
        crosses = (c0 <= limit) != (c1 <= limit)
        share = np.divide(limit - c0, c1 - c0, out=np.zeros_like(c0), where=crosses & np.isfinite(c1 - c0))
        between = np.where(crosses & (share > 0), s0 + share * (s1 - s0), -np.inf)
        best = np.maximum(best, between)
    return best


def gain(edit: Frontier, other: Frontier, *, seed: int, whole: bool = False) -> tuple[Estimate, float]:
    """Success of one edit at full strength minus what another reaches at no larger cost; two-sided p-value.

    With `whole`, the mean of that over all strengths of the edit above 0. Harmful and harmless prompts are
    resampled jointly for both edits, and both curves made anew each time: a percentile bootstrap interval.
    """
    n, m = edit.success.shape[1], edit.cost.shape[1]
    ones = np.ones((1, n)), np.ones((1, m))
    value = float(_gains(edit, other, *ones, np.zeros((1, 0)), whole=whole)[0])
    generator = np.random.default_rng(seed)
    more = n + ADDED
    harmful = generator.multinomial(more, np.full(more, 1 / more), size=DRAWS).astype(np.float64)
    harmless = generator.multinomial(m, np.full(m, 1 / m), size=DRAWS).astype(np.float64)
    drawn = _gains(edit, other, harmful[:, :n], harmless, harmful[:, n:], whole=whole)
    low, high = np.quantile(drawn, [TAIL, CONFIDENCE + TAIL])
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (float(tail) + 1) / (DRAWS + 1))
    return Estimate(value, float(min(low, value)), float(max(high, value)), n, "bootstrap"), p


def _gains(
    edit: Frontier, other: Frontier, harmful: Weights, harmless: Weights, added: Weights, *, whole: bool
) -> Float[np.ndarray, " draws"]:
    """The gain in each resample; `added` weighs the prompts at which one of them alone succeeds."""
    total = harmful.sum(axis=1) + added.sum(axis=1)
    rates = []
    for number, frontier in enumerate((edit, other)):
        rate = harmful @ frontier.success.T
        if added.shape[1]:
            rate[:, 1:] += added[:, number : number + 1]
        rates.append(rate / total[:, None])
    costs, others = edit.costs(harmless), other.costs(harmless)
    strengths = range(1, rates[0].shape[1]) if whole else [rates[0].shape[1] - 1]
    gains = [rates[0][:, i] - reached(rates[1], others, costs[:, i]) for i in strengths]
    return np.mean(gains, axis=0)
