"""Streaming a capture straight into moments: statistics without storing an activation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.activations.numbers import check_finite
from ot_lens.activations.plan import CapturePlan, CaptureSettings, Shard, plan_shards
from ot_lens.activations.positions import captured_index
from ot_lens.activations.shards import captured
from ot_lens.errors import ActivationError, HookError
from ot_lens.gaussian import BuresWasserstein, Gaussian, gaussian_distance
from ot_lens.moments import LIMIT, Moments
from ot_lens.prompts import CLASSES, Contrast

# Rows collected before they are merged: a merge copies the rows that are kept, so that one merge per small
# batch would cost more than the model.
BLOCK = 256

Site = tuple[str, int, int | str]


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Moments of both classes at every layer and position captured.

    Attributes:
        moments: By class, layer and position.
        layers: The layers.
        positions: Token positions counted from the prompt's end, or "mean".
        hook: The hook point.
        info: Their origin: model, prompt hashes, active edits.
    """

    moments: Mapping[Site, Moments]
    layers: tuple[int, ...]
    positions: tuple[int | str, ...]
    hook: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Summary of the shape."""
        n = ", ".join(f"{self._of(label, self.layers[0], self.positions[0]).n} {label}" for label in CLASSES)
        return f"LayerMoments({self.hook}, layers {list(self.layers)}, positions {list(self.positions)}, {n})"

    def harmful(self, layer: int, position: int | str | None = None) -> Moments:
        """Moments of the harmful class.

        Args:
            layer: A captured layer.
            position: A captured position; optional if there is only one.

        Raises:
            HookError: If the layer or position was not captured.
        """
        return self._of("harmful", layer, position)

    def harmless(self, layer: int, position: int | str | None = None) -> Moments:
        """Moments of the harmless class; see `harmful`."""
        return self._of("harmless", layer, position)

    def mean_difference(self, layer: int, position: int | str | None = None) -> Float64[Tensor, " d"]:
        """Mean of the harmful class minus mean of the harmless one; see `harmful`."""
        return self.harmful(layer, position).mean - self.harmless(layer, position).mean

    def bures_wasserstein(
        self,
        layer: int,
        position: int | str | None = None,
        *,
        ridge: float = 0.0,
        shrinkage: str | None = None,
    ) -> BuresWasserstein:
        """Squared 2-Wasserstein distance between the Gaussians with these moments; see `bures_wasserstein`.

        Args:
            layer: A captured layer.
            position: A captured position; optional if there is only one.
            ridge: Variance added to every direction of both covariances, in squared activation units.
            shrinkage: "ledoit_wolf", "oas" or None.

        Raises:
            HookError: If the layer or position was not captured.
            ActivationError: If a class has fewer than two samples.
            FitError: If the ridge is negative or the shrinkage unknown.
        """
        source, target = (
            Gaussian.of_moments(moments, ridge=ridge, shrinkage=shrinkage)
            for moments in (self.harmful(layer, position), self.harmless(layer, position))
        )
        return gaussian_distance(source, target)

    def merge(self, other: "LayerMoments") -> "LayerMoments":
        """Moments of both sets of prompts; the smaller limit applies.

        Raises:
            ActivationError: If hook point, layers or positions differ.
        """
        for name in ("hook", "layers", "positions"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ActivationError(f"Cannot merge moments whose {name} differ: {ours} and {theirs}.")
        merged = {site: ours.merge(other.moments[site]) for site, ours in self.moments.items()}
        shared = {name: value for name, value in self.info.items() if other.info.get(name) == value}
        return LayerMoments(merged, self.layers, self.positions, self.hook, shared)

    def _of(self, label: str, layer: int, position: int | str | None) -> Moments:
        if layer not in self.layers:
            raise HookError(f"Layer {layer} was not captured: only {list(self.layers)} were.")
        return self.moments[label, layer, self.positions[captured_index(self.positions, position)]]


def capture_moments(
    model: Any,
    prompts: Contrast,
    *,
    limit: int = LIMIT,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> LayerMoments:
    """Moments of both classes of a contrast, without keeping the activations.

    Memory does not grow with the number of prompts: 2 * limit rows of float64 for each class, layer and
    position, and one batch. Up to 2 * limit prompts per class the moments are exact; see `Moments`.

    Args:
        model: A hooked model.
        prompts: One split.
        limit: Rows of a covariance that are kept when it is compressed.
        progress: Called with the number of prompts just finished.
        settings: Options of `capture`: layers, hook, positions, reduce, edits, tokens, batch_size ...

    Raises:
        HookError: If a layer, hook point or position does not exist.
        PromptError: If prompts cannot be rendered.
        ActivationError: If activations hold NaN or Inf, or the limit is below 1.
    """
    plan = plan_shards(model, prompts, CaptureSettings(**settings))

    def reported() -> Iterator[tuple[Shard, Tensor]]:
        for shard, values in captured(model, prompts, plan, plan.shards):
            yield shard, values
            if progress is not None:
                progress(len(shard.indices))

    return moments_of(plan, reported(), limit=limit)


def moments_of(
    plan: CapturePlan,
    shards: Iterable[tuple[Shard, Float[Tensor, "layer batch position d"]]],
    *,
    limit: int = LIMIT,
) -> LayerMoments:
    """Moments of the shards of a capture, which are read once, in any order."""
    moments = partial_moments(plan, shards, limit=limit)
    for label in CLASSES:
        if (label, plan.layers[0], plan.labels[0]) not in moments:
            raise ActivationError(f"No {label} activations: both classes are needed.")
    return LayerMoments(moments, plan.layers, plan.labels, plan.settings.hook, plan.key)


def partial_moments(
    plan: CapturePlan,
    shards: Iterable[tuple[Shard, Float[Tensor, "layer batch position d"]]],
    *,
    limit: int = LIMIT,
) -> dict[Site, Moments]:
    """Moments of some shards of a capture, by class, layer and position; see `moments_of`."""
    moments: dict[Site, Moments] = {}
    waiting: dict[str, list[Tensor]] = {label: [] for label in CLASSES}
    for shard, values in shards:
        batches = waiting[shard.label]
        batches.append(values)
        if sum(batch.shape[1] for batch in batches) >= BLOCK:
            _merge(moments, plan, shard.label, batches, limit)
            batches.clear()
    for label, batches in waiting.items():
        if batches:
            _merge(moments, plan, label, batches, limit)
    return moments


def _merge(
    moments: dict[Site, Moments], plan: CapturePlan, label: str, batches: Sequence[Tensor], limit: int
) -> None:
    for i, layer in enumerate(plan.layers):
        for j, position in enumerate(plan.labels):
            rows = torch.cat([batch[i, :, j] for batch in batches])
            check_finite(rows, label, layer)
            site, more = (label, layer, position), Moments.of(rows, limit=limit)
            moments[site] = moments[site].merge(more) if site in moments else more
