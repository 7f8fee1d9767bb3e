"""The principal plane before and after two edits: from stored activations and maps, else from the tables."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from ot_lens.errors import NothingToDrawError, OtLensError
from ot_lens.explorer.runs import SPLIT, OpenRun, split_key
from ot_lens.explorer.state import State
from ot_lens.explorer.view import Drawing, View, on_screen, read
from ot_lens.geometry import principal_plane
from ot_lens.plots.figures.principal_plane import BEFORE, states_of
from ot_lens.plots.screen.elements import axes_of
from ot_lens.tables import select

HIGHLIGHT = "highlight"
NAMES = ("plane", "plane_ellipses")


def _drawing(run: OpenRun, state: State) -> Drawing:
    """Points and ellipses of the chosen layer before and after both edits."""
    why = why_not_computable(run, state)
    options = {"layer": state.layer}
    if not why:
        key = ("plane", state.layer, state.keys, state.strength)
        tables = run.kept(key, lambda: _computed(run, state))
        note = f"Layer {state.layer}, held-out prompts, strength {state.strength:g}; hover over a prompt to "
        note += "follow it in both panels."
        return Drawing("principal_plane", tables, _computing_code(run, state), options, note)
    labels = [BEFORE, *map(_label, state.keys)]
    tables = {name: _stored(run, state.layer, name, labels, why) for name in NAMES}
    chosen = [f"{name} = select({name}, layer={state.layer}, state={labels!r})" for name in NAMES]
    at_one = f"Since {why}, the plane is the stored one, at the strength of the run."
    note = "" if state.strength == 1.0 else at_one
    return Drawing("principal_plane", tables, [*map(read, NAMES), *chosen], options, note)


def _label(key: str) -> str:
    """The label of an edit in the plane tables: "pca_ot (k = 4)" of "pca_ot:4"."""
    name, k = split_key(key)
    return name if k is None else f"{name} (k = {k})"


def why_not_computable(run: OpenRun, state: State) -> str:
    """Why the plane cannot be computed from what the run stores, or ""."""
    acts = run.activations
    if acts is None:
        return "the run holds no activations"
    if state.layer not in acts.layers or run.position not in acts.positions:
        return f"layer {state.layer} was not captured"
    for key in state.keys:
        try:
            run.map_path(key, state.layer)
        except OtLensError as error:
            return str(error)
    return ""


def _computed(run: OpenRun, state: State) -> Mapping[str, pd.DataFrame]:
    layer, position, acts = state.layer, run.position, run.activations
    assert acts is not None
    maps = {_label(key): run.map(key, layer).at(state.strength) for key in state.keys}
    samples = acts.harmful(layer, position), acts.harmless(layer, position)
    tables = principal_plane(*samples, maps, layer=layer, position=position)
    return dict(zip(NAMES, tables, strict=True))


def _computing_code(run: OpenRun, state: State) -> list[str]:
    maps = [
        f"    {_label(key)!r}: otl.load_map(run / {str(path.relative_to(run.path))!r})"
        f".at({state.strength!r}),"
        for key in state.keys
        for path in [run.map_path(key, state.layer)]
    ]
    at = f"{state.layer}, {run.position}"
    options = f"layer={state.layer}, position={run.position}"
    return [
        f'acts = otl.load_activations(run / "activations" / "{SPLIT}")',
        "maps = {",
        *maps,
        "}",
        f"{', '.join(NAMES)} = otl.principal_plane(",
        f"    acts.harmful({at}), acts.harmless({at}), maps, {options}",
        ")",
    ]


def _stored(run: OpenRun, layer: int, name: str, labels: list[str], why: str) -> pd.DataFrame:
    rows = select(run.table(name), layer=layer)
    if rows.empty:
        raise NothingToDrawError(f"{why}, and its plane table does not hold layer {layer}")
    return select(rows, state=labels)


def _screen(drawing: Drawing, run: OpenRun, state: State) -> go.Figure:
    """With a ring in each panel that the page moves to the prompt under the pointer, before and after."""
    figure = on_screen(drawing, run, state)
    for panel in range(max(1, len(states_of(drawing.tables["plane"])))):
        ring = go.Scatter(
            x=[None, None],
            y=[None, None],
            mode="lines+markers",
            name=HIGHLIGHT,
            meta=HIGHLIGHT,
            showlegend=False,
            hoverinfo="skip",
            line={"color": "#808080", "width": 2},
            marker={"size": [11, 15], "symbol": "circle-open", "line": {"width": 2.5}, "color": "#808080"},
            **axes_of(panel),
        )
        figure.add_trace(ring)
    return figure


PLANE = View(
    "plane",
    "Transport against projection",
    "The first two principal components of both classes together, before and after each edit. Ellipses hold "
    "95 % of a Gaussian; arrows follow some prompts, the thick one the mean.",
    ("layers", "ot", "by", "strength"),
    _drawing,
    _screen,
)
