"""Coordinate-wise affine maps of several layers and the distance of each coordinate, batched over layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.linalg import all_equal, centred, monotone_coupling
from ot_lens.transport import AffineMap


@dataclass(frozen=True, eq=False)
class Frame:
    """Standardized parameters q = (u, w) of the maps x + size (u (x - mean) / spread + w), layer by layer.

    ||q_l||^2 is the mean squared displacement of the unedited source in units of the layer's pooled variance,
    and the loss of a layer, if it is edited alone, is a constant plus ||q_l - q*_l||^2 where maps increase.
    """

    mean: Float64[Tensor, "L d"]
    inverse: Float64[Tensor, "L d"]  # of the spread; 0 where the source is constant, which is only shifted
    size: Float64[Tensor, " L"]  # root of the pooled total variance; 0 where all samples are identical

    @classmethod
    def of(cls, H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]) -> "Frame":
        """From unedited samples."""
        Z, mean = centred(H)
        spread = Z.square().mean(1).sqrt()
        inverse = torch.where(spread > 0, 1 / spread, 0.0)
        variance = torch.cat([H, S], dim=1).var(dim=1, correction=0).sum(-1)
        return cls(mean, inverse, torch.where(all_equal(H, S), 0.0, variance.sqrt()))

    def maps(self, layers: Sequence[int], q: Float64[Tensor, "L two d"]) -> dict[int, AffineMap]:
        """The map of each layer, differentiable in q."""
        none = q.new_zeros(q.shape[-1], 0)
        slope = self.size.unsqueeze(1) * q[:, 0] * self.inverse
        shift = self.size.unsqueeze(1) * q[:, 1] - slope * self.mean
        parts = zip(layers, 1 + slope, shift, strict=True)
        return {layer: AffineMap(none, none, bias, scale) for layer, scale, bias in parts}


@dataclass(frozen=True, eq=False)
class Target:
    """The unedited target, ready for the distance of a source of n samples in each coordinate."""

    matched: Float64[Tensor, "L n d"]  # mean of what each rank of the source is coupled to
    rest: Float64[Tensor, " L"]  # what no map of n points can take away
    weight: Float64[Tensor, " L"]  # 1 / pooled total variance; 0 where all samples are identical

    @classmethod
    def of(cls, S: Float64[Tensor, "L n_S d"], n: int, size: Float64[Tensor, " L"]) -> "Target":
        """From unedited samples."""
        i, j, mass = monotone_coupling(n, S.shape[1], S.device)
        coupled = S.sort(1).values[:, j]
        weighted = coupled * mass.unsqueeze(1)
        matched = n * S.new_zeros(len(S), n, S.shape[-1]).index_add_(1, i, weighted)
        rest = (weighted * (coupled - matched[:, i])).sum((1, 2))
        return cls(matched, rest, torch.where(size > 0, 1 / size.square(), 0.0))

    def losses(self, Z: Float64[Tensor, "L n d"]) -> Float64[Tensor, " L"]:
        """Mean W2^2 over coordinates of each layer, in units of its pooled variance."""
        return self.weight * ((Z.sort(1).values - self.matched).square().sum((1, 2)) / Z.shape[1] + self.rest)

    def of_samples(self, Z: Float64[Tensor, "L n d"]) -> Float64[Tensor, "L n d"]:
        """What each sample is coupled to."""
        return torch.empty_like(Z).scatter_(1, Z.argsort(1), self.matched)
