"""Executors call functions of the model, once or for many tasks in any order, here or on a Ray cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

from ot_lens.errors import ExecutorError, one_of
from ot_lens.execution.local import Helping, LocalExecutor
from ot_lens.io.helpers import helpers

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


@contextmanager
def open_executor(
    name: str,
    model: Mapping[str, Any],
    *,
    processes: int = 1,
    address: str | None = None,
    parameter_bytes: int = 0,
    modules: Sequence[str] = (),
) -> Iterator[Executor]:
    """Load the model here or on a Ray cluster, for the length of a `with` block.

    `model` has the arguments of `ot_lens.load_model`. With more than one of `processes`, others on this
    machine load it too and share the tasks; they suit a CPU. Every worker of a cluster reserves
    `parameter_bytes` of memory. Workers and other processes import `modules` with the user's own code. The
    address is "ray://HOST:10001", "HOST:6379" or "auto"; by default that of the environment variable
    RAY_ADDRESS, else a cluster on this machine alone, which ends with the block.
    """
    from ot_lens.execution.ray_cluster import RayExecutor
    from ot_lens.models import load_model

    one_of("executor", name, NAMES, ExecutorError)
    if processes < 1 or (processes > 1 and name != "local"):
        raise ExecutorError(
            f"{processes} processes with the executor {name}: give at least 1, and more than 1 only to the "
            "executor local; a Ray cluster decides by itself."
        )
    if name == "local":
        if address is not None:
            raise ExecutorError(f"The address {address!r} needs the executor ray: add --executor ray.")
        import torch

        loaded = load_model(**model)
        with helpers(processes - 1, Helping, model, torch.get_num_threads(), tuple(modules)) as helping:
            yield LocalExecutor(loaded, helping)
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
