"""Views of the geometry: distances with their nulls, spectra of the chosen layer, cosines between layers."""

from collections.abc import Callable

import plotly.graph_objects as go
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.code import program, table
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import State
from ot_lens.explorer.view import PAPER_STYLE, Tables, View
from ot_lens.plots import covariance_spectra, direction_cosines, screen, w2_per_layer
from ot_lens.plots.gallery import entry_named

IMPORTS = ("import pandas as pd", "from ot_lens import plots")


def _no_note(_run: OpenRun, _state: State) -> str:
    return ""


def _whole(
    name: str, title: str, lead: str, source: str, draw: Callable[..., Figure], **options: bool
) -> View:
    """A view of a complete table, independent of the chosen layer and edits."""

    def tables(run: OpenRun, _state: State) -> Tables:
        return {source: run.table(source)}

    def on_screen(found: Tables, _run: OpenRun, _state: State) -> go.Figure:
        return screen.showing(entry_named(draw.__name__))(found[source])

    def paper(found: Tables, _run: OpenRun, _state: State) -> Figure:
        return draw(found[source], style=PAPER_STYLE)

    def code(run: OpenRun, _state: State) -> str:
        line = f'figure = plots.{draw.__name__}({source}, style="{PAPER_STYLE}")'
        return program(run, name, IMPORTS, [table(source), line])

    return View(name, title, lead, (), tables, on_screen, paper, code, _no_note, **options)


def _spectra(run: OpenRun, state: State) -> Tables:
    rows = run.table("spectra")
    here = rows[rows["layer"].eq(state.layer)]
    if here.empty:
        raise NothingToDrawError(f"The spectra table does not contain layer {state.layer}.")
    return {"spectra": here}


def _spectra_screen(tables: Tables, _run: OpenRun, state: State) -> go.Figure:
    return screen.covariance_spectra(tables["spectra"], layer=state.layer)


def _spectra_paper(tables: Tables, _run: OpenRun, state: State) -> Figure:
    return covariance_spectra(tables["spectra"], layers=[state.layer], style=PAPER_STYLE)


def _spectra_code(run: OpenRun, state: State) -> str:
    draw = f'figure = plots.covariance_spectra(spectra, layers=[{state.layer}], style="{PAPER_STYLE}")'
    return program(run, "spectra", IMPORTS, [table("spectra"), draw])


def _spectra_note(_run: OpenRun, state: State) -> str:
    return f"Layer {state.layer}."


DISTANCES = _whole(
    "distances",
    "Distance between the classes",
    "Squared 2-Wasserstein distance between Gaussians, and its two parts. Grey: the same under permuted "
    "labels; only values above it count.",
    "geometry",
    w2_per_layer,
    depth=True,
)
SPECTRA = View(
    "spectra",
    "Covariance spectra",
    "Eigenvalues of each class at the chosen layer, with 95 % bootstrap bands.",
    ("layers",),
    _spectra,
    _spectra_screen,
    _spectra_paper,
    _spectra_code,
    _spectra_note,
    wide=False,
)
COSINES = _whole(
    "cosines",
    "Refusal direction across layers",
    "Cosine between the difference-in-means directions of two layers; bold where permuted labels do not "
    "explain it.",
    "cosines",
    direction_cosines,
    wide=False,
)
