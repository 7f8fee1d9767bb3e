"""The principal plane before and after two edits: from stored activations and maps, else from the tables."""

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError, OtLensError, TableError
from ot_lens.explorer.code import program, table
from ot_lens.explorer.runs import SPLIT, OpenRun, split_key
from ot_lens.explorer.state import State
from ot_lens.explorer.view import PAPER_STYLE, Tables, View
from ot_lens.geometry import principal_plane
from ot_lens.plots import principal_plane as paper_plane
from ot_lens.plots import screen
from ot_lens.plots.figures.principal_plane import BEFORE, states_of
from ot_lens.plots.screen.elements import axes_of

HIGHLIGHT = "highlight"


def state_label(key: str) -> str:
    """The label of an edit in the plane tables: "pca_ot (k = 4)" of "pca_ot:4"."""
    name, k = split_key(key)
    return name if k is None else f"{name} (k = {k})"


def plane_tables(run: OpenRun, state: State) -> Tables:
    """Points and ellipses of the chosen layer before and after both edits.

    Raises:
        TableError: The run holds neither activations and maps nor a plane table of that layer.
    """
    key = ("plane", state.layer, state.keys, state.strength)
    return run.memory.get(key, lambda: _computed(run, state) or _stored(run, state))


def computable(run: OpenRun, state: State) -> str:
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


def _computed(run: OpenRun, state: State) -> dict[str, pd.DataFrame] | None:
    acts, layer = run.activations, state.layer
    if acts is None or computable(run, state):
        return None
    try:
        maps = {state_label(key): run.map(key, layer).at(state.strength) for key in state.keys}
        samples = acts.harmful(layer, run.position), acts.harmless(layer, run.position)
        points, clouds = principal_plane(*samples, maps, layer=layer, position=run.position)
    except TableError:
        raise
    except OtLensError as error:
        raise NothingToDrawError(str(error)) from error
    return {"plane": points, "plane_ellipses": clouds}


def _stored(run: OpenRun, state: State) -> dict[str, pd.DataFrame]:
    found = {}
    wanted = {BEFORE, *map(state_label, state.keys)}
    why = computable(run, state)
    for name in ("plane", "plane_ellipses"):
        rows = run.table(name)
        rows = rows[rows["layer"].eq(state.layer)]
        if rows.empty:
            raise NothingToDrawError(f"{why}, and its plane table does not hold layer {state.layer}")
        found[name] = rows[rows["state"].isin(wanted)]
    return found


def plane_note(run: OpenRun, state: State) -> str:
    """What is missing, or where the plane's numbers come from."""
    why = computable(run, state)
    if not why:
        held = f"strength {state.strength:g}"
        return (
            f"Layer {state.layer}, held-out prompts, {held}; hover over a prompt to follow it in both panels."
        )
    if state.strength != 1.0:
        return f"Since {why}, the plane is the stored one, at the strength of the run."
    return ""


def _screen(tables: Tables, _run: OpenRun, state: State) -> go.Figure:
    figure = screen.principal_plane(tables["plane"], tables["plane_ellipses"], layer=state.layer)
    for panel in range(max(1, len(states_of(tables["plane"])))):
        figure.add_trace(_highlight(panel))
    return figure


def _highlight(panel: int) -> go.Scatter:
    """A ring that the page moves to the prompt under the pointer: where it was, and where it went."""
    return go.Scatter(
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


def _paper(tables: Tables, _run: OpenRun, state: State) -> Figure:
    return paper_plane(tables["plane"], tables["plane_ellipses"], layer=state.layer, style=PAPER_STYLE)


def _code(run: OpenRun, state: State) -> str:
    draw = f'figure = plots.principal_plane(plane, ellipses, layer={state.layer}, style="{PAPER_STYLE}")'
    if computable(run, state):
        labels = [BEFORE, *map(state_label, state.keys)]
        body = [
            table("plane"),
            table("plane_ellipses").replace("plane_ellipses =", "ellipses =", 1),
            *(
                f'{name} = {name}[{name}["layer"].eq({state.layer}) & {name}["state"].isin({labels!r})]'
                for name in ("plane", "ellipses")
            ),
        ]
        return program(run, "plane", ("import pandas as pd", "from ot_lens import plots"), [*body, draw])
    body = [f'acts = otl.load_activations(run / "activations" / "{SPLIT}")', "maps = {"]
    for key in state.keys:
        where = run.map_path(key, state.layer).relative_to(run.path)
        body.append(
            f"    {state_label(key)!r}: otl.AffineMap.load(run / {str(where)!r}).at({state.strength!r}),"
        )
    at = f"{state.layer}, {run.position}"
    body += [
        "}",
        "plane, ellipses = otl.principal_plane(",
        f"    acts.harmful({at}), acts.harmless({at}), maps, layer={state.layer}, position={run.position}",
        ")",
    ]
    return program(run, "plane", ("import ot_lens as otl", "from ot_lens import plots"), [*body, draw])


PLANE = View(
    "plane",
    "Transport against projection",
    "The first two principal components of both classes together, before and after each edit. Ellipses hold "
    "95 % of a Gaussian; arrows follow some prompts, the thick one the mean.",
    ("layers", "ot", "by", "strength"),
    plane_tables,
    _screen,
    _paper,
    _code,
    plane_note,
)
