"""Refusal directions at several layers and positions of one or two captures, compared under every draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import ActivationError
from ot_lens.geometry.resampled_moments import class_weights
from ot_lens.linalg import Pooled, check_pair, unit_vectors
from ot_lens.samples import LayerSamples
from ot_lens.statistics.intervals import bootstrap_interval, null_band
from ot_lens.statistics.resampling import Resamples, ResamplingPlan

CHUNK_BYTES = 64 * 2**20
Site = tuple[int, int | str]


@dataclass(frozen=True)
class Sites:
    """Samples of both classes about their pooled mean at several (layer, position), on the CPU."""

    Z: tuple[Float64[Tensor, "N d"], ...]
    sizes: tuple[int, int]
    rounding: Float64[Tensor, " p"]
    gram_rounding: Float64[Tensor, " p"]

    @classmethod
    def of(cls, acts: LayerSamples, sites: Sequence[Site]) -> "Sites":
        """Read and check the samples.

        Raises:
            ActivationError: samples that cannot be used; the message names the layer.
        """
        pairs = [_pair(acts, layer, position) for layer, position in sites]
        sizes = {(len(H), len(S)) for H, S in pairs}
        if len(sizes) != 1:
            raise ActivationError(
                f"The numbers of samples differ between layers or positions: {sorted(sizes)}. "
                "Capture them together."
            )
        pooled = [Pooled.of(H, S) for H, S in pairs]
        rounding = torch.stack([site.rounding for site in pooled]).cpu()
        gram_rounding = torch.stack([site.gram_rounding for site in pooled]).cpu()
        return cls(tuple(site.Z.cpu() for site in pooled), sizes.pop(), rounding, gram_rounding)

    def directions(self, draws: Resamples) -> Float64[Tensor, "R p d"]:
        """Unit differences in class means; NaN where the means coincide."""
        N = sum(self.sizes)
        weights = class_weights(draws.source, N) - class_weights(draws.target, N)
        directions = weights.new_empty(draws.count, len(self.Z), self.Z[0].shape[1])
        for site, Z in enumerate(self.Z):
            torch.mm(weights, Z, out=directions[:, site])
        return unit_vectors(directions, self.rounding.unsqueeze(1))


def _pair(acts: LayerSamples, layer: int, position: int | str) -> tuple[Tensor, Tensor]:
    names = tuple(f"{label} at layer {layer}, position {position}" for label in ("harmful", "harmless"))
    H, S = acts.harmful(layer=layer, position=position), acts.harmless(layer=layer, position=position)
    return check_pair(H, S, names=(names[0], names[1]))


def cosine_rows(
    first: Sites,
    second: Sites,
    names: tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]],
    plan: ResamplingPlan,
) -> list[dict[str, Any]]:
    """Rows of the cosines of all pairs of sites, with n, low, high, null_mean, null_low, null_high.

    Classes of equal size are taken to be the same prompts and are drawn together.

    Args:
        first: sites of one capture.
        second: sites of another, or the same.
        names: columns that name each site of `first` and of `second`.
        plan: of the null and the interval.

    Raises:
        ActivationError: sites of different widths.
    """
    widths = first.Z[0].shape[1], second.Z[0].shape[1]
    if widths[0] != widths[1]:
        raise ActivationError(f"Directions of widths {widths[0]} and {widths[1]} cannot be compared.")
    labels = plan.observed(*first.sizes), plan.observed(*second.sizes)
    null, resampled = (
        None if one is None or other is None else _products(first, second, one, other)
        for one, other in (
            tuple(map(plan.relabelled, labels)),
            tuple(map(plan.resampled, labels)),
        )
    )
    values, n = _products(first, second, *labels)[0], sum(first.sizes)
    return [
        {
            **one,
            **other,
            "cosine": float(values[a, b]),
            "n": n,
            **bootstrap_interval(
                float(values[a, b]), None if resampled is None else resampled[:, a, b], n, (-1.0, 1.0)
            ),
            **null_band(None if null is None else null[:, a, b]),
        }
        for (a, one), (b, other) in product(enumerate(names[0]), enumerate(names[1]))
    ]


def _products(first: Sites, second: Sites, one: Resamples, other: Resamples) -> Float64[Tensor, "R a b"]:
    """Through the directions themselves: cross-Gram matrices of all pairs of sites would cost more."""
    size = max(1, CHUNK_BYTES // (8 * first.Z[0].shape[1] * (len(first.Z) + len(second.Z))))
    products = []
    for start in range(0, one.count, size):
        r = first.directions(one.slice(start, start + size))
        s = r if first is second else second.directions(other.slice(start, start + size))
        products.append((r @ s.mT).clamp(-1.0, 1.0))
    return torch.cat(products)
