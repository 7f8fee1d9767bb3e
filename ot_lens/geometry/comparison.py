"""Refusal directions at several places of one or two captures, compared under every draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import ActivationError
from ot_lens.geometry.resampled_moments import class_weights
from ot_lens.linalg import Pooled, check_pair, unit_vectors
from ot_lens.samples import LayerSamples
from ot_lens.statistics.intervals import bootstrap_interval, null_band
from ot_lens.statistics.resampling import Resamples, bootstraps, observed, relabellings

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Places:
    """Samples of both classes about their pooled mean at several (layer, position), on the CPU."""

    Z: tuple[Float64[Tensor, "N d"], ...]
    sizes: tuple[int, int]
    rounding: Float64[Tensor, " p"]
    gram_rounding: Float64[Tensor, " p"]

    @classmethod
    def of(cls, acts: LayerSamples, places: Sequence[tuple[int, int | str]]) -> "Places":
        """Read and check them.

        Raises:
            ActivationError: samples that cannot be used; the message names the layer.
        """
        pairs = [_pair(acts, layer, position) for layer, position in places]
        sizes = {(len(H), len(S)) for H, S in pairs}
        if len(sizes) != 1:
            raise ActivationError(
                f"places have different numbers of samples {sorted(sizes)}: capture them together"
            )
        pooled = [Pooled.of(H, S) for H, S in pairs]
        rounding, gram_rounding = (
            torch.stack([getattr(place, name) for place in pooled]).cpu()
            for name in ("rounding", "gram_rounding")
        )
        return cls(tuple(place.Z.cpu() for place in pooled), sizes.pop(), rounding, gram_rounding)

    def directions(self, draws: Resamples) -> Float64[Tensor, "R p d"]:
        """Unit differences in class means; NaN where the means coincide."""
        N = sum(self.sizes)
        weights = class_weights(draws.source, N) - class_weights(draws.target, N)
        directions = weights.new_empty(draws.count, len(self.Z), self.Z[0].shape[1])
        for place, Z in enumerate(self.Z):
            torch.mm(weights, Z, out=directions[:, place])
        return unit_vectors(directions, self.rounding.unsqueeze(1))


def _pair(acts: LayerSamples, layer: int, position: int | str) -> tuple[Tensor, Tensor]:
    names = (
        f"harmful at layer {layer}, position {position}",
        f"harmless at layer {layer}, position {position}",
    )
    H, S = acts.harmful(layer=layer, position=position), acts.harmless(layer=layer, position=position)
    return check_pair(H, S, names=names)


@dataclass(frozen=True)
class Cosines:
    """Cosines between the directions of two lists of places, with their null and their interval."""

    value: Float64[Tensor, "a b"]
    null: Float64[Tensor, "R a b"] | None
    resampled: Float64[Tensor, "B a b"] | None
    n: int

    @classmethod
    def between(
        cls, first: Places, second: Places, *, n_permutations: int, n_bootstrap: int, seed: int
    ) -> "Cosines":
        """Equal seeds for both: classes of equal size are the same prompts and are drawn together.

        Raises:
            ActivationError: places of different widths.
        """
        widths = first.Z[0].shape[1], second.Z[0].shape[1]
        if widths[0] != widths[1]:
            raise ActivationError(f"directions of widths {widths[0]} and {widths[1]} cannot be compared")
        labels = observed(*first.sizes, seed), observed(*second.sizes, seed)

        def draw(kind: str, count: int) -> Float64[Tensor, "R a b"] | None:
            make = relabellings if kind == "null" else bootstraps
            return (
                _products(first, second, *(make(label, count, seed) for label in labels)) if count else None
            )

        value = _products(first, second, *labels)[0]
        return cls(value, draw("null", n_permutations), draw("bootstrap", n_bootstrap), sum(first.sizes))

    def row(self, a: int, b: int) -> dict[str, float | int]:
        """Columns cosine, n, low, high, null_mean, null_low, null_high of one pair."""
        cosine = float(self.value[a, b])
        resampled = None if self.resampled is None else self.resampled[:, a, b]
        null = None if self.null is None else self.null[:, a, b]
        return {
            "cosine": cosine,
            "n": self.n,
            **bootstrap_interval(cosine, resampled, self.n, (-1.0, 1.0)),
            **null_band(null),
        }


def _products(first: Places, second: Places, one: Resamples, other: Resamples) -> Float64[Tensor, "R a b"]:
    """Through the directions themselves: cross-Gram matrices of all pairs of places would cost more."""
    size = max(1, CHUNK_BYTES // (8 * first.Z[0].shape[1] * (len(first.Z) + len(second.Z))))
    parts = []
    for start in range(0, one.count, size):
        r = first.directions(one.slice(start, start + size))
        s = r if first is second else second.directions(other.slice(start, start + size))
        parts.append((r @ s.mT).clamp(-1.0, 1.0))
    return torch.cat(parts)
