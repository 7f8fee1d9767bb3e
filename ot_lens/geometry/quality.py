"""Quality of a fitted map on held-out prompts."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ot_lens.errors import ActivationError
from ot_lens.geometry.distances import wasserstein
from ot_lens.geometry.quantities import COLUMNS, SHARE, Quantity, row
from ot_lens.geometry.resampled_moments import DrawnClasses, DrawnShapes, PooledGram, Values, by_chunks
from ot_lens.linalg import Pooled, PooledPCA, mapped
from ot_lens.samples import Edit, LayerSamples, each_layer, resolve_position
from ot_lens.statistics import share
from ot_lens.statistics.resampling import Resamples, ResamplingPlan

SUPPORT_COMPONENTS = 4
QUANTITIES = (
    Quantity("w2_before", "activation²"),
    Quantity("w2_after", "activation²"),
    Quantity("mean_error", "activation²"),
    Quantity("covariance_error", "ratio"),
    Quantity("transport_cost", "activation²"),
    Quantity("cost_over_bound", "ratio"),
    Quantity("outside_source", "share", SHARE),
    Quantity("outside_target", "share", SHARE),
)
OF_SOURCE = ("transport_cost", "cost_over_bound", "outside_source", "outside_target")


def map_quality(
    maps: Mapping[int, Edit],
    test: LayerSamples,
    train: LayerSamples,
    *,
    method: str | None = None,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Held-out quality of the map of every layer.

    `w2_before`, `w2_after`: squared Gaussian W2 from the source samples, unmoved and moved, to the target
    samples; the null is that of permuted labels, so a perfect map lands `w2_after` inside it. `mean_error` is
    the location part of `w2_after`, `covariance_error` is ||C_moved - C_target||_F / ||C_target||_F, whose
    null permutes contrasts within the classes (see `DrawnShapes`).
    `transport_cost` is the mean of ||T(x) - x||^2, `cost_over_bound` that over the squared W2 between the
    samples and their own images, a lower bound for every map with these images: 1 for an optimal map.
    Where the map is far from optimal and n far below d, its interval shows variation but has no coverage.
    `outside_source` is the share of held-out source samples outside the range of the training source along
    one of the leading pooled training components, where the map extrapolates; `outside_target` is the share
    of moved samples outside the range of the training target. Their intervals are Wilson's; their null
    permutes training and held-out samples of that class.

    Args:
        maps: fitted on `train`, by layer.
        test: held-out activations, with the same layers.
        train: the activations the maps were fitted on.
        method: name in the table; the name of the maps when None.
        position: token position; may be left out when only one was captured.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of the draws.

    Returns:
        Columns layer, position, method, quantity, value, n, null_mean, null_low, null_high, low, high, unit.

    Raises:
        ActivationError: a layer that was not captured, or samples that cannot be used.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    missing = [layer for layer in maps if layer not in test.layers or layer not in train.layers]
    if missing:
        raise ActivationError(f"Layers {missing} have a map but were not captured in both train and test.")
    at = resolve_position(test, position)
    fitted_on = {keys["layer"]: (H, S) for keys, H, S in each_layer(train, at)}

    def measure(layer: tuple[dict[str, Any], Tensor, Tensor]) -> list[dict[str, Any]]:
        keys, H, S = layer
        edit = maps[keys["layer"]]
        moved = _Moved(H, S, edit.map(H), *fitted_on[keys["layer"]])
        return list(_rows({**keys, "method": method or _name(edit)}, moved, plan))

    layers = [layer for layer in each_layer(test, at) if layer[0]["layer"] in maps]
    rows = [row for measured in mapped(measure, layers) for row in measured]
    return pd.DataFrame(rows, columns=["layer", "position", "method", *COLUMNS])


def _name(edit: Edit) -> str:
    return str(getattr(getattr(edit, "info", None), "method", None) or type(edit).__name__)


class _Moved:
    """Gram matrices of one layer, on the CPU, so that no draw reads samples of width d."""

    def __init__(self, H: Tensor, S: Tensor, moved: Tensor, train_H: Tensor, train_S: Tensor) -> None:
        self.sizes = len(H), len(S)
        self.before, self.after, self.paired = (
            PooledGram.of(Pooled.of(*pair)) for pair in ((H, S), (moved, S), (H, moved))
        )
        pca = PooledPCA.of(train_H, train_S)
        axes, self.rounding = pca.axes(min(int(pca.rank), SUPPORT_COMPONENTS)), float(pca.rounding)
        in_train_H, in_train_S, in_H, in_S, in_moved = (
            ((X - pca.mean) @ axes).cpu() for X in (train_H, train_S, H, S, moved)
        )
        self.source = in_train_H, in_H
        self.target = in_train_S, in_moved
        self.target_held_out = in_S

    def compared(self, draws: Resamples) -> Values:
        """Everything that reads the held-out labels."""
        after = self.after.under(draws)
        parts = wasserstein(after, fast=True)
        return {
            "w2_before": wasserstein(self.before.under(draws), fast=True)["w2_squared"],
            "w2_after": parts["w2_squared"],
            "mean_error": parts["w2_location"],
            "covariance_error": _covariance_error(after),
        }

    def null(self, labels: Resamples, plan: ResamplingPlan) -> Values:
        """Under permuted labels, contrasts or, beyond the ranges, training and held-out samples."""
        shapes = self.after.relabelled_shapes(self.sizes, plan.permutations, plan.seed)
        target = self.target[0], self.target_held_out
        return {
            **by_chunks(self.compared, plan.relabelled(labels)),
            "covariance_error": torch.cat(mapped(_covariance_error, shapes.chunks())),
            "outside_source": _exchanged(*self.source, plan, self.rounding),
            "outside_target": _exchanged(*target, plan, self.rounding),
        }

    def costs(self, draws: Resamples) -> Values:
        """Mean squared displacement of the drawn source samples, and that over its Gelbrich bound."""
        n = self.sizes[0]
        rows = draws.source
        images = Resamples(rows, rows + n, draws.source_fold, draws.source_fold, draws.folds)
        squares = self.paired.gram.diagonal()
        displacement = squares[:n] + squares[n:] - 2 * self.paired.gram[:n, n:].diagonal()
        cost = displacement.clamp_min(0.0)[rows].mean(1)
        parts = wasserstein(self.paired.under(images), fast=draws.count > 1)
        # The bound holds for the moments of the sample itself, hence 1 / n covariances.
        bound = parts["w2_location"] + parts["w2_bures"] * (n - 1) / n
        bound = bound.masked_fill(bound <= self.paired.rounding, torch.nan)
        return {"transport_cost": cost, "cost_over_bound": cost / bound}

    def outside(self) -> Values:
        """Shares of the source samples, and of their images, beyond the training ranges."""
        source, target = (
            _beyond(*pair, self.rounding).to(torch.float64).mean(0, keepdim=True)
            for pair in (self.source, self.target)
        )
        return {"outside_source": source, "outside_target": target}


def _covariance_error(classes: DrawnClasses | DrawnShapes) -> Float64[Tensor, " R"]:
    """||C_H - C_S||_F / ||C_S||_F, from the blocks of the Gram matrix."""
    moved, target = (classes.within(label).square().sum((1, 2)) for label in ("harmful", "harmless"))
    cross = classes.cross().square().sum((1, 2))
    target = target.masked_fill(target <= classes.rounding**2, torch.nan)
    return ((moved + target - 2 * cross).clamp_min(0.0) / target).sqrt()


def _beyond(
    known: Float64[Tensor, "*R n k"], new: Float64[Tensor, "*R m k"], rounding: float
) -> Bool[Tensor, "*R m"]:
    low, high = known.amin(-2, keepdim=True), known.amax(-2, keepdim=True)
    return ((new < low - rounding) | (new > high + rounding)).any(-1)


def _exchanged(
    known: Float64[Tensor, "n k"], new: Float64[Tensor, "m k"], plan: ResamplingPlan, rounding: float
) -> Float64[Tensor, " R"]:
    both = torch.cat([known, new])
    orders = plan.relabelled(plan.observed(len(known), len(new)))
    return _beyond(both[orders.source], both[orders.target], rounding).to(torch.float64).mean(1)


def _rows(keys: dict[str, Any], layer: _Moved, plan: ResamplingPlan) -> Iterator[dict[str, Any]]:
    def measure(draws: Resamples) -> Values:
        return layer.compared(draws) | layer.costs(draws)

    labels = plan.observed(*layer.sizes)
    value, null = by_chunks(measure, labels) | layer.outside(), layer.null(labels, plan)
    drawn = by_chunks(measure, plan.resampled(labels))
    for quantity in QUANTITIES:
        n = layer.sizes[0] if quantity.name in OF_SOURCE else sum(layer.sizes)
        entry = row(keys, quantity, n, (value, null, drawn))
        if quantity.unit == "share" and plan.bootstrap:
            # Over other held-out prompts, for this training range.
            over_prompts = share(round(entry["value"] * n), n)
            entry |= {"low": over_prompts.low, "high": over_prompts.high}
        yield entry
