"""A view: what it shows of a run at a state of the page, on screen, on paper, as CSV, and as Python code."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ot_lens import plots
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import State
from ot_lens.plots.gallery import entry_named
from ot_lens.plots.screen import showing

PAPER_STYLE = "wide"
# What the code of a figure may need, and the line that imports it.
IMPORTS = {
    "pd.": "import pandas as pd",
    "otl.": "import ot_lens as otl",
    "plots.": "from ot_lens import plots",
    "select(": "from ot_lens.tables import select",
    "with_baseline(": "from ot_lens.tables import with_baseline",
}
# matplotlib's settings are shared by all threads.
_DRAWING = threading.Lock()


@dataclass(frozen=True)
class Drawing:
    """A figure of some tables, and the Python lines that read these from the run folder.

    The content of a run is in the code only as literals.
    """

    figure: str  # name of a function of `ot_lens.plots`; registered figures are among them
    tables: Mapping[str, pd.DataFrame]  # by their names in the code; the first one is in the CSV file
    code: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""  # what the reader should know about this state

    def program(self, run: OpenRun, name: str) -> str:
        """Python code that draws the figure on paper and saves it under a name."""
        arguments = [*self.tables, *(f"{key}={value!r}" for key, value in self.options.items())]
        body = [
            *self.code,
            f'figure = plots.{self.figure}({", ".join(arguments)}, style="{PAPER_STYLE}")',
            f'plots.save(figure, Path("{name}"), ["png", "svg"], style="{PAPER_STYLE}")',
        ]
        imports = [line for word, line in IMPORTS.items() if word in "\n".join(body)]
        head = ["from pathlib import Path", "", *imports, "", f"run = Path({str(run.path)!r})"]
        return "\n".join([*head, *body]) + "\n"

    def csv(self) -> str:
        """The rows of the first table."""
        return str(next(iter(self.tables.values())).to_csv(index=False))

    def image(self, suffix: str) -> bytes:
        """The figure on paper as PNG or SVG, without a time stamp: the same state gives the same bytes."""
        buffer = BytesIO()
        with _DRAWING:
            figure = getattr(plots, self.figure)(*self.tables.values(), **self.options, style=PAPER_STYLE)
            with plots.styled(PAPER_STYLE):
                figure.savefig(buffer, format=suffix, metadata={"Date": None} if suffix == "svg" else {})
        return buffer.getvalue()


def read(table: str) -> str:
    """The line that reads a table from the run folder."""
    return f'{table} = pd.read_parquet(run / "tables" / "{table}.parquet")'


def on_screen(drawing: Drawing, _run: OpenRun, _state: State) -> go.Figure:
    """The figure as the gallery shows it."""
    return showing(entry_named(drawing.figure))(*drawing.tables.values(), **drawing.options)


@dataclass(frozen=True)
class View:
    """One view of the page: its name in links and files, its heading, what it shows of a run at a state."""

    name: str
    title: str
    lead: str
    fields: tuple[str, ...]  # of the state, on which it depends
    drawing: Callable[[OpenRun, State], Drawing]
    screen: Callable[[Drawing, OpenRun, State], go.Figure] = on_screen
    depth: bool = False  # the x axes are layers: the page marks the chosen ones
    sites: bool = False  # cells are tokens and layers: the page outlines the chosen one
    wide: bool = True
    told: tuple[
        str, ...
    ] = ()  # those of the fields that change what is said about the figure, not the figure

    def key(self, state: State) -> tuple[Any, ...]:
        """A key shared by all states that look the same in this view."""
        return (self.name, *(getattr(state, name) for name in self.fields))

    def figure_key(self, state: State) -> tuple[Any, ...]:
        """A key shared by all states with the same figure."""
        return (self.name, *(getattr(state, name) for name in self.fields if name not in self.told))
