"""Where and how work on a model is done: here or on a Ray cluster, each task once, with the same results."""

from ot_lens.execution.executor import NAMES, Executor, open_executor, shared_cluster
from ot_lens.execution.local import LocalExecutor, processes_that_fit
from ot_lens.execution.ray_cluster import RayExecutor
from ot_lens.execution.runner import RunCache, Runner, as_runner

__all__ = [
    "NAMES",
    "Executor",
    "LocalExecutor",
    "RayExecutor",
    "RunCache",
    "Runner",
    "as_runner",
    "open_executor",
    "processes_that_fit",
    "shared_cluster",
]
