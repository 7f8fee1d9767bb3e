"""What a plan asks of the model, in pieces, so that whoever computes them can keep and share them."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Compute(Protocol):
    """Computes pieces on the model: here, or on an executor, or not again where a result was kept."""

    def __call__(
        self, function: Callable[..., T], pieces: Mapping[str, Any], *arguments: Any
    ) -> dict[str, T]:
        """function(model, *arguments, piece) of every piece, by the names of the pieces.

        A name is given to one piece of a study, and another study's result never stands under it.
        """
        ...


def here(model: Any) -> Compute:
    """Computes one piece after the other in this process and keeps nothing."""

    def compute(function: Callable[..., T], pieces: Mapping[str, Any], *arguments: Any) -> dict[str, T]:
        return {name: function(model, *arguments, piece) for name, piece in pieces.items()}

    return compute
