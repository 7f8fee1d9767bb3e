"""Executors call functions of the model, once or for many tasks in any order, here or on a Ray cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

from ot_lens.errors import ExecutorError, one_of

NAMES = ("local", "ray")

T = TypeVar("T")


@runtime_checkable
class Executor(Protocol):
    """Calls functions whose first argument is the model; results do not depend on the executor."""

    name: str

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """function(model, *arguments, **options), once."""
        ...

    def stream(
        self, function: Callable[..., Iterator[T]], tasks: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """All that function(model, *arguments, some tasks) yields, over all tasks, in any order.

        What the function yields for a task must not depend on the other tasks of the call.
        """
        ...


class LocalExecutor:
    """Everything in this process, one task after the other, so that a stop repeats at most one."""

    name = "local"

    def __init__(self, model: Any) -> None:
        self._model = model

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """See `Executor.call`."""
        return function(self._model, *arguments, **options)

    def stream(
        self, function: Callable[..., Iterator[T]], tasks: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """See `Executor.stream`."""
        for task in tasks:
            yield from function(self._model, *arguments, [task])


@contextmanager
def open_executor(
    name: str,
    model: Mapping[str, Any],
    *,
    address: str | None = None,
    parameter_bytes: int = 0,
    modules: Sequence[str] = (),
) -> Iterator[Executor]:
    """Load the model here or on a Ray cluster, for the length of a `with` block.

    `model` has the arguments of `ot_lens.load_model`. Every worker of a cluster reserves `parameter_bytes` of
    memory, imports `modules` with the user's own code, and loads the model once. The address is
    "ray://HOST:10001", "HOST:6379" or "auto"; by default that of the environment variable RAY_ADDRESS, else
    a cluster on this machine alone, which ends with the block.
    """
    from ot_lens.execution.ray_cluster import RayExecutor
    from ot_lens.models import load_model

    one_of("executor", name, NAMES, ExecutorError)
    if name == "local":
        if address is not None:
            raise ExecutorError(f"The address {address!r} needs the executor ray: add --executor ray.")
        yield LocalExecutor(load_model(**model))
        return
    with RayExecutor(model, address=address, parameter_bytes=parameter_bytes, modules=modules) as executor:
        yield executor


@contextmanager
def shared_cluster(name: str, address: str | None = None, *, count: int = 2) -> Iterator[str | None]:
    """Keep one Ray cluster for all executors that are opened in a `with` block; yields their address.

    Without the executor "ray", or for a `count` of one, nothing is connected and the address stays as it is.
    """
    from ot_lens.execution.ray_address import connect

    if name != "ray" or count < 2:
        yield address
        return
    ray, ours = connect(address)
    try:
        yield None
    finally:
        if ours:
            ray.shutdown()
