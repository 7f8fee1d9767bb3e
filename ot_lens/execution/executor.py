"""What every executor offers: a function of the model called once, or over pieces of work in any order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

from ot_lens.errors import ExecutorError, one_of

NAMES = ("local", "ray")

T = TypeVar("T")


@runtime_checkable
class Executor(Protocol):
    """Runs functions whose first argument is the model; what they return does not depend on the executor.

    Attributes:
        name: One of NAMES.
        in_process: Whether arguments are handed on as they are. Elsewhere they are copied to other machines,
            so nothing in them may stand for a file of this one.
    """

    name: str
    in_process: bool

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """function(model, *arguments, **options), once."""
        ...

    def stream(
        self, function: Callable[..., Iterator[T]], pieces: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """All that function(model, *arguments, some pieces) yields, over all pieces, in any order.

        What the function yields for a piece must not depend on the pieces that it is given beside it.
        """
        ...


@contextmanager
def open_executor(
    name: str,
    model: Mapping[str, Any],
    *,
    address: str | None = None,
    parameter_bytes: int = 0,
) -> Iterator[Executor]:
    """An executor for the length of a `with` block.

    Args:
        name: "local" or "ray".
        model: Arguments of `ot_lens.load_model`; every worker loads the model once.
        address: Of a Ray cluster: "ray://HOST:10001", "HOST:6379" or "auto". Default: the environment
            variable RAY_ADDRESS, else a cluster of this machine alone, started here and stopped at the end.
        parameter_bytes: Memory that a worker needs at least, as stated to Ray.

    Raises:
        ExecutorError: If the executor is unknown, not installed or not reachable, or no node has what a
            worker needs.
        ModelError: If the model cannot be loaded.
    """
    from ot_lens.execution.local import LocalExecutor
    from ot_lens.execution.ray_cluster import RayExecutor

    one_of("executor", name, NAMES, ExecutorError)
    if name == "local":
        if address is not None:
            raise ExecutorError(
                f"address {address!r} is of a Ray cluster: add --executor ray, or leave it out."
            )
        yield LocalExecutor(model)
        return
    with RayExecutor(model, address=address, parameter_bytes=parameter_bytes) as executor:
        yield executor
