"""The executor of one process: it loads the model and does everything itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class LocalExecutor:
    """See `Executor`."""

    name = "local"
    in_process = True

    def __init__(self, model: Mapping[str, Any]) -> None:
        """Load the model.

        Args:
            model: Arguments of `ot_lens.load_model`.

        Raises:
            ModelError: If it cannot be loaded.
        """
        from ot_lens.models import load_model

        self._model = load_model(**model)

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """See `Executor.call`."""
        return function(self._model, *arguments, **options)

    def stream(
        self, function: Callable[..., Iterator[T]], pieces: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """See `Executor.stream`: one piece after the other, so that a stop repeats no more than one."""
        for piece in pieces:
            yield from function(self._model, *arguments, [piece])
