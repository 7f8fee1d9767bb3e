"""Quality of a fitted map on held-out prompts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ot_lens.errors import ActivationError
from ot_lens.geometry.distances import wasserstein
from ot_lens.geometry.quantities import SHARE, Quantity
from ot_lens.geometry.resampled_moments import DrawnClasses, DrawnShapes, Values, joined
from ot_lens.geometry.tables import COLUMNS, row
from ot_lens.linalg import Pooled, gram_spectrum, mapped, numerical_rank, principal_axes
from ot_lens.samples import Edit, LayerSamples, each_layer, resolve_position
from ot_lens.statistics import share
from ot_lens.statistics.resampling import Resamples, ResamplingPlan, observed, relabellings

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
    rows: list[dict[str, Any]] = []
    for keys, H, S in each_layer(test, at):
        edit = maps.get(keys["layer"])
        if edit is not None:
            moved = _Moved(H, S, edit.map(H), *fitted_on[keys["layer"]])
            rows += _rows({**keys, "method": method or _name(edit)}, moved, plan)
    return pd.DataFrame(rows, columns=["layer", "position", "method", *COLUMNS])


def _name(edit: Edit) -> str:
    return str(getattr(getattr(edit, "info", None), "method", None) or type(edit).__name__)


@dataclass(frozen=True)
class _PooledGram:
    """Inner products of two classes about their pooled mean, and the variance that equal samples may show."""

    gram: Float64[Tensor, "N N"]
    rounding: float

    @classmethod
    def of(cls, H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"]) -> "_PooledGram":
        pooled = Pooled.of(H, S)
        return cls(pooled.gram().cpu(), float(pooled.gram_rounding))

    def under(self, draws: Resamples) -> DrawnClasses:
        return DrawnClasses.of(self.gram, draws, self.rounding)


class _Moved:
    """Gram matrices of one layer, on the CPU, so that no draw reads samples of width d."""

    def __init__(self, H: Tensor, S: Tensor, moved: Tensor, train_H: Tensor, train_S: Tensor) -> None:
        self.sizes = len(H), len(S)
        self.before, self.after, self.paired = (
            _PooledGram.of(*pair) for pair in ((H, S), (moved, S), (H, moved))
        )
        axes, centre, self.rounding = _leading_axes(train_H, train_S)
        in_train_H, in_train_S, in_H, in_S, in_moved = (
            ((X - centre) @ axes).cpu() for X in (train_H, train_S, H, S, moved)
        )
        self.source = in_train_H, in_H
        self.target = in_train_S, in_moved
        self.target_held_out = in_S

    def under(self, draws: Resamples) -> Values:
        """Everything that reads the held-out labels."""
        return joined(mapped(self._under, draws.chunks()))

    def _under(self, draws: Resamples) -> Values:
        after = self.after.under(draws)
        parts = wasserstein(after, fast=True)
        return {
            "w2_before": wasserstein(self.before.under(draws), fast=True)["w2_squared"],
            "w2_after": parts["w2_squared"],
            "mean_error": parts["w2_location"],
            "covariance_error": _covariance_error(after),
        }

    def null(self, labels: Resamples, count: int, seed: int) -> Values:
        """Under permuted labels; `covariance_error` under permuted contrasts."""
        shapes = DrawnShapes.relabelled(self.after.gram, self.sizes, count, seed, self.after.rounding)
        error = {"covariance_error": torch.cat(mapped(_covariance_error, shapes.chunks()))}
        return self.under(relabellings(labels, count, seed)) | error | self.outside_null(count, seed)

    def costs(self, draws: Resamples) -> Values:
        """Mean squared displacement of the drawn source samples, and that over its Gelbrich bound."""
        return joined(mapped(self._costs, draws.chunks()))

    def _costs(self, draws: Resamples) -> Values:
        n = self.sizes[0]
        rows = draws.source
        images = Resamples(rows, rows + n, draws.source_fold, draws.source_fold, draws.folds)
        squares = self.paired.gram.diagonal()
        displacement = squares[:n] + squares[n:] - 2 * self.paired.gram[:n, n:].diagonal()
        cost = displacement.clamp_min(0.0)[rows].mean(1)
        classes = self.paired.under(images)
        parts = wasserstein(classes, fast=draws.count > 1)
        # The bound holds for the moments of the sample itself, hence 1 / n covariances.
        bound = parts["w2_location"] + parts["w2_bures"] * (n - 1) / n
        bound = bound.masked_fill(bound <= classes.rounding, torch.nan)
        return {"transport_cost": cost, "cost_over_bound": cost / bound}

    def outside(self, draws: Resamples) -> Values:
        """Shares of drawn source samples, and of their images, beyond the training ranges."""
        source, target = (
            _beyond(known.unsqueeze(0), new.unsqueeze(0), self.rounding)[0].to(torch.float64)
            for known, new in (self.source, self.target)
        )
        return {
            "outside_source": source[draws.source].mean(1),
            "outside_target": target[draws.source].mean(1),
        }

    def outside_null(self, count: int, seed: int) -> Values:
        """Training and held-out samples of a class exchanged."""
        return {
            "outside_source": _exchanged(*self.source, count, seed, self.rounding),
            "outside_target": _exchanged(self.target[0], self.target_held_out, count, seed, self.rounding),
        }


def _leading_axes(H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"]) -> tuple[Tensor, Tensor, float]:
    """Up to SUPPORT_COMPONENTS components of the pooled training samples, their mean and its rounding."""
    pooled = Pooled.of(H, S)
    values, vectors = gram_spectrum(pooled.Z)
    rank = int(numerical_rank(values, pooled.magnitude))
    axes = principal_axes(pooled.Z, vectors, min(rank, SUPPORT_COMPONENTS))
    return axes, pooled.mean, float(pooled.rounding)


def _covariance_error(classes: DrawnClasses | DrawnShapes) -> Float64[Tensor, " R"]:
    """||C_H - C_S||_F / ||C_S||_F, from the blocks of the Gram matrix."""
    moved, target = (classes.within(label).square().sum((1, 2)) for label in ("harmful", "harmless"))
    cross = classes.cross().square().sum((1, 2))
    target = target.masked_fill(target <= classes.rounding**2, torch.nan)
    return ((moved + target - 2 * cross).clamp_min(0.0) / target).sqrt()


def _beyond(
    known: Float64[Tensor, "R n k"], new: Float64[Tensor, "R m k"], rounding: float
) -> Bool[Tensor, "R m"]:
    low, high = known.amin(1, keepdim=True), known.amax(1, keepdim=True)
    return ((new < low - rounding) | (new > high + rounding)).any(2)


def _exchanged(
    known: Float64[Tensor, "n k"], new: Float64[Tensor, "m k"], count: int, seed: int, rounding: float
) -> Float64[Tensor, " R"]:
    both = torch.cat([known, new])
    orders = relabellings(observed(len(known), len(new), seed), count, seed)
    return _beyond(both[orders.source], both[orders.target], rounding).to(torch.float64).mean(1)


def _rows(keys: dict[str, Any], layer: _Moved, plan: ResamplingPlan) -> Iterator[dict[str, Any]]:
    labels = plan.observed(*layer.sizes)
    value = {**layer.under(labels), **layer.costs(labels), **layer.outside(labels)}
    null = layer.null(labels, plan.permutations, plan.seed) if plan.permutations else {}
    resamples = plan.resampled(labels)
    drawn = {} if resamples is None else {**layer.under(resamples), **layer.costs(resamples)}
    for quantity in QUANTITIES:
        name = quantity.name
        n = layer.sizes[0] if name in OF_SOURCE else sum(layer.sizes)
        entry = row(keys, quantity, float(value[name]), n, null.get(name), drawn.get(name))
        yield (
            {**entry, **_wilson(entry["value"], n)} if quantity.unit == "share" and plan.bootstrap else entry
        )


def _wilson(value: float, n: int) -> dict[str, float]:
    """Over other held-out prompts, for this training range."""
    estimate = share(round(value * n), n)
    return {"low": estimate.low, "high": estimate.high}
