"""What every map of activations can do, and reading one from disk whatever its kind."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ot_lens.errors import ActivationError, FitError, RunFolderError
from ot_lens.io.untrusted import quoted
from ot_lens.samples import Edit
from ot_lens.transport import storage
from ot_lens.transport.info import FitInfo

T = TypeVar("T")
M = TypeVar("M", bound="ActivationMap")
KINDS: dict[str, "type[ActivationMap]"] = {}


class ActivationMap(Edit):
    """A frozen map of activations that can be scaled, moved between devices, saved and loaded."""

    # Shape of each stored tensor by name, such as {"U": "d k"}; d is the width.
    SHAPES: ClassVar[Mapping[str, str]]
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    info: FitInfo

    def __init_subclass__(cls, *, stored: bool = True, **kwargs: Any) -> None:
        """List a kind that is stored, so that `load_map` finds it."""
        super().__init_subclass__(**kwargs)
        if stored:
            KINDS[cls.__name__] = cls

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of the activations."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.tensors().values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, not of what `map` returns."""
        return next(iter(self.tensors().values())).dtype

    @property
    def is_identity(self) -> bool:
        """Whether T(x) = x exactly, for every x."""
        return False

    @abstractmethod
    def at(self, strength: float) -> "ActivationMap":
        """T_t(x) = x + t (T(x) - x).

        Raises:
            FitError: If t is outside [0, 1].
        """

    @abstractmethod
    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | None = None) -> "ActivationMap":
        """The map with its parameters on a device and in a floating dtype; either or both, in any order."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""

    def settings(self) -> dict[str, Any]:
        """Parameters that are not tensors, JSON-ready."""
        return {}

    @classmethod
    @abstractmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], info: FitInfo) -> "ActivationMap":
        """The map of stored parameters; the inverse of `tensors` and `settings`."""

    @classmethod
    def shapes(cls, settings: Mapping[str, Any]) -> tuple[Mapping[str, str], frozenset[str]]:  # noqa: ARG003
        """Shapes of the stored tensors by name, and which of them may be missing."""
        return cls.SHAPES, cls.OPTIONAL

    def labelled(self: M, **fields: Any) -> M:
        """The same map with fields of `info` replaced, e.g. `labelled(layer=4, position=-1)`."""
        # Every kind is a dataclass with a field `info`.
        return dataclasses.replace(self, info=dataclasses.replace(self.info, **fields))  # type: ignore[type-var]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically, with `info` as its metadata."""
        kind = type(self).__name__
        storage.write_tensors(Path(path), self.tensors(), kind, self.info, self.settings())

    @classmethod
    def load(cls: type[M], path: str | Path) -> M:
        """Read a map that `save` wrote, onto the CPU.

        Raises:
            RunFolderError: If the file does not exist, is incomplete or is not a map of this kind.
        """
        return _loaded(path, cls)

    def _check_input(self, x: Tensor) -> None:
        if not x.dtype.is_floating_point:
            raise ActivationError(f"Activations have dtype {x.dtype}: a map needs real floating point.")
        if x.ndim == 0 or x.shape[-1] != self.d_model:
            raise ActivationError(
                f"Activations have shape {list(x.shape)}: this map is of width d = {self.d_model}."
            )
        if x.device != self.device:
            raise ActivationError(
                f"Activations are on {x.device}, the map on {self.device}: call .to({str(x.device)!r})."
            )


def load_map(path: str | Path) -> ActivationMap:
    """Read a map of any kind that `save` wrote, onto the CPU.

    Raises:
        RunFolderError: If the file does not exist, is incomplete or is not a map.
    """
    return _loaded(path, ActivationMap)  # type: ignore[type-abstract]


def _loaded(path: str | Path, wanted: type[M]) -> M:
    stored = storage.read_map(Path(path))
    kind = KINDS.get(stored.kind)
    if kind is None or not issubclass(kind, wanted):
        raise RunFolderError(f"{path} is not a stored {wanted.__name__} but {quoted(stored.kind)}.")
    stored.check(*kind.shapes(stored.settings))
    return cast("M", kind.of(stored.tensors, stored.settings, stored.info))


def described(part: Any) -> dict[str, Any]:
    """Kind and settings of a part of a map, for the settings of the whole."""
    return {"kind": type(part).__name__, "settings": part.settings()}


def kind_of(part: Any, kinds: Mapping[str, type[T]]) -> tuple[type[T], dict[str, Any]]:
    """The class of a part that `described` has described, and its settings.

    Raises:
        RunFolderError: If it is not one of the kinds.
    """
    kind, settings = (
        (part.get(key) for key in ("kind", "settings")) if isinstance(part, dict) else (None, None)
    )
    if not isinstance(kind, str) or kind not in kinds or not isinstance(settings, dict):
        raise RunFolderError(f"A stored map is damaged: one of its parts is {quoted(part)}; save it again.")
    return kinds[kind], settings


def number(settings: Mapping[str, Any], name: str) -> float:
    """A finite number among a stored map's settings.

    Raises:
        RunFolderError: If it is missing or not a finite number.
    """
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RunFolderError(f"A stored map is damaged: {name} is {quoted(value)}; save it again.")
    return float(value)


def check_width(edit: ActivationMap, samples: Float[Tensor, "n d"]) -> None:
    """Raise FitError unless samples have the width of a map."""
    if samples.shape[1] != edit.d_model:
        raise FitError(f"The samples have width {samples.shape[1]}, the map {edit.d_model}.")


def check_strength(strength: float) -> None:
    """Raise FitError unless a strength is in [0, 1]."""
    if not 0.0 <= strength <= 1.0:
        raise FitError(f"strength = {strength} is outside [0, 1]: 0 is the identity, 1 the whole map.")


def moved_to(tensor: Tensor, *args: Any, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
    """A parameter on a device and in a floating dtype, given in any order.

    Raises:
        FitError: If the dtype is not floating point.
    """
    for argument in args:
        if isinstance(argument, torch.dtype):
            dtype = argument
        elif argument is not None:
            device = argument
    if dtype is not None and not dtype.is_floating_point:
        raise FitError(f"A map cannot be kept in {dtype}: use a floating dtype.")
    return tensor.to(device=device, dtype=dtype)


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a map of x is computed: float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def cast_back(moved: Float[Tensor, "rows d"], x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """The image in the shape and dtype of x.

    Raises:
        ActivationError: If a finite activation's image overflows its half precision.
    """
    result = moved.to(x.dtype).reshape(x.shape)
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    if narrow and bool(torch.isinf(result).any()) and bool(torch.isfinite(x).all()):
        peak = float(moved.abs().max())
        raise ActivationError(
            f"The map's image overflows {x.dtype} (largest value {peak:.3g}): run the model in bfloat16 or "
            "float32, or lower the strength."
        )
    return result
