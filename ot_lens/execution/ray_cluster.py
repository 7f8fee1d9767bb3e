"""The executor on a Ray cluster: each worker holds the model and takes the next task when it is free."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ot_lens.errors import ExecutorError, OtLensError
from ot_lens.execution.ray_address import connect
from ot_lens.execution.worker import Warned, Worker, warn_again

# How often a killed worker is restarted and its task repeated.
RESTARTS = 3
# Seconds in which the first worker must start; loading the model may take longer.
START_TIMEOUT = 120.0

T = TypeVar("T")


class RayWorker(Worker):
    """A worker in a process of Ray; a restarted one loads the model again when it is first needed."""

    def __init__(self, model: Mapping[str, Any], threads: int, modules: Sequence[str] = ()) -> None:
        super().__init__(model, threads, modules)
        self._fetched: tuple[Any, tuple[Any, ...]] = (None, ())

    def ready(self) -> int:
        """The process id, once the process runs."""
        return os.getpid()

    def collect(
        self, function: Callable[..., Iterator[Any]], task: Any, shared: list[Any]
    ) -> tuple[list[Any], Warned]:
        """All that function(model, *arguments, [task]) yields, and its warnings.

        `shared` holds a reference to the arguments, which are fetched once for all tasks that share them.
        """
        import ray

        (reference,) = shared
        if self._fetched[0] != reference:
            self._fetched = (reference, ray.get(reference))
        return self.listed(function, self._fetched[1], task)


class RayExecutor:
    """See `Executor`. Only this process receives results, and writes them."""

    name = "ray"

    def __init__(
        self,
        model: Mapping[str, Any],
        *,
        address: str | None = None,
        parameter_bytes: int = 0,
        modules: Sequence[str] = (),
    ) -> None:
        """Connect and start as many workers as the cluster has room for; see `open_executor`.

        A worker takes one GPU if the cluster has any and the model's device allows it, else as many CPUs as
        torch has threads in this process; and memory for the model's parameters.
        """
        self._ray, self._ours = connect(address)
        self._workers: list[Any] = []
        try:
            self._workers = self._start(model, parameter_bytes, modules)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, disconnect, and stop the cluster if it was started here."""
        if self._ours:
            # Workers end with the connection; if they were killed, Ray would report the interrupted tasks.
            self._ray.shutdown()
        else:
            for worker in self._workers:
                self._ray.kill(worker)
        self._workers = []

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """See `Executor.call`: on the first worker that is ready."""
        loads = [worker.load.remote() for worker in self._workers]
        first = self._ray.wait(loads, num_returns=1)[0][0]
        self._get(first)
        worker = self._workers[loads.index(first)]
        return self._result(worker.call.remote(function, arguments, options))

    def stream(
        self, function: Callable[..., Iterator[T]], tasks: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """See `Executor.stream`: tasks are handed out in order, one at a time, to free workers."""
        # Inside a list Ray passes the reference itself, so that each worker fetches the arguments once.
        shared = [self._ray.put(arguments)]
        waiting = list(reversed(tasks))
        # A worker joins when it has loaded the model, or when the cluster has room for it.
        loading = {worker.load.remote(): worker for worker in self._workers} if waiting else {}
        running: dict[Any, Any] = {}
        while waiting or running:
            done = self._ray.wait([*running, *loading], num_returns=1)[0][0]
            results: list[T] = []
            if done in running:
                worker = running.pop(done)
                results = self._result(done)
            else:
                worker = loading.pop(done)
                self._get(done)
            if waiting:
                running[worker.collect.remote(function, waiting.pop(), shared)] = worker
            yield from results

    def _start(self, model: Mapping[str, Any], parameter_bytes: int, modules: Sequence[str]) -> list[Any]:
        import torch

        threads = torch.get_num_threads()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = _needs(nodes, str(model.get("device") or ""), threads, parameter_bytes)
        count = sum(
            int(min(node.get(name, 0) // need for name, need in needs.items() if need)) for node in nodes
        )
        if count == 0:
            raise ExecutorError(
                f"No node of the Ray cluster has {_described(needs)}: add one, or use a smaller model."
            )
        room = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "memory": needs["memory"]}
        actor = self._ray.remote(RayWorker).options(**room, max_restarts=RESTARTS, max_task_retries=RESTARTS)
        workers = [actor.remote(model, threads, modules) for _ in range(count)]
        ready = self._ray.wait([w.ready.remote() for w in workers], num_returns=1, timeout=START_TIMEOUT)[0]
        if not ready:
            for worker in workers:
                self._ray.kill(worker)
            raise ExecutorError(
                f"No worker started within {START_TIMEOUT:.0f} s ({_described(needs)} each): other work "
                "occupies the Ray cluster; wait for it to end."
            )
        self._get(ready[0])
        return workers

    def _result(self, reference: Any) -> Any:
        result, warned = self._get(reference)
        warn_again(warned)
        return result

    def _get(self, reference: Any) -> Any:
        """The value of a reference; errors of this package are raised without the worker's traceback."""
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
                f"A worker keeps dying ({reason}): check that a node has memory for the model. All "
                "measurements are kept; continue with --resume."
            ) from error


def _needs(
    nodes: Sequence[Mapping[str, float]], device: str, threads: int, parameter_bytes: int
) -> dict[str, float]:
    """Resources of one worker, in Ray's units."""
    on_gpu = device.startswith("cuda") or (not device and any(node.get("GPU", 0) >= 1 for node in nodes))
    cpus = min(threads, max((int(node.get("CPU", 0)) for node in nodes), default=0))
    return {
        "CPU": 1.0 if on_gpu else max(1.0, float(cpus)),
        "GPU": 1.0 if on_gpu else 0.0,
        "memory": float(parameter_bytes),
    }


def _described(needs: Mapping[str, float]) -> str:
    gpu = " and a GPU" if needs["GPU"] else ""
    return f"{needs['CPU']:g} free CPUs{gpu} and {needs['memory'] / 2**30:.3g} GiB of memory"
