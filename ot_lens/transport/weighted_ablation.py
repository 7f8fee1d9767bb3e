"""Weighted ablation: a direction removed from attention and MLP outputs, with a weight for each by block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.maps import ActivationMap
from ot_lens.transport.methods import PROJECTION
from ot_lens.transport.norm_preserving import NormPreservingMap
from ot_lens.transport.projected import projected_directions
from ot_lens.transport.projection import ablation_of, unit_directions

Weights = float | Sequence[float | int]  # as YAML has them
HOOKS = ("attn_out", "mlp_out")


@dataclass(frozen=True)
class Kernel:
    """Weight by block: `top` at `peak`, from there linear to `edge` at the distance `reach`, 0 beyond."""

    top: float
    peak: float = 0.0
    edge: float = 0.0
    reach: float = math.inf

    @classmethod
    def of(cls, component: str, given: Weights) -> "Kernel":
        """One weight for all blocks, or the four numbers; an error names what cannot be a weight."""
        numbers: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        if len(numbers) not in (1, 4) or not all(isinstance(number, int | float) for number in numbers):
            raise FitError(
                f"{component} = {given!r}: give one weight, or [max_weight, max_weight_position, min_weight, "
                "min_weight_distance]."
            )
        if not all(0 <= number < math.inf for number in numbers) or numbers[3:] == [0.0]:
            raise FitError(
                f"{component} = {given!r}: weights and positions are finite numbers >= 0, and the distance "
                "is > 0."
            )
        return cls(*map(float, numbers))

    def weight(self, layer: int) -> float:
        """The weight at a block."""
        distance = abs(layer - self.peak)
        if distance > self.reach:
            return 0.0
        return self.top + distance / self.reach * (self.edge - self.top)


def kernels(attention: Weights, mlp: Weights) -> dict[str, Kernel]:
    """The weights by hook point."""
    both = Kernel.of("attention", attention), Kernel.of("mlp", mlp)
    return dict(zip(HOOKS, both, strict=True))


def placed(
    maps: Mapping[int, ActivationMap],
    layers: Sequence[int],
    n_layers: int,
    *,
    attention: Weights = 1.0,
    mlp: Weights = 1.0,
    direction_index: float | None = None,
    **_of_the_fit: Any,
) -> dict[tuple[int, str], ActivationMap]:
    """The edits by (block, hook point): each block gets the map of the nearest of some layers, weighted."""
    one = None if direction_index is None else between(maps, direction_index)
    edits: dict[tuple[int, str], ActivationMap] = {}
    for block in range(n_layers):
        edit = one or maps[min(layers, key=lambda layer: (abs(layer - block), layer))]
        for hook, kernel in kernels(attention, mlp).items():
            weight = kernel.weight(block)
            if weight and not edit.is_identity:
                edits[block, hook] = weighted(edit, weight)
    return edits


def between(maps: Mapping[int, ActivationMap], index: float) -> ActivationMap:
    """The map whose unit direction lies between those of the two layers next to a fractional index."""
    low, share = math.floor(index), index - math.floor(index)
    missing = [layer for layer in (low, low + (share > 0)) if layer not in maps]
    if missing:
        raise FitError(
            f"direction_index = {index} needs the direction of layer {missing[0]}, which has none: add the "
            "layer, or choose another index."
        )
    if not share:
        return maps[low]
    return _lerped(maps[low], maps[low + 1], share)


def _lerped(low: ActivationMap, high: ActivationMap, share: float) -> ActivationMap:
    if isinstance(low, NormPreservingMap) and isinstance(high, NormPreservingMap):
        return NormPreservingMap(_lerped(low.inner, high.inner, share))
    below, above = _directed(low), _directed(high)
    mixed = torch.lerp(below.V, above.V, share)
    r = mixed / mixed.norm()
    # Controls have another size than 1, and a constant along their direction.
    size = -torch.lerp(below.U.T @ below.V, above.U.T @ above.V, share)
    shift = torch.lerp(below.V.T @ below.bias, above.V.T @ above.bias, share)
    return AffineMap(-r @ size, r, r @ shift, info=below.info)


def _directed(edit: ActivationMap) -> AffineMap:
    if not isinstance(edit, AffineMap) or edit.rank != 1:
        raise FitError(
            "direction_index lies next to a layer at which all samples are identical: choose another index."
        )
    return edit


def weighted(edit: ActivationMap, weight: float) -> ActivationMap:
    """Y + w (T(y) - y) for any w >= 0; norm-preserving maps keep the norm at every w."""
    if isinstance(edit, NormPreservingMap):
        return NormPreservingMap(weighted(edit.inner, weight))
    if not isinstance(edit, AffineMap):
        raise FitError(f"A {type(edit).__name__} cannot be weighted: weighted_ablation has affine maps.")
    return replace(edit, U=weight * edit.U, bias=weight * edit.bias)


@defines_method(
    "weighted_ablation",
    "Weighted ablation",
    PROJECTION,
    formula="y - w r rᵀ y at attention and MLP outputs, w by block",
    source="Weidmann 2025 (heretic)",
    everywhere=True,
    place=placed,
    group="Projection",
    colour="#A5548A",
    marker="square",
    dash="dashdot",
    order=43,
)
def fit_weighted_ablation(
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    *,
    attention: Weights = 1.0,
    mlp: Weights = 1.0,
    projected: bool = True,
    direction_index: float | None = None,
) -> list[AffineMap]:
    """T(y) = y - w r^ r^T y at every block's attention and MLP output, with one weight w for each.

    The edit that heretic and abliterix make in the weights: W <- W - w r^ r^T W for the matrix that writes
    the output (Weidmann 2025, github.com/p-e-w/heretic, `Model.abliterate`). Their parameters are arguments
    here, none of which is optimized. The map is the one for w = 1; `localize` places it: for a single layer
    its direction at every block, for all layers each block's own.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        attention: weight at attention outputs: one number for all blocks, or heretic's four, max_weight,
            max_weight_position (a block), min_weight and min_weight_distance (in blocks): max_weight at the
            position, linear to min_weight at the distance, 0 beyond.
        mlp: likewise, at MLP outputs.
        projected: r^ without its part along the harmless mean (see `fit_projected_ablation`), heretic's
            default; False: the plain difference in means.
        direction_index: one direction for all blocks, interpolated between the unit directions of the two
            nearest layers, such as 14.3; None: that of each layer swept.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: If the class means coincide, their difference is parallel to the harmless mean, or a
            parameter is out of range.
    """
    kernels(attention, mlp)
    if direction_index is not None and not 0 <= direction_index < math.inf:
        raise FitError(f"direction_index must be a layer number >= 0, such as 14.3, got {direction_index}.")
    directions = projected_directions(H, S) if projected else unit_directions(H, S)[0]
    return [ablation_of(r.unsqueeze(1), FitInfo(k=1)) for r in directions]
