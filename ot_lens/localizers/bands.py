"""Where a profile over layers is high: a band of layers, how certain it is, and whether it is one at all."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

BAND, SPREAD, NOTHING = "band", "spread", "nothing"  # verdicts
RESAMPLES = 999
LEVEL = 0.05
LEAST_SHARE = 0.5
ENDS = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Effects:
    """What each block does, prompt by prompt; its profile is the difference of the class means."""

    harmful: Float[np.ndarray, "layer h"]
    harmless: Float[np.ndarray, "layer s"] | None = None  # None where only harmful prompts are edited
    parts: bool = False  # of one whole: a block that learnt nothing has no effect

    @property
    def profile(self) -> Float[np.ndarray, " layer"]:
        """Mean effect of each block."""
        own = self.harmful.mean(axis=1)
        return own if self.harmless is None else own - self.harmless.mean(axis=1)

    def resampled(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "count layer"]:
        """Profiles of prompts drawn with replacement, within each class."""
        profiles = _weights(rng, self.harmful.shape[1], count) @ self.harmful.T
        if self.harmless is not None:
            profiles -= _weights(rng, self.harmless.shape[1], count) @ self.harmless.T
        return profiles

    def null(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "count layer"]:
        """Profiles if the blocks did nothing: labels permuted, or signs of the prompts' effects flipped."""
        if self.harmless is None:
            signs = rng.choice([-1.0, 1.0], size=(count, self.harmful.shape[1]))
            return signs @ self.harmful.T / self.harmful.shape[1]
        pooled = np.concatenate([self.harmful, self.harmless], axis=1)
        n_H, n_S = self.harmful.shape[1], self.harmless.shape[1]
        labels = np.concatenate([np.full(n_H, 1 / n_H), np.full(n_S, -1 / n_S)])
        return rng.permuted(np.tile(labels, (count, 1)), axis=1) @ pooled.T

    def by_layer(self, seed: int = 0) -> pd.DataFrame:
        """The profile, its 95 % interval over prompts, and what it would be if the blocks did nothing."""
        rng = np.random.default_rng(seed)
        drawn, null = self.resampled(rng, RESAMPLES), self.null(rng, RESAMPLES)
        (low, high), (null_low, null_high) = (np.quantile(x, ENDS, axis=0) for x in (drawn, null))
        return pd.DataFrame(
            {
                "layer": range(len(self.profile)),
                "value": self.profile,
                "low": low,
                "high": high,
                "null_mean": null.mean(axis=0),
                "null_low": null_low,
                "null_high": null_high,
                "n": self.harmful.shape[1] + (0 if self.harmless is None else self.harmless.shape[1]),
            }
        )


@dataclass(frozen=True)
class Band:
    """The layers that stand out in a profile; `first` and `last` are None where none do.

    `low` and `high` are the 95 % interval: where the band begins at the earliest and ends at the latest in
    resamples of the prompts. `share` is what the layers that stand out most hold of all effects. `effect` is
    the p-value of "no block does anything", `spread` that of "no layers stand out".
    """

    verdict: str  # BAND, SPREAD or NOTHING
    first: int | None
    last: int | None
    low: int | None
    high: int | None
    share: float
    effect: float
    spread: float


def find_band(effects: Effects, seed: int = 0) -> Band:
    """The contiguous layers that stand out most from the others.

    A profile is measured from its median in units of its spread (1.48 median absolute deviations), both of
    which a band of less than half of the layers leaves alone; the band has the largest sum per root of its
    width, as in a scan for a mean that changes (Olshen et al. 2004). `spread` compares it with the largest
    of as many independent normal numbers; `effect` permutes the labels of the prompts. Where effects are
    parts of one whole, a band that holds less than half of it is none: the effect is spread.
    """
    rng = np.random.default_rng(seed)
    profile = effects.profile
    ends, height = _highest(profile[None])
    spread = _p_value(_by_chance(len(profile)), float(height[0]))
    # Of the profile as a whole: a spread effect has no high band.
    effect = _p_value(np.square(effects.null(rng, RESAMPLES)).sum(axis=1), float(np.square(profile).sum()))
    first, last = map(int, ends[0])
    share = float(np.abs(profile[first : last + 1]).sum() / max(np.abs(profile).sum(), 1e-30))
    if effect > LEVEL or spread > LEVEL or (effects.parts and share < LEAST_SHARE):
        verdict = NOTHING if effect > LEVEL else SPREAD
        return Band(verdict, None, None, None, None, share, effect, spread)
    drawn, _ = _highest(effects.resampled(rng, RESAMPLES))
    low = int(np.quantile(drawn[:, 0], ENDS[0], method="inverted_cdf"))
    high = int(np.quantile(drawn[:, 1], ENDS[1], method="inverted_cdf"))
    return Band(BAND, first, last, min(low, first), max(high, last), share, effect, spread)


def _highest(
    profiles: Float[np.ndarray, "r layer"],
) -> tuple[Int[np.ndarray, "r two"], Float[np.ndarray, " r"]]:
    """The band of each profile, first and last layer, and how high it is."""
    n_layers = profiles.shape[1]
    off = profiles - np.median(profiles, axis=1, keepdims=True)
    unit = 1.4826 * np.median(np.abs(off), axis=1, keepdims=True)
    # All blocks but a few may do exactly nothing.
    off = off / np.maximum(unit, 1e-6 * np.abs(off).max(axis=1, keepdims=True) + 1e-30)
    sums = np.concatenate([np.zeros((len(off), 1)), np.cumsum(off, axis=1)], axis=1)
    best, ends = np.full(len(off), -np.inf), np.zeros((len(off), 2), dtype=int)
    for width in range(1, max(2, n_layers // 2 + 1)):
        heights = (sums[:, width:] - sums[:, :-width]) / np.sqrt(width)
        first = heights.argmax(axis=1)
        found = heights[np.arange(len(off)), first]
        better = found > best
        ends[better] = np.stack([first, first + width - 1], axis=1)[better]
        best = np.maximum(best, found)
    return ends, best


@lru_cache
def _by_chance(n_layers: int) -> Float[np.ndarray, " r"]:
    """The highest bands of independent normal numbers."""
    drawn = np.random.default_rng(0).standard_normal((RESAMPLES, n_layers))
    return _highest(drawn)[1]


def _weights(rng: np.random.Generator, n: int, count: int) -> Float[np.ndarray, "count n"]:
    return rng.multinomial(n, np.full(n, 1 / n), size=count) / n


def _p_value(null: Float[np.ndarray, " r"], observed: float) -> float:
    """Share of the null, with the observed value, that is at least as large."""
    return float((1 + (null >= observed * (1 - 1e-9)).sum()) / (1 + len(null)))
