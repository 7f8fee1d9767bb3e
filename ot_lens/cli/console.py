"""How commands print: consoles, plain lines, numbers, progress bars."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ot_lens.io.untrusted import CONTROL

if TYPE_CHECKING:
    from rich.text import Text

    from ot_lens.study import Stage

# Columns of tables that hold text; the others hold numbers, on the right.
TEXTS = ("model", "method", "layers", "item", "check", "verdict")
out = Console()
err = Console(stderr=True)


def plain(line: str) -> str:
    """A line without control characters: names from files could control the terminal."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", line)


def say(line: str) -> None:
    """Print a line as it is, never wrapped."""
    out.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def complain(line: str) -> None:
    """Print a line on stderr."""
    err.print(f"ot-lens: {plain(line)}", style="red", markup=False, highlight=False, soft_wrap=True)


def number(value: float, form: str, missing: str = "") -> str:
    """A formatted number, or `missing` where it was not measured."""
    return missing if isnan(value) else format(value, form)


def print_table(columns: Sequence[str], *sections: "Iterable[Sequence[str | Text]]", **options: Any) -> None:
    """Print sections of rows as a table for 80 columns, in which nothing is markup; `options` go to rich."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=0, **options)
    for name in columns:
        table.add_column(name, justify="left" if name in TEXTS else "right", overflow="fold")
    for rows in sections:
        for row in rows:
            table.add_row(*(Text(plain(cell)) if isinstance(cell, str) else cell for cell in row))
        table.add_section()
    out.print(table)


def quiet_libraries() -> None:
    """Keep model libraries from printing."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def progress() -> "Iterator[Stage]":
    """Progress bars on stderr, one per stage, with throughput and the remaining time."""
    from rich import progress as bars
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        """Steps per second; empty until two are done."""

        def render(self, task: bars.Task) -> Text:
            speed = task.finished_speed or task.speed
            if speed is None:
                return Text("")
            return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s", style="progress.data.speed")

    columns = (
        bars.TextColumn("{task.description:<32}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        Rate(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=err) as shown:

        @contextmanager
        def stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
            task = shown.add_task(name, total=total)
            yield lambda done: shown.advance(task, done)

        yield stage
