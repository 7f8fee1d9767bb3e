"""All views of the page by name: those of complete tables, and the content that goes to the browser."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ot_lens.errors import NothingToDrawError, OtLensError, TableError
from ot_lens.explorer.plane_view import PLANE
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.site_views import CONTRIBUTIONS, INTERCHANGE, READOUT
from ot_lens.explorer.state import State, choices_of
from ot_lens.explorer.sweep_views import DEPTH, LOCALIZATION, METHODS
from ot_lens.explorer.view import Drawing, View, read
from ot_lens.plots.gallery import GALLERY, Entry, entry_named
from ot_lens.plots.rows import going_together
from ot_lens.plots.screen import stacked
from ot_lens.tables import select


def _captioned(entry: Entry, run: OpenRun, _state: State) -> Drawing:
    drawing = _complete(entry.name, run)
    return replace(drawing, note=entry.caption(*drawing.tables.values(), screen=True))


def _complete(figure: str, run: OpenRun, _state: State | None = None) -> Drawing:
    names = entry_named(figure).tables
    return Drawing(figure, {name: run.table(name) for name in names}, [*map(read, names)])


def _spectra(run: OpenRun, state: State) -> Drawing:
    here = select(run.table("spectra"), layer=state.layer)
    if here.empty:
        raise NothingToDrawError(f"The spectra table does not contain layer {state.layer}.")
    options, note = {"layers": [state.layer]}, f"Layer {state.layer}."
    return Drawing("covariance_spectra", {"spectra": here}, [read("spectra")], options, note)


DISTANCES = View(
    "distances",
    "Distance between the classes",
    "Squared 2-Wasserstein distance between Gaussians, and its two parts. Grey: the same under permuted "
    "labels; only values above it count.",
    (),
    partial(_complete, "w2_per_layer"),
    depth=True,
)
SPECTRA = View(
    "spectra",
    "Covariance spectra",
    "Eigenvalues of each class at the chosen layer, with 95 % bootstrap bands.",
    ("layers",),
    _spectra,
    wide=False,
)
COSINES = View(
    "cosines",
    "Refusal direction across layers",
    "Cosine between the difference-in-means directions of two layers; bold where permuted labels do not "
    "explain it.",
    (),
    partial(_complete, "direction_cosines"),
    wide=False,
)
OWN = (DEPTH, PLANE, LOCALIZATION, METHODS, DISTANCES, SPECTRA, COSINES)
# On the page of a run that has their tables.
OF_SITES = (INTERCHANGE, CONTRIBUTIONS, READOUT)
# Figures that these views show.
SHOWN = (
    "localization_curves",
    "method_intervals",
    "principal_plane",
    "w2_per_layer",
    "direction_cosines",
    "covariance_spectra",
    "interchange_map",
    "contributions",
    "readout",
)


def views() -> dict[str, View]:
    """All views by name: our own, and all other figures of the gallery, those registered later included."""
    others = (entry for entry in GALLERY if entry.name not in SHOWN)
    gallery = [View(entry.name, entry.title, "", (), partial(_captioned, entry)) for entry in others]
    return {view.name: view for view in (*OWN, *OF_SITES, *gallery)}


def views_of(runs: Sequence[OpenRun]) -> list[View]:
    """The views of a page: the explorer's own, and figures of the gallery for which a run has tables."""
    states = [(run, choices_of(run).first) for run in runs]
    return [view for view in views().values() if view in OWN or any(_holds(*at, view) for at in states)]


def _holds(run: OpenRun, state: State, view: View) -> bool:
    try:
        with going_together(view.name):
            drawing = view.drawing(run, state)
            entry_named(drawing.figure).describe(*drawing.tables.values())
    except TableError:
        return False
    return True


def warm(runs: Sequence[OpenRun]) -> None:
    """Make the initial views of a page before anyone requests them."""
    first = choices_of(runs[0]).first
    for number, run in enumerate(runs):
        state = first if number == 0 else choices_of(run).read(asdict(first), strict=True)
        for view in OWN:
            content(view, run, state)


@dataclass(frozen=True)
class Content:
    """A view of a run: figure (None if missing), why it is missing, note, and code of the paper figure."""

    figure: dict[str, Any] | None
    missing: str
    note: str
    code: str


def content(view: View, run: OpenRun, state: State) -> Content:
    """A view of a run at a state; made once, then cached."""
    return run.kept(("content", *view.key(state)), lambda: _made(view, run, state))


def _made(view: View, run: OpenRun, state: State) -> Content:
    try:
        drawing = view.drawing(run, state)
        drawn = run.kept(("figure", *view.figure_key(state)), lambda: _drawn(view, drawing, run, state))
    except OtLensError as error:
        return Content(None, str(error), "", "")
    return Content(drawn, "", drawing.note, drawing.program(run, view.name))


def _drawn(view: View, drawing: Drawing, run: OpenRun, state: State) -> dict[str, Any]:
    figure = view.screen(drawing, run, state)
    return {"figure": json.loads(figure.to_json()), "narrow": stacked(figure)}
