"""A view: tables of a run at a state, a figure for the screen, one for paper, and the code that makes it."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import State
from ot_lens.plots import styled

Tables = Mapping[str, pd.DataFrame]
PAPER_STYLE = "wide"
# matplotlib's settings are shared by all threads.
_DRAWING = threading.Lock()


@dataclass(frozen=True)
class View:
    """One view of the page.

    Attributes:
        name: Name in links and files.
        title: Heading.
        lead: What the view shows, in a sentence or two.
        fields: Names of the state's fields that it depends on.
        tables: The rows it shows; the first table goes into the CSV file.
        screen: The figure for the screen.
        paper: The figure for paper, from the same tables.
        code: Python code that makes the paper figure from the run folder.
        note: What the reader should know about this state; may be empty.
        depth: Whether its x axes are layers, so that the chosen ones are marked.
        wide: Whether it takes the full width of the page.
    """

    name: str
    title: str
    lead: str
    fields: tuple[str, ...]
    tables: Callable[[OpenRun, State], Tables]
    screen: Callable[[Tables, OpenRun, State], go.Figure]
    paper: Callable[[Tables, OpenRun, State], Figure]
    code: Callable[[OpenRun, State], str]
    note: Callable[[OpenRun, State], str]
    depth: bool = False
    wide: bool = True

    def key(self, state: State) -> tuple[Any, ...]:
        """A key shared by all states that look the same in this view."""
        return (self.name, *(getattr(state, name) for name in self.fields))


def csv_text(view: View, run: OpenRun, state: State) -> str:
    """The rows of a view as CSV."""
    return str(next(iter(view.tables(run, state).values())).to_csv(index=False))


def image(view: View, run: OpenRun, state: State, suffix: str) -> bytes:
    """The paper figure of a view as PNG or SVG, without a time stamp: the same state gives the same bytes."""
    tables = view.tables(run, state)
    buffer = BytesIO()
    with _DRAWING:
        figure = view.paper(tables, run, state)
        with styled(PAPER_STYLE):
            figure.savefig(buffer, format=suffix, metadata={"Date": None} if suffix == "svg" else {})
    return buffer.getvalue()
