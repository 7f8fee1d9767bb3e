"""All views of the page by name, and the content that goes to the browser."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ot_lens.errors import OtLensError, TableError
from ot_lens.explorer.depth_view import DEPTH
from ot_lens.explorer.gallery_views import COSINES, DISTANCES, SPECTRA, gallery_views
from ot_lens.explorer.plane_view import PLANE
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices, State
from ot_lens.explorer.sweep_views import LOCALIZATION, METHODS
from ot_lens.explorer.view import View
from ot_lens.plots.gallery import entry_named
from ot_lens.plots.rows import going_together
from ot_lens.plots.screen import stacked

OWN = (DEPTH, PLANE, LOCALIZATION, METHODS, DISTANCES, SPECTRA, COSINES)


def views() -> dict[str, View]:
    """All views by name, those of figures registered later included."""
    return {view.name: view for view in (*OWN, *gallery_views())}


def views_of(runs: Sequence[OpenRun]) -> list[View]:
    """The views of a page: the explorer's own, and figures of the gallery for which a run has tables."""
    return [view for view in views().values() if view in OWN or any(_holds(run, view) for run in runs)]


def _holds(run: OpenRun, view: View) -> bool:
    try:
        with going_together(view.name):
            tables = view.drawing(run, State((), "", "", "")).tables
            entry_named(view.name).describe(*tables.values())
    except TableError:
        return False
    return True


def warm(runs: Sequence[OpenRun]) -> None:
    """Make the initial views of a page before anyone requests them."""
    first = Choices(runs[0]).first
    for number, run in enumerate(runs):
        state = first if number == 0 else Choices(run).read(asdict(first), strict=True)
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
    return run.memory.get(("content", *view.key(state)), lambda: _made(view, run, state))


def _made(view: View, run: OpenRun, state: State) -> Content:
    try:
        with going_together(view.name):
            drawing = view.drawing(run, state)
            figure = view.screen(drawing, run, state)
    except OtLensError as error:
        return Content(None, str(error), "", "")
    drawn = {"figure": json.loads(figure.to_json()), "narrow": stacked(figure), "depth": view.depth}
    return Content(drawn, "", drawing.note, drawing.program(run, view.name))
