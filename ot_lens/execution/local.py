"""The executor in this process, and in helpers of this machine that hold the same model."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from ot_lens.errors import HelperLostWarning
from ot_lens.execution.worker import Warned, Worker, warn_again
from ot_lens.io.helpers import Helper
from ot_lens.io.untrusted import abbreviated

# What a process takes besides the weights: the libraries, and a batch.
PROCESS_BYTES = 2**30

T = TypeVar("T")
Shared = tuple[Callable[..., Any], Sequence[Any]]  # the function of a stream, and what all of its tasks need


class LocalExecutor:
    """Everything in this process and its helpers, each of which takes the next task when it is free.

    Two processes of one thread do many small operations sooner than one process of two threads. A task that a
    helper fails at is done here, where its error is met again; a lost helper is done without.
    """

    name = "local"

    def __init__(self, model: Any, helping: Sequence[Helper] = ()) -> None:
        self._model, self._helping = model, list(helping)

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """See `Executor.call`: in this process."""
        return function(self._model, *arguments, **options)

    def stream(
        self, function: Callable[..., Iterator[T]], tasks: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """See `Executor.stream`."""
        if self._helping and len(tasks) > 1:
            yield from self._shared_out(function, tasks, arguments)
            return
        for task in tasks:
            yield from function(self._model, *arguments, [task])

    def _shared_out(
        self, function: Callable[..., Iterator[T]], tasks: Sequence[Any], arguments: Sequence[Any]
    ) -> Iterator[T]:
        waiting, returned = deque(tasks), deque[Any]()
        answers: SimpleQueue[tuple[list[T], Warned] | None] = SimpleQueue()  # None: a helper is done
        # A stream within a task of this one is done here alone.
        helping, self._helping = self._helping, []
        with ThreadPoolExecutor(len(helping)) as pool:
            busy = {
                helper: pool.submit(_help, helper, (function, arguments), waiting, returned, answers)
                for helper in helping
            }
            try:
                working = len(busy)
                while waiting or returned or working or not answers.empty():
                    task = _next(returned) or _next(waiting)
                    if task is not None:
                        yield from function(self._model, *arguments, task)
                    while not answers.empty() or (working and not waiting and not returned):
                        answer = answers.get()
                        if answer is None:
                            working -= 1
                            continue
                        warn_again(answer[1])
                        yield from answer[0]
                self._helping = list(_still_there(busy))
            except BaseException:
                for helper in helping:  # in the middle of tasks whose results nobody waits for
                    helper.end()
                raise
            finally:
                waiting.clear()


def _still_there(busy: Mapping[Helper, Future[None]]) -> Iterator[Helper]:
    """The helpers that were not lost."""
    for helper, future in busy.items():
        error = future.exception()
        if error is None:
            yield helper
            continue
        helper.end()
        warnings.warn(
            f"A process that helped is lost ({abbreviated(error)}): it was killed, perhaps for want of "
            "memory, or something of your own cannot be sent to it. The rest is done without it; nothing is "
            "lost.",
            HelperLostWarning,
            stacklevel=5,
        )


def _help(
    helper: Helper,
    shared: Shared | None,
    waiting: deque[Any],
    returned: deque[Any],
    answers: SimpleQueue[Any],
) -> None:
    """Hand tasks to a helper until there are no more; those it fails at are returned."""
    try:
        while waiting and not helper.ready(0.1):
            pass
        while (task := _next(waiting)) is not None:
            answer = None
            try:
                answer = helper.ask(shared, task[0])
            finally:
                if answer is None:
                    returned.append(task[0])
                else:
                    answers.put(answer)
            shared = None
    finally:
        answers.put(None)


def _next(tasks: deque[Any]) -> list[Any] | None:
    """The next task, in a list; None if there is none."""
    try:
        return [tasks.popleft()]
    except IndexError:
        return None


class Helping:
    """What a helper does: it holds the model, and what the tasks of a stream share."""

    def __init__(self, model: Mapping[str, Any], threads: int, modules: Sequence[str]) -> None:
        self._worker = Worker(model, threads, modules)
        self._worker.load()
        self._shared: Shared | None = None

    def __call__(self, shared: Shared | None, task: Any) -> tuple[list[Any], Warned]:
        """All results of a task with the warnings; `shared` is given once for all tasks of a stream."""
        if shared is not None:
            self._shared = shared
        assert self._shared is not None
        return self._worker.listed(*self._shared, task)


def processes_that_fit(parameter_bytes: int, device: str | None = None) -> int:
    """How many processes, each of torch's number of threads, the machine has room for; one on a GPU."""
    import psutil
    import torch

    on_cpu = device == "cpu" or (device is None and not torch.accelerator.is_available())
    if not on_cpu:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().available // (2 * parameter_bytes + PROCESS_BYTES)
    return max(1, min(cores // torch.get_num_threads(), int(memory)))
