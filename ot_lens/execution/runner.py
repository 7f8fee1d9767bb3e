"""One way to run work on a model: the executor says where, the cache remembers what is done."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from ot_lens.execution.executor import Executor
from ot_lens.execution.local import LocalExecutor

T = TypeVar("T")


@runtime_checkable
class RunCache(Protocol):
    """Results by name, such as a dictionary: lists of numbers, maps and tables.

    A name belongs to one task; another study never shares the cache. A cache on disk returns what a later
    process would read, so that nothing depends on where a run was stopped.
    """

    def __contains__(self, name: Any) -> bool: ...

    def __getitem__(self, name: str) -> Any: ...

    def __setitem__(self, name: str, result: Any) -> None: ...


@dataclass(frozen=True, eq=False)
class Runner:
    """Runs functions whose first argument is the model, each named task once in the life of the cache.

    Every step that needs the model takes a Runner in place of the model: `localize`, `capture`,
    `filter_by_behaviour`, `fit_sequentially`, `search`, `plan_sweep` and `measure_sweep` do the same work in
    this process or on Ray, from the start or after a stop, with the same results.

    >>> runner = Runner(executor, FolderCache(folder, "filtered"))  # a study: any executor, on disk
    >>> runner = as_runner(model)  # a loaded model: in this process, in memory
    >>> maps = runner.map(fit, {"low": 3, "high": 5}, prompts)  # fit(model, prompts, 3), then with 5
    """

    executor: Executor
    cache: RunCache = field(default_factory=dict[str, Any])

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """function(model, *arguments, **options), once, not cached."""
        return self.executor.call(function, *arguments, **options)

    def stream(
        self, function: Callable[..., Iterator[T]], tasks: Sequence[Any], *arguments: Any
    ) -> Iterator[T]:
        """All that function(model, *arguments, some tasks) yields, in any order, not cached.

        For results that the caller stores by itself, such as shards of activations. What the function yields
        for a task must not depend on the other tasks.
        """
        return self.executor.stream(function, tasks, *arguments)

    def map(
        self,
        function: Callable[..., T],
        tasks: Mapping[str, Any],
        *arguments: Any,
        progress: Callable[[str], None] = lambda _name: None,
    ) -> dict[str, T]:
        """function(model, *arguments, task) for every task, by name; tasks in the cache are not run again.

        `progress` is called with the name of each task that is done.
        """
        missing = [(name, task) for name, task in tasks.items() if name not in self.cache]
        for name in tasks.keys() - dict(missing).keys():
            progress(name)
        if missing:
            for name, result in self.stream(run_named, missing, function, arguments):
                self.cache[name] = result
                progress(name)
        return {name: self.cache[name] for name in tasks}


def as_runner(model: Any) -> Runner:
    """A Runner as it is; a hooked model in this process with an empty cache in memory."""
    return model if isinstance(model, Runner) else Runner(LocalExecutor(model))


def run_named(
    model: Any, function: Callable[..., T], arguments: Sequence[Any], tasks: Sequence[tuple[str, Any]]
) -> Iterator[tuple[str, T]]:
    """The result of each task with its name."""
    for name, task in tasks:
        yield name, function(model, *arguments, task)
