"""Samples about their mean, and how much of what is left can be rounding."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

EPS = torch.finfo(torch.float64).eps


def centring_rounding(scale: Tensor, n: int) -> Tensor:
    """Largest residue of n equal numbers of size `scale` once their computed mean is subtracted.

    Every threshold of rank, spread or equality of samples is this bound, for the scale before centring: what
    centring left of equal samples is rounding, which depends on the processor and has no scale of its own.
    The same holds for the inner products of a Gram matrix that is centred afterwards.
    """
    return (16 + n) * EPS * scale


def _without_rounding(Z: Tensor, mean: Tensor) -> Tensor:
    """Set coordinates that all rows share to exactly zero, in place."""
    largest = torch.maximum(Z.amax(-2), -Z.amin(-2))
    return Z.mul_((largest > centring_rounding(mean.abs(), Z.shape[-2])).unsqueeze(-2))


def centred(
    X: Float64[Tensor, "*L n d"],
) -> tuple[Float64[Tensor, "*L n d"], Float64[Tensor, "*L d"]]:
    """X minus the mean of its rows, and that mean; coordinates that all rows share are exactly zero."""
    mean = X.mean(-2)
    return _without_rounding(X - mean.unsqueeze(-2), mean), mean


def mean_gap(
    H: Float64[Tensor, "*L n_H d"], S: Float64[Tensor, "*L n_S d"]
) -> tuple[Float64[Tensor, "*L d"], Float64[Tensor, "*L"]]:
    """mu_S - mu_H, exactly zero in coordinates where the means agree, and the norm rounding can give it."""
    mean_H, mean_S = H.mean(-2), S.mean(-2)
    n, gap = H.shape[-2] + S.shape[-2], mean_S - mean_H
    rounding = centring_rounding(torch.maximum(mean_H.abs(), mean_S.abs()), n)
    return torch.where(gap.abs() > rounding, gap, 0.0), rounding.norm(dim=-1)


def all_equal(H: Float64[Tensor, "*L n_H d"], S: Float64[Tensor, "*L n_S d"]) -> Tensor:
    """Whether all samples of both classes are one point up to rounding, for each layer."""
    high, low = torch.maximum(H.amax(-2), S.amax(-2)), torch.minimum(H.amin(-2), S.amin(-2))
    size = torch.maximum(high.abs(), low.abs())
    return (high - low <= centring_rounding(size, H.shape[-2] + S.shape[-2])).all(-1)


@dataclass(frozen=True)
class Pooled:
    """Both classes about their pooled mean, source first; Z is zero in coordinates that all samples share."""

    Z: Float64[Tensor, "*L N d"]
    mean: Float64[Tensor, "*L d"]

    @classmethod
    def of(cls, H: Float64[Tensor, "*L n_H d"], S: Float64[Tensor, "*L n_S d"]) -> "Pooled":
        """Centre without a copy of the concatenated samples."""
        n_H, n_S = H.shape[-2], S.shape[-2]
        mean = (H.sum(-2) + S.sum(-2)) / (n_H + n_S)
        Z = H.new_empty(*H.shape[:-2], n_H + n_S, H.shape[-1])
        torch.sub(H, mean.unsqueeze(-2), out=Z[..., :n_H, :])
        torch.sub(S, mean.unsqueeze(-2), out=Z[..., n_H:, :])
        return cls(_without_rounding(Z, mean), mean)

    def gram(self) -> Float64[Tensor, "*L N N"]:
        """Inner products of the centred samples."""
        return self.Z @ self.Z.mT

    @property
    def magnitude(self) -> Float64[Tensor, "*L"]:
        """Bound on the norm of an uncentred sample."""
        return self.mean.norm(dim=-1) + self.Z.norm(dim=-1).amax(-1)

    @property
    def rounding(self) -> Float64[Tensor, "*L"]:
        """Norm that rounding can give to a combination of samples that should be zero."""
        return centring_rounding(self.magnitude, self.Z.shape[-2])

    @property
    def gram_rounding(self) -> Float64[Tensor, "*L"]:
        """Variance that rounding can give to equal samples when their Gram matrix is centred."""
        largest = self.Z.square().sum(-1).amax(-1)
        return centring_rounding(largest, self.Z.shape[-2]) + self.rounding.square()


def unit_vectors(vectors: Float64[Tensor, "*L d"], rounding: Tensor | float) -> Float64[Tensor, "*L d"]:
    """Vectors divided by their norms; NaN for those no longer than `rounding`."""
    norms = vectors.norm(dim=-1, keepdim=True)
    return vectors / norms.masked_fill(norms <= rounding, torch.nan)
