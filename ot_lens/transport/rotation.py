"""Rotation in a plane: angular steering, which keeps the norm of every activation."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import PooledPCA
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.maps import (
    ActivationMap,
    cast_back,
    check_strength,
    moved_to,
    number,
    working_dtype,
)
from ot_lens.transport.methods import TRANSPORT
from ot_lens.transport.projection import unit_directions


@dataclass(frozen=True, eq=False)
class RotationMap(ActivationMap):
    """T(x) = x - B B^T x + ||B^T x|| B (cos a, sin a)^T: the part in a plane, turned to an angle.

    Attributes:
        basis: B, `[d, 2]`, orthonormal.
        angle: a, in radians.
        strength: t: the part in the plane is turned by t of the way to a, the shorter way round.
        info: where the map came from.
    """

    basis: Float[Tensor, "d 2"]
    angle: float
    strength: float = 1.0
    info: FitInfo = dataclasses.field(default_factory=FitInfo)

    SHAPES: ClassVar[Mapping[str, str]] = {"basis": "d 2"}

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.basis.shape[0]

    @property
    def is_identity(self) -> bool:
        """Whether nothing is turned."""
        return self.strength == 0.0

    def map(self, x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The turned activations, in their dtype.

        Raises:
            ActivationError: see `AffineMap.map`.
        """
        self._check_input(x)
        if self.is_identity:
            return x
        rows = x.reshape(-1, self.d_model).to(working_dtype(x))
        basis = self.basis.to(rows.dtype)
        inside = rows @ basis
        angles = torch.atan2(inside[:, 1], inside[:, 0])
        turn = torch.remainder(self.angle - angles + math.pi, 2 * math.pi) - math.pi
        turned = angles + self.strength * turn
        radius = inside.norm(dim=1, keepdim=True)
        target = radius * torch.stack([turned.cos(), turned.sin()], dim=1)
        return cast_back(torch.addmm(rows, target - inside, basis.T), x)

    def at(self, strength: float) -> "RotationMap":
        """Turn by t of the way: the norm is kept for every t, which x + t (T(x) - x) would not.

        Raises:
            FitError: If t is outside [0, 1].
        """
        check_strength(strength)
        info = dataclasses.replace(self.info, strength=self.info.strength * strength)
        return dataclasses.replace(self, strength=self.strength * strength, info=info)

    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | None = None) -> "RotationMap":
        """The map on a device or in a dtype (see `AffineMap.to`)."""
        return dataclasses.replace(self, basis=moved_to(self.basis, *args, device=device, dtype=dtype))

    def tensors(self) -> dict[str, Tensor]:
        """The basis of the plane."""
        return {"basis": self.basis}

    def settings(self) -> dict[str, Any]:
        """Angle and strength."""
        return {"angle": self.angle, "strength": self.strength}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], info: FitInfo) -> "RotationMap":
        """The map of stored parameters."""
        return cls(tensors["basis"], number(settings, "angle"), number(settings, "strength"), info)


@defines_method(
    "rotation",
    "Rotation",
    TRANSPORT,
    formula="x - B Bᵀ x + ‖Bᵀ x‖ B (cos a, sin a)ᵀ",
    source="arXiv 2510.26243",
    reversible=True,
    group="Rotation",
    colour="#B5651D",
    marker="star",
    dash="dash",
    order=150,
)
def fit_rotation(
    H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"], angle: float | None = None
) -> list[RotationMap]:
    """T(x) = x - B B^T x + ||B^T x|| B (cos a, sin a)^T: angular steering (arXiv 2510.26243).

    The plane is spanned by the difference in means r^ (angle 0) and by the leading pooled component outside
    it (90 degrees); activations are not centred, so that norms are kept.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        angle: in degrees; None for that of the target's mean in the plane.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: If the class means coincide, all samples vary along one line only, or angle is not finite.
    """
    if angle is not None and not math.isfinite(angle):
        raise FitError(f"angle = {angle} must be a finite number of degrees.")
    directions, _ = unit_directions(H, S)
    pca = PooledPCA.of(H, S)
    if int(pca.rank.min()) < 2:
        raise FitError("All samples lie on one line: there is no plane to rotate in; give more prompts.")
    axes = pca.axes(2)
    outside = axes - directions.unsqueeze(2) * (directions.unsqueeze(1) @ axes)
    # Of the two leading components, the first that is not the direction itself.
    lengths = outside.norm(dim=1)
    second = torch.where(lengths[:, :1] > 1e-6, outside[:, :, 0], outside[:, :, 1])
    second = second / second.norm(dim=1, keepdim=True)
    bases = torch.stack([directions, second], dim=2)
    means = (S.mean(1).unsqueeze(1) @ bases).squeeze(1)
    fitted = torch.atan2(means[:, 1], means[:, 0]).tolist()
    angles = fitted if angle is None else [math.radians(angle)] * len(fitted)
    return [RotationMap(basis, own, info=FitInfo(k=2)) for basis, own in zip(bases, angles, strict=True)]
