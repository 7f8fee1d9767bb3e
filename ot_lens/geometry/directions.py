"""Refusal directions r = mu_H - mu_S compared between layers, positions and runs, as tidy tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import ActivationError
from ot_lens.geometry.quantities import estimate
from ot_lens.geometry.resampled_moments import class_weights
from ot_lens.linalg import Pooled, unit_vectors
from ot_lens.samples import LayerSamples, checked_layer, resolve_position
from ot_lens.statistics.resampling import Resamples, ResamplingPlan

CHUNK_BYTES = 64 * 2**20
COLUMNS = ("cosine", "n", "low", "high", "null_mean", "null_low", "null_high")
Site = tuple[int, int | str]


def direction_cosines(
    acts: LayerSamples,
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of the refusal directions of every pair of layers.

    Layers share most of what the residual stream carries, so directions of permuted labels agree as well: the
    null, one relabelling for all layers at a time, says how much. NaN at a layer whose class means coincide.

    Args:
        acts: activations of both classes.
        position: one token position; all captured ones when None.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of the draws.

    Returns:
        Columns layer_a, layer_b, position, cosine, n, low, high, null_mean, null_low, null_high.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    rows: list[dict[str, Any]] = []
    for requested in acts.positions if position is None else (position,):
        at = resolve_position(acts, requested)
        sites = Sites.of(acts, [(layer, at) for layer in acts.layers])
        names = [{"layer_a": layer} for layer in acts.layers], [{"layer_b": layer} for layer in acts.layers]
        rows += [{**row, "position": at} for row in cosine_rows(sites, sites, names, plan)]
    return pd.DataFrame(rows, columns=["layer_a", "layer_b", "position", *COLUMNS])


def position_cosines(
    acts: LayerSamples, *, permutations: int = 200, bootstrap: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Cosine of the refusal directions of every pair of token positions, layer by layer.

    Args:
        acts: activations of both classes at several positions.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of the draws.

    Returns:
        Columns layer, position_a, position_b, cosine, n, low, high, null_mean, null_low, null_high.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    names = [{"position_a": at} for at in acts.positions], [{"position_b": at} for at in acts.positions]
    rows: list[dict[str, Any]] = []
    for layer in acts.layers:
        sites = Sites.of(acts, [(layer, at) for at in acts.positions])
        rows += [{**row, "layer": layer} for row in cosine_rows(sites, sites, names, plan)]
    return pd.DataFrame(rows, columns=["layer", "position_a", "position_b", *COLUMNS])


def run_cosines(
    acts: LayerSamples,
    other: LayerSamples,
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of this run's refusal direction with another run's, at the layers both captured.

    Compares two checkpoints, two prompt sets or two hook points of one width. Runs of equal class sizes are
    taken to hold the same prompts in the same order: they are relabelled and resampled together.

    Args:
        acts: activations of one run.
        other: activations of another.
        position: token position; may be left out when both captured one.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of the draws.

    Returns:
        Columns layer, position, cosine, n, low, high, null_mean, null_low, null_high.

    Raises:
        ActivationError: no common layer, different widths, or samples that cannot be used.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    layers = [layer for layer in acts.layers if layer in other.layers]
    if not layers:
        raise ActivationError(f"The runs share no layer: {list(acts.layers)} and {list(other.layers)}.")
    at, their = resolve_position(acts, position), resolve_position(other, position)
    rows: list[dict[str, Any]] = []
    for layer in layers:
        names = [{"layer": layer}], [{"position": at}]
        rows += cosine_rows(Sites.of(acts, [(layer, at)]), Sites.of(other, [(layer, their)]), names, plan)
    return pd.DataFrame(rows, columns=["layer", "position", *COLUMNS])


def layer_cosines(
    acts: LayerSamples,
    other: LayerSamples,
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of this run's refusal direction at every layer with another run's at every layer.

    Like `run_cosines`, for every pair of layers: the runs need not share any.

    Args:
        acts: activations of one run.
        other: activations of another, of the same width.
        position: token position; may be left out when both captured one.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of the draws.

    Returns:
        Columns layer, layer_other, position, cosine, n, low, high, null_mean, null_low, null_high.

    Raises:
        ActivationError: different widths, or samples that cannot be used.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    at, their = resolve_position(acts, position), resolve_position(other, position)
    first = Sites.of(acts, [(layer, at) for layer in acts.layers])
    second = Sites.of(other, [(layer, their) for layer in other.layers])
    names = [{"layer": layer} for layer in acts.layers], [{"layer_other": layer} for layer in other.layers]
    rows = [{**row, "position": at} for row in cosine_rows(first, second, names, plan)]
    return pd.DataFrame(rows, columns=["layer", "layer_other", "position", *COLUMNS])


@dataclass(frozen=True)
class Sites:
    """Samples of both classes about their pooled mean at several (layer, position), on the CPU."""

    pooled: tuple[Pooled, ...]
    sizes: tuple[int, int]

    @classmethod
    def of(cls, acts: LayerSamples, sites: Sequence[Site]) -> "Sites":
        """Read and check the samples."""
        pairs = [checked_layer(acts, layer, position) for layer, position in sites]
        sizes = {(len(H), len(S)) for H, S in pairs}
        if len(sizes) != 1:
            raise ActivationError(
                f"The numbers of samples differ between layers or positions: {sorted(sizes)}. "
                "Capture them together."
            )
        return cls(tuple(Pooled.of(H.cpu(), S.cpu()) for H, S in pairs), sizes.pop())

    @property
    def width(self) -> int:
        """D."""
        return self.pooled[0].Z.shape[1]

    def directions(self, draws: Resamples) -> Float64[Tensor, "R p d"]:
        """Unit differences in class means; NaN where the means coincide."""
        N = sum(self.sizes)
        weights = class_weights(draws.source, N) - class_weights(draws.target, N)
        directions = weights.new_empty(draws.count, len(self.pooled), self.width)
        for site, pooled in enumerate(self.pooled):
            torch.mm(weights, pooled.Z, out=directions[:, site])
        return unit_vectors(directions, torch.stack([pooled.rounding for pooled in self.pooled]).unsqueeze(1))


def cosine_rows(
    first: Sites,
    second: Sites,
    names: tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]],
    plan: ResamplingPlan,
) -> list[dict[str, Any]]:
    """Rows of the cosines of all pairs of sites of two captures, whose columns `names` holds."""
    if first.width != second.width:
        raise ActivationError(f"Directions of widths {first.width} and {second.width} cannot be compared.")
    labels = plan.observed(*first.sizes), plan.observed(*second.sizes)
    null, resampled = (
        _products(first, second, *map(draw, labels)).flatten(1) for draw in (plan.relabelled, plan.resampled)
    )
    values, n = _products(first, second, *labels).flatten().tolist(), sum(first.sizes)
    numbers = zip(values, null.unbind(1), resampled.unbind(1), strict=True)
    return [
        {**one, **other, "cosine": value, **estimate(value, n, *draws, bounds=(-1.0, 1.0))}
        for (one, other), (value, *draws) in zip(product(*names), numbers, strict=True)
    ]


def _products(first: Sites, second: Sites, one: Resamples, other: Resamples) -> Float64[Tensor, "R a b"]:
    """Through the directions themselves: cross-Gram matrices of all pairs of sites would cost more."""
    size = max(1, CHUNK_BYTES // (8 * first.width * (len(first.pooled) + len(second.pooled))))
    products = []
    for start in range(0, max(one.count, 1), size):
        r = first.directions(one.slice(start, start + size))
        s = r if first is second else second.directions(other.slice(start, start + size))
        products.append((r @ s.mT).clamp(-1.0, 1.0))
    return torch.cat(products)
