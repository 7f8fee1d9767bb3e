"""A map that acts only within the range of the source: Linear-AcT's optional mask, which is not affine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import check_samples
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.info import FitInfo
from ot_lens.transport.maps import ActivationMap, check_width


@dataclass(frozen=True, eq=False)
class SupportMask(ActivationMap):
    """Coordinate by coordinate: T(x) where low <= x <= high, x elsewhere (arXiv 2410.23054, section 3).

    Attributes:
        affine: a diagonal map.
        low: `[d]`.
        high: `[d]`.
    """

    affine: AffineMap
    low: Float[Tensor, " d"]
    high: Float[Tensor, " d"]

    SHAPES: ClassVar[Mapping[str, str]] = {**AffineMap.SHAPES, "low": "d", "high": "d"}
    OPTIONAL: ClassVar[frozenset[str]] = AffineMap.OPTIONAL

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.affine.d_model

    @property
    def info(self) -> FitInfo:  # type: ignore[override]  # a field in other kinds
        """Where the map came from."""
        return self.affine.info

    def map(self, x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The moved activations, in their dtype.

        Raises:
            ActivationError: see `AffineMap.map`.
        """
        moved = self.affine.map(x)
        inside = (x >= self.low.to(x.dtype)) & (x <= self.high.to(x.dtype))
        return torch.where(inside, moved, x)

    def at(self, strength: float) -> "SupportMask":
        """T_t(x) = x + t (T(x) - x) within the support.

        Raises:
            FitError: t outside [0, 1].
        """
        return SupportMask(self.affine.at(strength), self.low, self.high)

    def to(self, *args: Any, **kwargs: Any) -> "SupportMask":
        """The same on a device or in a dtype (see `AffineMap.to`)."""
        affine = self.affine.to(*args, **kwargs)
        low, high = (bound.to(device=affine.device, dtype=affine.dtype) for bound in (self.low, self.high))
        return SupportMask(affine, low, high)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {**self.affine.tensors(), "low": self.low, "high": self.high}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], info: FitInfo) -> "SupportMask":
        """The mask of stored parameters."""
        return cls(AffineMap.of(tensors, settings, info), tensors["low"], tensors["high"])

    def labelled(self, **fields: Any) -> "SupportMask":
        """The same mask with fields of `info` replaced."""
        return replace(self, affine=self.affine.labelled(**fields))


def restrict_to_support(
    affine: AffineMap, H: Float64[Tensor, "n_H d"], *, quantile: float = 0.0
) -> SupportMask:
    """Let a coordinate-wise map act only between the source's quantiles.

    Args:
        affine: of `fit_linear_act` or `fit_mean_shift`.
        H: source samples `[n_H, d]`.
        quantile: share cut off on either side; 0 for the whole observed range.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: a map that mixes coordinates, another width, or a quantile outside [0, 0.5).
    """
    H = check_samples(H, "H")
    if affine.rank:
        raise FitError(
            f"A support mask is coordinate-wise, this map has rank {affine.rank}: use fit_linear_act."
        )
    check_width(affine, H)
    if not 0.0 <= quantile < 0.5:
        raise FitError(f"quantile = {quantile} is outside [0, 0.5).")
    low, high = torch.quantile(H, H.new_tensor([quantile, 1 - quantile]), dim=0)
    return SupportMask(affine, low, high)
