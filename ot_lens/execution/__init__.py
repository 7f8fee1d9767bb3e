"""Where a study's work is done: here or on the workers of a Ray cluster, with the same results."""

from ot_lens.execution.executor import NAMES, Executor, open_executor
from ot_lens.execution.local import LocalExecutor
from ot_lens.execution.ray_cluster import RayExecutor

__all__ = ["NAMES", "Executor", "LocalExecutor", "RayExecutor", "open_executor"]
