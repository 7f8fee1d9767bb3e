"""How commands print: consoles, plain lines, numbers, tables, progress."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from math import isnan
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ot_lens.progress import Stage, plain, shown

if TYPE_CHECKING:
    from rich.text import Text

# Columns of tables that hold text; the others hold numbers, on the right.
TEXTS = ("model", "method", "layers", "item", "found", "state", "check", "verdict", "stage", "of")
out = Console()
err = Console(stderr=True)


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


def progress() -> AbstractContextManager[Stage]:
    """Progress of stages on stderr; see `ot_lens.progress`."""
    return shown(err)
