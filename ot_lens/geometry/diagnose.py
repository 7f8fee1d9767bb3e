"""Diagnostics of every layer and position, each with its null and its interval, as one tidy table."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.geometry.dimensions import dimensions
from ot_lens.geometry.distances import bures, empirical, sliced, wasserstein
from ot_lens.geometry.gaussianity import gaussian_null, gaussianity, leading_scores
from ot_lens.geometry.held_out import held_out, location_share
from ot_lens.geometry.quantities import BUILT_IN, Quantity, registered
from ot_lens.geometry.resampled_moments import LABELS, DrawnClasses, DrawnShapes, Values, joined
from ot_lens.geometry.tables import COLUMNS, auc_row, row
from ot_lens.linalg import Pooled, mapped
from ot_lens.samples import LayerSamples, layer_batches
from ot_lens.statistics.resampling import Resamples, bootstraps, check_draw_counts, observed, relabellings

SLICES = 64


def diagnose(
    acts: LayerSamples,
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Where and how the classes differ, layer by layer.

    Distances (all of them squared) between finite samples are biased upward when n is far below d: read every
    value against its null, the same quantity under permuted labels (mean and 95 % band). For `w2_bures` and
    the dimensions of a class, which know no means, the labels are those of contrasts within the classes (see
    `DrawnShapes`): the null is one covariance, whatever the means. For the three tests of normality the
    null is that of Gaussian samples. The interval is over prompts (see `interval`). What is
    fitted is never evaluated on its own prompts: `auc_direction`, `fisher_ratio`, `w2_on_direction` and
    `location_share_on_direction` are cross-fitted over folds of the prompts given. All layers share the same
    draws. Quantities added by `register_diagnostic` follow, with the same null and interval.

    Args:
        acts: activations of both classes.
        position: one token position; all that were captured when None.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamplings of the interval; 0 for none.
        seed: of folds, relabellings, resamplings and slices.

    Returns:
        Columns layer, position, quantity, value, n, null_mean, null_low, null_high, low, high, unit. A ratio
        is NaN where nothing varies, `empirical_w2` above 256 samples a class.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        OtLensError: a negative number of draws.
    """
    check_draw_counts(permutations, bootstrap)
    positions = acts.positions if position is None else (position,)
    rows = [
        entry
        for at in positions
        for batch in layer_batches(acts, at)
        for layer, H, S in zip(batch.layers, batch.H, batch.S, strict=True)
        for entry in _rows({"layer": layer, "position": at}, H, S, permutations, bootstrap, seed)
    ]
    return pd.DataFrame(rows, columns=["layer", "position", *COLUMNS])


def _rows(
    place: dict[str, Any],
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    n_permutations: int,
    n_bootstrap: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    labels = observed(len(H), len(S), seed)
    layer = _Layer.of(H, S, seed)
    value = layer.measure(labels)
    null = layer.null(labels, n_permutations, seed) if n_permutations else {}
    null |= _gaussian_nulls(labels, layer.scores.shape[1], n_permutations, seed)
    resampled = layer.measure(bootstraps(labels, n_bootstrap, seed), of=labels) if n_bootstrap else {}
    for quantity in BUILT_IN:
        name = quantity.name
        values = float(value[name]), null.get(name), resampled.get(name)
        if quantity.unit == "AUC":
            yield auc_row(place, quantity, values[0], labels.sizes, labels.folds, *values[1:])
        else:
            yield row(place, quantity, values[0], quantity.samples(labels.sizes), *values[1:])
    both, drawn = torch.cat([H, S]).cpu(), (n_permutations, n_bootstrap)
    for quantity in registered():
        yield _registered_row(place, quantity, both, labels, drawn, seed)


def _registered_row(
    place: dict[str, Any],
    quantity: Quantity,
    samples: Float64[Tensor, "N d"],
    labels: Resamples,
    counts: tuple[int, int],
    seed: int,
) -> dict[str, Any]:
    """A user's diagnostic under the same draws as ours."""

    def measure(draws: Resamples) -> Float64[Tensor, " R"]:
        pairs = zip(draws.source, draws.target, strict=True)
        values = [quantity.of(samples[source], samples[target]) for source, target in pairs]
        return torch.tensor(values, dtype=torch.float64)

    null, resampled = (
        measure(draw(labels, count, seed)) if count else None
        for draw, count in zip((relabellings, bootstraps), counts, strict=True)
    )
    n = quantity.samples(labels.sizes)
    return row(place, quantity, float(measure(labels)[0]), n, null, resampled)


def _gaussian_nulls(labels: Resamples, k: int, count: int, seed: int) -> Values:
    if not count:
        return {}
    return {
        f"{name}_{label}": value
        for label, n in zip(LABELS, labels.sizes, strict=True)
        for name, value in gaussian_null(n, k, count, seed).items()
    }


@dataclass(frozen=True)
class _Layer:
    """All that a draw needs of one layer, on the CPU: nothing of width d is touched again.

    Attributes:
        gram: inner products of the samples about the pooled mean.
        projected: samples on random unit directions.
        scores: samples on the leading pooled components.
        d: width.
        rounding: norm that rounding may give to a sample that should be zero.
        gram_rounding: variance that equal samples may show.
    """

    gram: Float64[Tensor, "N N"]
    projected: Float64[Tensor, "p N"]
    scores: Float64[Tensor, "N k"]
    d: int
    rounding: float
    gram_rounding: float

    @classmethod
    def of(cls, H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"], seed: int) -> "_Layer":
        """Gram matrix and projections."""
        pooled = Pooled.of(H, S)
        Z = pooled.Z
        generator = torch.Generator().manual_seed(seed + 3)
        directions = torch.randn(Z.shape[1], SLICES, generator=generator, dtype=Z.dtype).to(Z.device)
        projected = ((directions / directions.norm(dim=0)).T @ Z.T).cpu()
        rounding = float(pooled.rounding), float(pooled.gram_rounding)
        return cls(pooled.gram().cpu(), projected, leading_scores(Z).cpu(), Z.shape[1], *rounding)

    def measure(self, draws: Resamples, *, of: Resamples | None = None) -> Values:
        """Every quantity under every draw, a few draws at a time; `of` are the labels that were resampled."""
        sample = None if of is None else self._classes(of)
        return joined(mapped(lambda part: self._all(part, sample), draws.chunks()))

    def null(self, labels: Resamples, count: int, seed: int) -> Values:
        """Every quantity under permuted labels; for what knows no means, as if only shapes could differ."""
        draws = relabellings(labels, count, seed)
        shapes = DrawnShapes.relabelled(self.gram, labels.sizes, count, seed, self.gram_rounding)
        placed = joined(mapped(lambda part: self._placed(self._classes(part)), draws.chunks()))
        return placed | joined(mapped(self._shapes, shapes.chunks()))

    def _all(self, draws: Resamples, sample: DrawnClasses | None) -> Values:
        classes = self._classes(draws)
        return self._placed(classes, sample) | dimensions(classes, self.d)

    def _classes(self, draws: Resamples) -> DrawnClasses:
        return DrawnClasses.of(self.gram, draws, self.gram_rounding)

    def _placed(self, classes: DrawnClasses, sample: DrawnClasses | None = None) -> Values:
        draws = classes.draws
        return {
            **wasserstein(classes, fast=draws.count > 1),
            **held_out(classes),
            **location_share(classes, sample),
            **sliced(self.projected, draws),
            **empirical(self.gram, draws),
            **gaussianity(self.scores, draws, self.rounding),
        }

    def _shapes(self, classes: DrawnShapes) -> Values:
        return {"w2_bures": bures(classes, fast=True), **dimensions(classes, self.d)}
