"""Maps whose images are target samples, or weighted means of them."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, TypeVar

from jaxtyping import Float, Shaped
from torch import Tensor

from ot_lens.transport.maps import ActivationMap, cast_back, check_strength, moved_to

M = TypeVar("M", bound="MapToSamples")


class MapToSamples(ActivationMap, stored=False):
    """T_t(x) = x + t (T(x) - x), with T(x) a weighted mean of the target samples."""

    targets: Float[Tensor, "n_S d"]
    strength: float

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.targets.shape[1]

    @abstractmethod
    def _image(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """T(x) of rows in the dtype of the targets."""

    def map(self, x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The moved activations, in their dtype; computed in that of the targets.

        Raises:
            ActivationError: see `AffineMap.map`.
        """
        self._check_input(x)
        rows = x.reshape(-1, self.d_model).to(self.targets.dtype)
        return cast_back(rows + self.strength * (self._image(rows) - rows), x)

    def at(self: M, strength: float) -> M:
        """T_t(x) = x + t (T(x) - x).

        Raises:
            FitError: t outside [0, 1].
        """
        check_strength(strength)
        info = replace(self.info, strength=self.info.strength * strength)
        # Every kind is a dataclass.
        return replace(self, strength=strength * self.strength, info=info)  # type: ignore[type-var]

    def to(self: M, *args: Any, **kwargs: Any) -> M:
        """The same on a device or in a dtype."""
        parts = {name: moved_to(part, *args, **kwargs) for name, part in self.tensors().items()}
        return replace(self, **parts)  # type: ignore[type-var]

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {name: getattr(self, name) for name in self.SHAPES}

    def settings(self) -> dict[str, Any]:
        """Strength."""
        return {"strength": self.strength}
