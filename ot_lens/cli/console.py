"""What every command prints with: consoles, plain lines, progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from ot_lens.io.untrusted import CONTROL

if TYPE_CHECKING:
    from ot_lens.study import Stage

out = Console()
err = Console(stderr=True)


def plain(line: str) -> str:
    """A line without control characters: names from files could steer the terminal or end its encoding."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line)


def say(line: str) -> None:
    """Print a line unchanged, never wrapped."""
    out.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def complain(line: str) -> None:
    """Print a line on stderr."""
    err.print(f"ot-lens: {plain(line)}", style="red", markup=False, highlight=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Keep model libraries from printing."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def progress() -> "Iterator[Stage]":
    """Progress bars on stderr, one a stage, with throughput and the time that is left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second; empty before two are done."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            if speed is None:
                return Text("")
            return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bars:

        @contextmanager
        def stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
            task = bars.add_task(name, total=total)
            yield lambda done: bars.advance(task, done)

        yield stage
