"""The remaining figures of the gallery, shown if a run has their tables."""

from collections.abc import Iterator

import plotly.graph_objects as go
from matplotlib.figure import Figure

from ot_lens.errors import TableError
from ot_lens.explorer.code import program
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import State
from ot_lens.explorer.view import PAPER_STYLE, Tables, View
from ot_lens.plots import GALLERY
from ot_lens.plots.gallery import Entry, inputs
from ot_lens.plots.screen import showing

# These have their own views, which follow the chosen layer and edits.
ELSEWHERE = (
    "localization_curves",
    "method_intervals",
    "principal_plane",
    "w2_per_layer",
    "direction_cosines",
    "covariance_spectra",
)


def gallery_views() -> Iterator[View]:
    """One view for each other figure."""
    for entry in GALLERY:
        if entry.name not in ELSEWHERE:
            yield _view(entry)


def holds(view: View, run: OpenRun) -> bool:
    """Whether a run has the tables of a gallery view."""
    try:
        view.tables(run, State((), "", "", ""))
    except TableError:
        return False
    return True


def _view(entry: Entry) -> View:
    def tables(run: OpenRun, _state: State) -> Tables:
        needed = {name: run.table(name) for name in entry.tables}
        entry.describe(*needed.values(), **inputs(entry, run.tables)[1])
        return needed

    def screen(found: Tables, run: OpenRun, _state: State) -> go.Figure:
        return showing(entry)(*found.values(), **inputs(entry, run.tables)[1])

    def paper(found: Tables, run: OpenRun, _state: State) -> Figure:
        return entry.draw(*found.values(), style=PAPER_STYLE, **inputs(entry, run.tables)[1])

    def note(run: OpenRun, state: State) -> str:
        return entry.caption(*tables(run, state).values(), **inputs(entry, run.tables)[1], screen=True)

    def code(run: OpenRun, _state: State) -> str:
        return _code(entry, run)

    return View(entry.name, entry.title, "", (), tables, screen, paper, code, note)


def _code(entry: Entry, run: OpenRun) -> str:
    imports = (
        "import pandas as pd",
        "from ot_lens import plots",
        "from ot_lens.plots.gallery import inputs",
    )
    body = (
        'tables = {path.stem: pd.read_parquet(path) for path in (run / "tables").glob("*.parquet")}',
        f"entry = next(entry for entry in plots.GALLERY if entry.name == {entry.name!r})",
        "needed, options = inputs(entry, tables)",
        f'figure = entry.draw(*needed, style="{PAPER_STYLE}", **options)',
    )
    return program(run, entry.name, imports, body)
