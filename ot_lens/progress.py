"""Progress of the stages of a run: bars on a terminal, plain lines in a log."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from ot_lens.io.untrusted import CONTROL

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

# Shows progress: called with a name and the number of steps, or None if they cannot be counted, it yields a
# function that takes the number of steps just done.
Stage = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
# Seconds between two plain lines, and those over which a rate is measured.
EVERY = 30.0
WINDOW = 600.0
GIB = 2**30


@contextmanager
def silent(_name: str, _total: int | None) -> Iterator[Callable[[int], None]]:
    """A stage that shows no progress."""
    yield lambda _done: None


@contextmanager
def shown(console: "Console | None" = None) -> Iterator[Stage]:
    """Stages with their rate and the time left: bars on a terminal, otherwise plain lines.

    A plain line comes every half minute, even if no step is finished, and when the stage ends.
    """
    from rich.console import Console

    console = console or Console(stderr=True)

    with _bars(console) as progress:

        @contextmanager
        def stage(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
            number = progress.add_task(plain(name), total=total)
            task = progress.tasks[number]
            with _lines(console, task) if progress.disable else _bar(progress, task):
                yield lambda done: progress.advance(task.id, done)

        yield stage


def plain(line: str) -> str:
    """A line without control characters: names from files could control the terminal."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", line)


def duration(seconds: float) -> str:
    """Seconds, for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rate(speed: float | None) -> str:
    """Steps per second, or per minute if they are slow; empty until two are done."""
    if speed is None:
        return ""
    if speed < 0.1:
        return f"{60 * speed:.2g}/min"
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


def memory() -> str:
    """Resident memory of this process, and the most that torch has used on its GPUs."""
    from psutil import Process

    text, torch = f"{Process().memory_info().rss / GIB:.1f} GiB", sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return text
    peak = sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    return f"{text}, CUDA peak {peak / GIB:.1f} GiB"


def line(task: "Task") -> str:
    """How far a stage is, in one line: done of all, rate, time left or taken, memory."""
    left, elapsed = task.time_remaining, duration(task.elapsed or 0.0)
    counted = "" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}"
    time = f"{duration(left)} left" if left else f"after {elapsed}"
    facts = (counted, rate(task.finished_speed or task.speed), time, memory())
    return f"{task.description}: {', '.join(filter(None, facts))}"


@contextmanager
def _lines(console: "Console", task: "Task") -> Iterator[None]:
    ended = Event()

    def tell() -> None:
        console.print(line(task), markup=False, highlight=False, soft_wrap=True)

    def keep_telling() -> None:
        while not ended.wait(EVERY):
            tell()

    timer = Thread(target=keep_telling, daemon=True)
    timer.start()
    try:
        yield
    finally:
        ended.set()
        timer.join()
    tell()


@contextmanager
def _bar(progress: "Progress", task: "Task") -> Iterator[None]:
    yield
    if task.total is None:
        progress.update(task.id, total=1, completed=1)


def _bars(console: "Console") -> "Progress":
    """Bars that fit 80 columns, on a terminal only."""
    from rich import progress as bars
    from rich.text import Text

    class Counted(bars.MofNCompleteColumn):
        def render(self, task: "Task") -> Text:
            return Text("") if task.total is None else super().render(task)

    class Rate(bars.ProgressColumn):
        def render(self, task: "Task") -> Text:
            return Text(rate(task.finished_speed or task.speed), style="progress.data.speed")

    return bars.Progress(
        bars.TextColumn("{task.description:<29}", markup=False),
        bars.BarColumn(bar_width=12),
        Counted(),
        Rate(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=WINDOW,
    )
