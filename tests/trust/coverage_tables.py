"""Every geometric table over replicates of two Gaussian classes: each layer handed in is one replicate."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from ot_lens.geometry import (
    category_directions,
    class_angles,
    diagnose,
    layer_angles,
    map_quality,
    massive_activations,
    run_cosines,
    spectra,
    visibility,
)
from tests.generators.gaussians import Layers, normal

# Of one comparison; seeds are fixed, so that a comparison that passed once passes always.
ALARM = 1e-4


@dataclass(frozen=True)
class Counted:
    """How many of n trials hit."""

    hits: int
    n: int

    @property
    def record(self) -> tuple[float, float, float, int]:
        """Share of hits, its exact 95 % interval (Clopper & Pearson 1934), and the number of trials."""
        ends = stats.binomtest(self.hits, self.n).proportion_ci(0.95, method="exact")
        return round(self.hits / self.n, 4), round(ends.low, 4), round(ends.high, 4), self.n

    def reaches(self, level: float) -> bool:
        """False where the hits are significantly fewer than that share."""
        return stats.binomtest(self.hits, self.n, level, alternative="less").pvalue > ALARM

    def exceeds(self, level: float) -> bool:
        """True where the hits are significantly more than that share."""
        return stats.binomtest(self.hits, self.n, level, alternative="greater").pvalue <= ALARM


def covered(hits: list[bool]) -> Counted:
    return Counted(sum(map(bool, hits)), len(hits))


# The fewest draws whose band has its nominal 95 %: the smallest and the largest of 39.
DRAWS = 39
CHUNK = 20
# Of two samples [replicate, n, d], and the options of a table: permutations, bootstrap, seed.
Table = Callable[..., pd.DataFrame]


@dataclass(frozen=True)
class Cell:
    """Two Gaussian classes: what they have in common, how many samples, how wide."""

    regime: str
    n_source: int
    n_target: int
    d: int

    def __str__(self) -> str:
        return f"{self.regime}, n = {self.n_source} + {self.n_target}, d = {self.d}"

    def sample(self, replicates: int, seed: int) -> tuple[Tensor, Tensor]:
        """Samples [replicate, n, d] of both classes.

        "same": one standard normal. "means": one decaying covariance and two means. "slightly": the same,
        with means half a standard deviation apart. "all": two means and two covariances of other order.
        """
        H = normal(replicates, self.n_source, self.d, seed=2 * seed)
        S = normal(replicates, self.n_target, self.d, seed=2 * seed + 1)
        decay = torch.arange(1, self.d + 1, dtype=torch.float64) ** -0.5
        if self.regime == "same":
            return H, S
        apart = torch.zeros(self.d, dtype=torch.float64)
        apart[-1 if self.regime == "means" else 0] = 0.5 if self.regime == "slightly" else 3.0
        if self.regime == "all":
            return 2 * H * decay + apart, S * decay.flip(0)
        return H * decay + apart, S * decay


def simulate(table: Table, cell: Cell, replicates: int, keys: list[str], value: str) -> pd.DataFrame:
    """Replicates of a table beside the expectation of each value.

    The expectation is that at the table's seed (random slices are part of what is measured), over five times
    as many samples as the table has replicates of that seed.
    """
    parts = []
    for seed in range(-(-replicates // CHUNK)):
        many = table(*cell.sample(5 * CHUNK, 5000 + seed), permutations=0, bootstrap=0, seed=seed)
        known = many.groupby(keys)[value].mean()
        found = table(*cell.sample(CHUNK, seed), permutations=DRAWS, bootstrap=DRAWS, seed=seed)
        parts.append(found.join(known.rename("expected"), on=keys))
    return pd.concat(parts, ignore_index=True)


def coverage(
    found: pd.DataFrame, keys: list[str], shrink: float = 1.0, value: str = "value"
) -> dict[str, Counted]:
    """How often the interval, made shorter by a factor, holds the expectation."""
    low = found[value] - shrink * (found[value] - found["low"])
    high = found[value] + shrink * (found["high"] - found[value])
    slack = 1e-9 * found["expected"].abs()
    inside = (low - slack <= found["expected"]) & (found["expected"] <= high + slack)
    return _counted(found.assign(hit=inside)[found["low"].notna()], keys)


def outside(found: pd.DataFrame, keys: list[str], value: str = "value") -> dict[str, Counted]:
    """How often the value lies outside its null band."""
    beyond = (found[value] < found["null_low"]) | (found[value] > found["null_high"])
    return _counted(found.assign(hit=beyond)[found["null_low"].notna()], keys)


def _counted(found: pd.DataFrame, keys: list[str]) -> dict[str, Counted]:
    groups = found.groupby(keys, sort=False)["hit"]
    return {
        " ".join(map(str, name if isinstance(name, tuple) else (name,))): Counted(int(hits.sum()), len(hits))
        for name, hits in groups
    }


def layers(H: Tensor, S: Tensor) -> Layers:
    return Layers(H, S, tuple(range(len(H))))


def distances(H: Tensor, S: Tensor, **draws: int) -> pd.DataFrame:
    return diagnose(layers(H, S), **draws)


def coordinates(H: Tensor, S: Tensor, **draws: int) -> pd.DataFrame:
    return massive_activations(layers(H, S), **draws)


def eigenvalues(H: Tensor, S: Tensor, permutations: int, **draws: int) -> pd.DataFrame:
    table = spectra(layers(H, S), **draws)
    return table[table["component"] < 4]


def angles(H: Tensor, S: Tensor, **draws: int) -> pd.DataFrame:
    return class_angles(layers(H, S), k=2, **draws)


def angles_of_layers(H: Tensor, S: Tensor, **draws: int) -> pd.DataFrame:
    """Of every sample's first and second half of the coordinates."""
    half = H.shape[2] // 2
    rows = []
    for h, s in zip(H, S, strict=True):
        acts = layers(*(torch.stack([x[:, :half], x[:, half : 2 * half]]) for x in (h, s)))
        table = layer_angles(acts, k=2, **draws)
        rows.append(table[(table["layer_a"] == 0) & (table["layer_b"] == 1)])
    return pd.concat(rows, ignore_index=True)


def cosines(H: Tensor, S: Tensor, **draws: int) -> pd.DataFrame:
    """With another run of the same prompts, whose activations share half of their variance."""
    seed = draws["seed"] + 90_000
    other = [0.7 * x + 0.7 * normal(*x.shape, seed=seed + i) for i, x in enumerate((H, S))]
    return run_cosines(layers(H, S), layers(*other), **draws).assign(quantity="cosine")


def directions(H: Tensor, S: Tensor, **draws: int) -> pd.DataFrame:
    """Four categories, three small ones and one large; under "all" each has a mean of its own."""
    code = np.minimum(np.arange(H.shape[1]) % 8, 3)
    return category_directions(layers(H, S), list(map(str, code)), **draws)


def monitors(H: Tensor, S: Tensor, **draws: int) -> pd.DataFrame:
    """The harmful class as what an edit made, the harmless one as the reference."""
    return visibility(layers(H, S), layers(H, S), **draws)


@dataclass(frozen=True)
class Mirror:
    """A map that is known, not fitted: it turns the first coordinate round, then shifts."""

    by: Tensor

    def map(self, x: Tensor) -> Tensor:
        return torch.cat([-x[..., :1], x[..., 1:]], dim=-1) + self.by

    def __call__(self, x: Tensor) -> Tensor:
        return self.map(x)


def qualities(cell: Cell) -> Table:
    """Of a map of the source's distribution onto the target's; four times as many training prompts."""
    train = Cell(cell.regime, 4 * cell.n_source, 4 * cell.n_target, cell.d)
    ends = cell.sample(2000 // cell.n_source, 77)
    by = torch.zeros(cell.d, dtype=torch.float64)
    if cell.regime == "means":
        by[-1] = -3.0
    assert abs(float((ends[1].mean((0, 1)) - ends[0].mean((0, 1)) - by).norm())) < 0.5

    def table(H: Tensor, S: Tensor, **draws: int) -> pd.DataFrame:
        known = layers(*train.sample(len(H), 400_000 + draws["seed"]))
        return map_quality({layer: Mirror(by) for layer in range(len(H))}, layers(H, S), known, **draws)

    return table
