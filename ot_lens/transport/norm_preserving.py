"""A map that turns activations without changing their norm: ||x|| T(x) / ||T(x)||."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ot_lens.transport.info import FitInfo
from ot_lens.transport.maps import KINDS, ActivationMap, cast_back, described, kind_of, working_dtype


@dataclass(frozen=True, eq=False)
class NormPreservingMap(ActivationMap):
    """||x|| T(x) / ||T(x)||, and x where T(x) = 0.

    Attributes:
        inner: T.
    """

    inner: ActivationMap

    @property
    def info(self) -> FitInfo:  # type: ignore[override]  # a field in other kinds
        """Where the map came from."""
        return self.inner.info

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.inner.d_model

    @property
    def is_identity(self) -> bool:
        """Whether T(x) = x exactly."""
        return self.inner.is_identity

    def map(self, x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The turned activations, in their dtype.

        Raises:
            ActivationError: see `AffineMap.map`.
        """
        self._check_input(x)
        if self.is_identity:
            return x
        rows = x.reshape(-1, self.d_model).to(working_dtype(x))
        moved = self.inner.map(rows)
        before, after = (part.norm(dim=1, keepdim=True) for part in (rows, moved))
        turned = torch.where(
            after > 0, moved * (before / after.clamp_min(torch.finfo(rows.dtype).tiny)), rows
        )
        return cast_back(turned, x)

    def at(self, strength: float) -> "NormPreservingMap":
        """The norm-preserving form of T_t(x) = x + t (T(x) - x).

        Raises:
            FitError: If t is outside [0, 1].
        """
        return NormPreservingMap(self.inner.at(strength))

    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | None = None) -> "NormPreservingMap":
        """The map on a device or in a dtype (see `AffineMap.to`)."""
        return NormPreservingMap(self.inner.to(*args, device=device, dtype=dtype))

    def labelled(self, **fields: Any) -> "NormPreservingMap":
        """The same map with fields of `info` replaced."""
        return replace(self, inner=self.inner.labelled(**fields))

    def tensors(self) -> dict[str, Tensor]:
        """The parameters of T by name."""
        return self.inner.tensors()

    def settings(self) -> dict[str, Any]:
        """Kind and settings of T."""
        return {"inner": described(self.inner)}

    @classmethod
    def shapes(cls, settings: Mapping[str, Any]) -> tuple[Mapping[str, str], frozenset[str]]:
        """Shapes of T's stored tensors."""
        kind, inside = kind_of(settings.get("inner"), KINDS)
        return kind.shapes(inside)

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], info: FitInfo
    ) -> "NormPreservingMap":
        """The map of stored parameters."""
        kind, inside = kind_of(settings.get("inner"), KINDS)
        return cls(kind.of(tensors, inside, info))


def norm_preserving(map: ActivationMap) -> NormPreservingMap:  # noqa: A002
    """Let a map turn activations without changing their norm: ||x|| T(x) / ||T(x)||, and x where T(x) = 0.

    Args:
        map: A map of any kind.
    """
    return NormPreservingMap(map)
