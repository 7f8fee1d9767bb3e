"""Interchange as a map: a harmless sample itself in the place of x, whichever a random draw gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.maps import number
from ot_lens.transport.methods import TRANSPORT
from ot_lens.transport.to_samples import MapToSamples

# Leading components of the source that the draw reads, and the least spread among them, of the largest.
COMPONENTS, LEAST = 32, 1e-6


@dataclass(frozen=True, eq=False)
class InterchangeMap(MapToSamples):
    """T(x) = y_j with j the largest of g_j^T (x - centre): a random sample of the target for each x.

    The draw is made from x, so that the same prompt always receives the same sample, in any engine.

    Attributes:
        targets: y, `[n_S, d]`.
        directions: g, `[n_S, d]`, random in the whitened source.
        centre: mean of the source, `[d]`.
        strength: t of x + t (T(x) - x).
        info: where the map came from.
    """

    targets: Float[Tensor, "n_S d"]
    directions: Float[Tensor, "n_S d"]
    centre: Float[Tensor, " d"]
    strength: float = 1.0
    info: FitInfo = field(default_factory=FitInfo)

    SHAPES: ClassVar[Mapping[str, str]] = {"targets": "n_S d", "directions": "n_S d", "centre": "d"}

    def _image(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """The sample drawn for each row."""
        drawn = ((rows - self.centre) @ self.directions.T).argmax(dim=1)
        return self.targets[drawn]

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], info: FitInfo
    ) -> "InterchangeMap":
        """The map of stored parameters."""
        strength = number(settings, "strength")
        return cls(tensors["targets"], tensors["directions"], tensors["centre"], strength, info)


@defines_method(
    "interchange",
    "Interchange",
    TRANSPORT,
    formula="y_j, j drawn at random",
    source="arXiv 2106.02997",
    reversible=True,
    group="Interchange",
    colour="#7A7F2B",
    marker="left",
    dash="dot",
    order=110,
)
def fit_interchange(
    H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"], *, seed: int = 0
) -> list[InterchangeMap]:
    """The activation of a random harmless prompt in the place of x.

    Source: interchange interventions, Geiger et al. 2021 (arXiv 2106.02997), section 3. No map can be
    more specific at a site: what another one reaches of its effect is the share explained.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        seed: of the draw.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
    """
    return [_map_of_layer(*layer, seed) for layer in zip(H, S, strict=True)]


def _map_of_layer(H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"], seed: int) -> InterchangeMap:
    """Directions are random in the source's leading components, each in units of its spread.

    In the raw space the few components that vary most would give all samples the same few targets.
    """
    centre = H.mean(dim=0)
    _, spread, axes = torch.linalg.svd(H - centre, full_matrices=False)
    axes, spread = axes[:COMPONENTS], spread[:COMPONENTS]
    least = LEAST * spread[:1].clamp_min(torch.finfo(H.dtype).tiny)
    scale = torch.where(spread > least, 1 / spread.clamp_min(least), 0.0)
    # Signs of components are arbitrary: the largest coordinate is positive.
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(S), len(axes), generator=generator, dtype=torch.float64, device="cpu").to(H)
    directions = drawn @ (axes * largest.sign() * scale[:, None])
    return InterchangeMap(S.clone(), directions, centre)
