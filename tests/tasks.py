"""Tasks for executors, in a module that other processes can import."""

import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence

from ot_lens.errors import BatchHalvedWarning, ModelError


def busy(_model: object, base: int, tasks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """base + task, and the process that did it."""
    for task in tasks:
        time.sleep(0.1)
        yield base + task, os.getpid()


def warn(_model: object, tasks: Sequence[int]) -> Iterator[int]:
    """Give a warning for each task."""
    for task in tasks:
        time.sleep(0.1)
        warnings.warn("cut in half", BatchHalvedWarning, stacklevel=1)
        yield task


def fail(_model: object, driver: int, tasks: Sequence[int]) -> Iterator[int]:
    """Fail everywhere but in the driver; there the last task fails."""
    for task in tasks:
        time.sleep(0.1)
        if os.getpid() != driver or task == 99:
            raise ModelError(f"task {task} in the driver: {os.getpid() == driver}")
        yield task


def die(_model: object, driver: int, tasks: Sequence[int]) -> Iterator[int]:
    """Kill every process but the driver."""
    for task in tasks:
        time.sleep(0.1)
        if os.getpid() != driver:
            os.kill(os.getpid(), signal.SIGKILL)
        yield task
