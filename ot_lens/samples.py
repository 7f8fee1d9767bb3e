"""The interface of captured activations for tensor-only modules, which read them in batches of layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from ot_lens.errors import ActivationError
from ot_lens.linalg import check_pair

# The position of a prompt's first token, which no index from the end has in prompts of unequal length.
FIRST = "first"
# On a CPU, batches that fit the cache: larger ones are three times as slow to centre (page faults).
BATCH_BYTES = {"cpu": 32 * 2**20}
BATCH_BYTES_ELSEWHERE = 2**30


@runtime_checkable
class LayerSamples(Protocol):
    """Samples of two classes at several layers and token positions; `ot_lens.Activations` is one."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers captured."""

    @property
    def positions(self) -> tuple[int | str, ...]:
        """Token positions captured."""

    @property
    def hook(self) -> str:
        """Name of the hook point."""

    def harmful(self, layer: int, position: int | str | None = None) -> Float64[Tensor, "n_H d"]:
        """Samples of the source class."""

    def harmless(self, layer: int, position: int | str | None = None) -> Float64[Tensor, "n_S d"]:
        """Samples of the target class."""


@runtime_checkable
class Edit(Protocol):
    """A map of activations: an `AffineMap`, a masked or an entropic map."""

    def map(self, x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The moved activations, in their own dtype."""

    def __call__(self, x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The same as `map`."""
        return self.map(x)


@dataclass(frozen=True)
class LayerBatch:
    """Checked samples of a few layers at one position."""

    layers: tuple[int, ...]
    position: int | str
    H: Float64[Tensor, "L n_H d"]
    S: Float64[Tensor, "L n_S d"]


def resolve_position(samples: LayerSamples, position: int | str | None) -> int | str:
    """The requested position ("last" is -1), or the only one captured."""
    captured = samples.positions
    if position is None:
        if len(captured) != 1:
            raise ActivationError(
                f"Positions {list(captured)} were captured: choose one, e.g. position={captured[-1]!r}."
            )
        return captured[0]
    requested = -1 if position == "last" else position
    if requested not in captured:
        raise ActivationError(f"Position {position!r} was not captured: choose one of {list(captured)}.")
    return requested


def checked_layer(
    samples: LayerSamples, layer: int, position: int | str
) -> tuple[Float64[Tensor, "n_H d"], Float64[Tensor, "n_S d"]]:
    """Both classes at one captured position; an error names the layer."""
    at = f"at layer {layer}, position {position}"
    H, S = (of(layer=layer, position=position) for of in (samples.harmful, samples.harmless))
    return check_pair(H, S, names=(f"harmful {at}", f"harmless {at}"))


def layer_batches(
    samples: LayerSamples, position: int | str | None = None, *, budget: int | None = None
) -> Iterator[LayerBatch]:
    """Yield the layers in batches of at most `budget` bytes of float64, but at least one layer each."""
    at = resolve_position(samples, position)
    layers: list[int] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for layer in samples.layers:
        pairs.append(checked_layer(samples, layer, at))
        layers.append(layer)
        size = 8 * sum(x.numel() for x in pairs[-1])
        limit = BATCH_BYTES.get(pairs[-1][0].device.type, BATCH_BYTES_ELSEWHERE) if budget is None else budget
        if (len(pairs) + 1) * size > limit:
            yield _batch(layers, at, pairs)
            layers, pairs = [], []
    if pairs:
        yield _batch(layers, at, pairs)


def _batch(layers: list[int], position: int | str, pairs: list[tuple[Tensor, Tensor]]) -> LayerBatch:
    H, S = (torch.stack(side) for side in zip(*pairs, strict=True))
    return LayerBatch(tuple(layers), position, H, S)


def each_layer(
    samples: LayerSamples, position: int | str | None = None
) -> Iterator[tuple[dict[str, Any], Float64[Tensor, "n_H d"], Float64[Tensor, "n_S d"]]]:
    """Yield layer and position, as columns of a table, and both classes, for one position or for all."""
    for at in samples.positions if position is None else (position,):
        for batch in layer_batches(samples, at):
            for layer, H, S in zip(batch.layers, batch.H, batch.S, strict=True):
                yield {"layer": layer, "position": batch.position}, H, S
