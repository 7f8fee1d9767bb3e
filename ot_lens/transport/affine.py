"""The type of every affine edit: T(x) = scale * x + bias + U (V^T x), with U and V of size d x k."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.transport.algebra import compressed, woodbury_inverse
from ot_lens.transport.info import FitInfo, map_table
from ot_lens.transport.maps import ActivationMap, cast_back, check_strength, moved_to, working_dtype


@dataclass(frozen=True, eq=False, repr=False)
class AffineMap(ActivationMap):
    """A frozen affine map of activations, kept as a diagonal plus a rank-k change; never a d x d matrix.

    Attributes:
        U: `[d, k]`; k = 0 for a shift.
        V: `[d, k]`.
        bias: `[d]`.
        scale: `[d]`, or None for all ones.
        info: where the map came from.
    """

    U: Float[Tensor, "d k"]
    V: Float[Tensor, "d k"]
    bias: Float[Tensor, " d"]
    scale: Float[Tensor, " d"] | None = None
    info: FitInfo = dataclasses.field(default_factory=FitInfo)

    SHAPES: ClassVar[Mapping[str, str]] = {"U": "d k", "V": "d k", "bias": "d", "scale": "d"}
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"scale"})

    @classmethod
    def identity(
        cls, d_model: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> "AffineMap":
        """The identity, exact to the last bit."""
        none = torch.zeros(d_model, 0, dtype=dtype, device=device)
        return cls(
            none, none, torch.zeros(d_model, dtype=dtype, device=device), info=FitInfo(method="identity", k=0)
        )

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.bias.shape[0]

    @property
    def rank(self) -> int:
        """Columns of U and V."""
        return self.U.shape[1]

    @functools.cached_property
    def is_identity(self) -> bool:
        """Whether T(x) = x exactly."""
        return self.rank == 0 and self.scale is None and not bool(self.bias.any())

    @functools.cached_property
    def _working(self) -> "dict[tuple[torch.dtype, bool], tuple[Tensor, Tensor, Tensor | None]]":
        return {}

    def _parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """V, the transpose of [U, bias], and the scale, in the working dtype; made once per dtype."""
        # What is made in inference mode cannot serve a call with gradients.
        key = dtype, torch.is_inference_mode_enabled()
        if key not in self._working:
            extended = torch.cat([self.U, self.bias.unsqueeze(1)], dim=1).T.contiguous()
            scale = None if self.scale is None else self.scale.to(dtype)
            self._working[key] = self.V.to(dtype), extended.to(dtype), scale
        return self._working[key]

    def map(self, x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """T(x) for activations `[..., d]`, in their dtype.

        float64 is computed in float64, everything else in float32 and cast back.

        Raises:
            ActivationError: If x has another width or device, an integer or complex dtype, or a finite
                activation whose image overflows its half precision.
        """
        self._check_input(x)
        if self.is_identity:
            return x
        working = working_dtype(x)
        V, extended, scale = self._parameters(working)
        rows = x.reshape(-1, self.d_model).to(working)
        # The bias rides along as one more column of U against a constant 1, which saves a pass over x.
        coefficients = torch.nn.functional.pad(rows @ V, (0, 1), value=1.0)
        moved = torch.addmm(rows if scale is None else rows * scale, coefficients, extended)
        return cast_back(moved, x)

    def at(self, strength: float) -> "AffineMap":
        """T_t(x) = x + t (T(x) - x): the point t of the McCann geodesic when T is an optimal map.

        Raises:
            FitError: If t is outside [0, 1].
        """
        check_strength(strength)
        info = dataclasses.replace(self.info, strength=self.info.strength * strength)
        if strength == 0.0:
            return dataclasses.replace(
                AffineMap.identity(self.d_model, dtype=self.dtype, device=self.device), info=info
            )
        scale = None if self.scale is None else 1 + strength * (self.scale - 1)
        return AffineMap(strength * self.U, self.V, strength * self.bias, scale, info)

    def compose(self, other: "AffineMap") -> "AffineMap":
        """Self after other: `self.compose(other).map(x)` equals `self.map(other.map(x))`.

        Raises:
            FitError: If the maps have different widths.
        """
        if self.d_model != other.d_model:
            raise FitError(f"Cannot compose maps of widths {self.d_model} and {other.d_model}.")
        first, second = other.to(self.device, torch.float64), self.to(torch.float64)
        stretch = torch.ones_like(second.bias) if second.scale is None else second.scale
        U = torch.cat([stretch.unsqueeze(1) * first.U, second.U], dim=1)
        pulled = first.V @ (first.U.T @ second.V)
        pulled += second.V if first.scale is None else first.scale.unsqueeze(1) * second.V
        U, V = compressed(U, torch.cat([first.V, pulled], dim=1))
        bias = stretch * first.bias + second.bias + second.U @ (second.V.T @ first.bias)
        scale = stretch if first.scale is None else stretch * first.scale
        plain = first.scale is None and second.scale is None
        return AffineMap(U, V, bias, None if plain else scale, _joined(self.info, other.info))

    def inverse(self) -> "AffineMap":
        """The map that undoes this one, by the Woodbury identity.

        Raises:
            NotInvertibleError: If the map is a projection or otherwise loses a direction.
        """
        double = self.to(torch.float64)
        name = self.info.method or "this map"
        U, V, scale = woodbury_inverse(double.U, double.V, double.scale, name)
        linear = AffineMap(U, V, torch.zeros_like(double.bias), scale)
        info = dataclasses.replace(self.info, notes=(*self.info.notes, f"inverse of {name}"))
        return AffineMap(U, V, -linear.map(double.bias), scale, info)

    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | None = None) -> "AffineMap":
        """The map with its parameters on a device and in a floating dtype; either or both, in any order.

        Raises:
            FitError: If the dtype is not floating point.
        """
        moved = {
            name: moved_to(part, *args, device=device, dtype=dtype) for name, part in self.tensors().items()
        }
        return AffineMap(**moved, info=self.info)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        named = {"U": self.U, "V": self.V, "bias": self.bias, "scale": self.scale}
        return {name: part for name, part in named.items() if part is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], info: FitInfo) -> "AffineMap":  # noqa: ARG003
        """The map of stored parameters."""
        return cls(tensors["U"], tensors["V"], tensors["bias"], tensors.get("scale"), info)

    def __repr__(self) -> str:
        where = "" if self.info.layer is None else f", layer {self.info.layer}"
        samples = (
            "" if self.info.n_harmful is None else f", n = {self.info.n_harmful} + {self.info.n_harmless}"
        )
        strength = "" if self.info.strength == 1.0 else f", strength {self.info.strength:g}"
        diagonal = "" if self.scale is None else ", diagonal"
        size = f"d = {self.d_model}, rank {self.rank}{diagonal}"
        return f"AffineMap({self.info.method or 'unnamed'}{where}, {size}{samples}{strength}, {self.dtype})"

    def _repr_html_(self) -> str:
        diagonal = ", and a diagonal" if self.scale is not None else ""
        size = {"d_model": str(self.d_model), "rank": f"{self.rank}{diagonal}"}
        return map_table(self.info, size | {"dtype": str(self.dtype).removeprefix("torch.")})


def _joined(after: FitInfo, before: FitInfo) -> FitInfo:
    names = f"{after.method or 'map'} after {before.method or 'map'}"
    return FitInfo(method=names, layer=after.layer, position=after.position, hook=after.hook)
