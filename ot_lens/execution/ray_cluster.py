"""The executor of a Ray cluster: workers that each hold the model, work handed out as they come free."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from ot_lens.errors import ExecutorError, OtLensError
from ot_lens.execution.ray_address import connect
from ot_lens.execution.ray_worker import Worker

# How often a worker that was killed is started anew, and the work it had repeated.
RESTARTS = 3
# Seconds within which the first worker must run; it need not have loaded the model by then.
STARTS_WITHIN = 120.0

T = TypeVar("T")


class RayExecutor:
    """See `Executor`. Results are handed to this process alone, which writes them."""

    name = "ray"

    def __init__(
        self,
        model: Mapping[str, Any],
        *,
        address: str | None = None,
        parameter_bytes: int = 0,
        modules: Sequence[str] = (),
    ) -> None:
        """Connect and start a worker for every place that the cluster has for one.

        A worker takes one GPU where the cluster has any and the model's device leaves it open, else as many
        CPUs as torch has threads in this process; and memory for the model's parameters.

        Args:
            model: Arguments of `ot_lens.load_model`.
            address: Of the cluster; see `open_executor`.
            parameter_bytes: Bytes of the model's parameters.
            modules: Modules that every worker imports before it loads the model.

        Raises:
            ExecutorError: If Ray is not installed, the cluster does not answer, or has no place for a worker.
        """
        self._ray, self._ours = connect(address)
        self._workers: list[Any] = []
        try:
            self._workers = self._start(model, parameter_bytes, modules)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RayExecutor":
        """Enter."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers, and the cluster if it was started here."""
        self.close()

    def close(self) -> None:
        """Stop the workers, disconnect, and stop the cluster if it was started here."""
        if self._ours:
            # The workers end with the connection: a kill would have Ray report the work it interrupts.
            self._ray.shutdown()
        else:
            for worker in self._workers:
                self._ray.kill(worker)
        self._workers = []

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """See `Executor.call`: on whichever worker is ready first."""
        loads = [worker.load.remote() for worker in self._workers]
        first = self._ray.wait(loads, num_returns=1)[0][0]
        self._get(first)
        worker = self._workers[loads.index(first)]
        result: T = self._result(worker.call.remote(function, arguments, options))
        return result

    def stream(
        self, function: Callable[..., Iterator[T]], pieces: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """See `Executor.stream`: one piece a task, handed out in order to workers as they come free."""
        # In a list the reference is handed on as it is, and a worker fetches what it stands for once.
        shared = [self._ray.put(arguments)]
        waiting = list(reversed(pieces))
        # A worker that the cluster has no room for yet joins when it has loaded the model.
        loading = {worker.load.remote(): worker for worker in self._workers} if waiting else {}
        tasks: dict[Any, Any] = {}
        while waiting or tasks:
            done = self._ray.wait([*tasks, *loading], num_returns=1)[0][0]
            results: list[T] = []
            if done in tasks:
                worker = tasks.pop(done)
                results = self._result(done)
            else:
                worker = loading.pop(done)
                self._get(done)
            if waiting:
                tasks[worker.collect.remote(function, waiting.pop(), shared)] = worker
            yield from results

    def _start(self, model: Mapping[str, Any], parameter_bytes: int, modules: Sequence[str]) -> list[Any]:
        import torch

        threads = torch.get_num_threads()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = _needs(nodes, str(model.get("device") or ""), threads, parameter_bytes)
        places = sum(_places(node, needs) for node in nodes)
        if places == 0:
            raise ExecutorError(
                f"no node of the Ray cluster has {_told(needs)}: add one, or use a smaller model."
            )
        actor = self._ray.remote(Worker).options(
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            memory=needs["memory"],
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        workers = [actor.remote(model, threads, modules) for _ in range(places)]
        up = self._ray.wait([w.ready.remote() for w in workers], num_returns=1, timeout=STARTS_WITHIN)[0]
        if not up:
            for worker in workers:
                self._ray.kill(worker)
            raise ExecutorError(
                f"no worker could be started within {STARTS_WITHIN:.0f} s ({_told(needs)} each): "
                "other work holds the Ray cluster; wait for it to end."
            )
        self._get(up[0])
        return workers

    def _result(self, reference: Any) -> Any:
        result, said = self._get(reference)
        for category, message in said:
            warnings.warn(message, category, stacklevel=4)
        return result

    def _get(self, reference: Any) -> Any:
        """The value of a task; an error of ours is raised as it was, without the worker's traceback."""
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return self._ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, OtLensError):
                raise error.cause from None
            raise
        except RayActorError as error:
            reason = str(error).strip().splitlines()[0]
            raise ExecutorError(
                f"a worker keeps dying ({reason}): see that a node has memory for the model; all measured "
                "is kept, go on with --resume."
            ) from error


def _needs(
    nodes: Sequence[Mapping[str, float]], device: str, threads: int, parameter_bytes: int
) -> dict[str, float]:
    """What one worker takes, in Ray's units."""
    on_gpu = device.startswith("cuda") or (not device and any(node.get("GPU", 0) >= 1 for node in nodes))
    cpus = min(threads, max((int(node.get("CPU", 0)) for node in nodes), default=0))
    return {
        "CPU": 1.0 if on_gpu else max(1.0, float(cpus)),
        "GPU": 1.0 if on_gpu else 0.0,
        "memory": float(parameter_bytes),
    }


def _places(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many workers a node has room for."""
    return int(min(node.get(name, 0) // need for name, need in needs.items() if need))


def _told(needs: Mapping[str, float]) -> str:
    gpu = " and a GPU" if needs["GPU"] else ""
    return f"{needs['CPU']:g} free CPUs{gpu} and {needs['memory'] / 2**30:.3g} GiB of memory"
