"""Diagnostics of every layer and position, each with its null and its interval, as one tidy table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.geometry.distances import bures, empirical, sliced, wasserstein
from ot_lens.geometry.gaussianity import gaussian_null, gaussianity, leading_scores
from ot_lens.geometry.held_out import held_out, location_share
from ot_lens.geometry.quantities import BUILT_IN, COLUMNS, registered, row
from ot_lens.geometry.resampled_moments import (
    DrawnClasses,
    DrawnShapes,
    PooledGram,
    Values,
    by_chunks,
)
from ot_lens.geometry.spectra import dimensions
from ot_lens.linalg import Pooled
from ot_lens.samples import LayerSamples, each_layer
from ot_lens.statistics.resampling import Resamples, ResamplingPlan

SLICES = 64


def diagnose(
    acts: LayerSamples,
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _done: None,
) -> pd.DataFrame:
    """Where and how the classes differ, layer by layer.

    Distances (all of them squared) between finite samples are biased upward when n is far below d: read every
    value against its null, the same quantity under permuted labels (mean and 95 % band). For `w2_bures` and
    the dimensions of a class, which do not depend on means, the labels of contrasts within the classes are
    permuted (see `DrawnShapes`): the null is one covariance, whatever the means. For the three tests of
    normality the null is that of Gaussian samples. The interval is over prompts (see `bootstrap_interval`).
    No fit is evaluated on its own prompts: `auc_direction`, `fisher_ratio`, `w2_on_direction` and
    `location_share_on_direction` are cross-fitted over folds of the prompts given. All layers share the same
    draws. Quantities added by `register_diagnostic` follow, with the same null and interval.

    Args:
        acts: activations of both classes.
        position: one token position; all captured ones when None.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of folds, relabellings, resamples and slices.
        progress: called with 1 after each layer and position.

    Returns:
        Columns layer, position, quantity, value, n, null_mean, null_low, null_high, low, high, unit. A ratio
        is NaN where nothing varies, `empirical_w2` above 256 samples a class.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    rows: list[dict[str, Any]] = []
    for keys, H, S in each_layer(acts, position):
        rows += _rows(keys, H, S, plan)
        progress(1)
    return pd.DataFrame(rows, columns=["layer", "position", *COLUMNS])


def _rows(
    keys: dict[str, Any],
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    plan: ResamplingPlan,
) -> Iterator[dict[str, Any]]:
    labels = plan.observed(len(H), len(S))
    layer = _Layer.of(H, S, plan.seed)
    value, null = layer.measure(labels), layer.null(labels, plan)
    measured = value, null, layer.measure(plan.resampled(labels), of=labels)
    for quantity in BUILT_IN:
        yield row(keys, quantity, quantity.samples(labels.sizes), measured, labels=labels)
    samples = torch.cat([H, S]).cpu()
    for quantity in registered():
        own = plan.measure(labels, partial(quantity.under, samples))
        yield row(keys, quantity, quantity.samples(labels.sizes), ({quantity.name: draws} for draws in own))


@dataclass(frozen=True)
class _Layer:
    """All that a draw needs of one layer, on the CPU, so that no draw reads samples of width d."""

    pooled: PooledGram
    projected: Float64[Tensor, "p N"]  # on random unit directions
    scores: Float64[Tensor, "N k"]  # on the leading pooled components
    d: int
    rounding: float  # norm that a sample may have that should be zero

    @classmethod
    def of(cls, H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"], seed: int) -> "_Layer":
        """Gram matrix and projections."""
        pooled = Pooled.of(H, S)
        Z = pooled.Z
        generator = torch.Generator().manual_seed(seed + 3)
        directions = torch.randn(Z.shape[1], SLICES, generator=generator, dtype=Z.dtype).to(Z.device)
        projected = ((directions / directions.norm(dim=0)).T @ Z.T).cpu()
        gram, scores = PooledGram.of(pooled), leading_scores(Z).cpu()
        return cls(gram, projected, scores, Z.shape[1], float(pooled.rounding))

    def measure(self, draws: Resamples, *, of: Resamples | None = None) -> Values:
        """Every quantity under every draw, a few draws at a time; `of` are the labels that were resampled."""
        sample = None if of is None else self.pooled.under(of)
        return by_chunks(lambda chunk: self._all(self.pooled.under(chunk), sample), draws)

    def null(self, labels: Resamples, plan: ResamplingPlan) -> Values:
        """Every quantity under its null: permuted labels, contrasts for shapes, Gaussians for normality."""
        draws, sizes = plan.relabelled(labels), labels.sizes
        shapes = self.pooled.relabelled_shapes(sizes, plan.permutations, plan.seed)
        placed = by_chunks(lambda chunk: self._distances(self.pooled.under(chunk)), draws)
        gaussian = gaussian_null(sizes, self.scores.shape[1], plan.permutations, plan.seed)
        return placed | by_chunks(self._shapes, shapes) | gaussian

    def _all(self, classes: DrawnClasses, sample: DrawnClasses | None) -> Values:
        normality = gaussianity(self.scores, classes.draws, self.rounding)
        return self._distances(classes, sample) | normality | dimensions(classes, self.d)

    def _distances(self, classes: DrawnClasses, sample: DrawnClasses | None = None) -> Values:
        draws = classes.draws
        return {
            **wasserstein(classes, fast=draws.count > 1),
            **held_out(classes),
            **location_share(classes, sample),
            **sliced(self.projected, draws),
            **empirical(classes.gram, draws),
        }

    def _shapes(self, classes: DrawnShapes) -> Values:
        return {"w2_bures": bures(classes, fast=True), **dimensions(classes, self.d)}
