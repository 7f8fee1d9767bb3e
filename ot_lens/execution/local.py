"""The executor that does everything in this process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class LocalExecutor:
    """See `Executor`."""

    name = "local"

    def __init__(self, model: Any) -> None:
        self._model = model

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """See `Executor.call`."""
        return function(self._model, *arguments, **options)

    def stream(
        self, function: Callable[..., Iterator[T]], tasks: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """See `Executor.stream`: one task after the other, so that a stop repeats at most one."""
        for task in tasks:
            yield from function(self._model, *arguments, [task])
