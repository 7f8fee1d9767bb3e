"""The strip along the depth: one measure at every layer, both edits with their band, controls behind."""

from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.code import SWEEP_IMPORTS, program, sweep_lines, table
from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import Choices, State
from ot_lens.explorer.sweep_views import sweep_note, sweep_rows_of
from ot_lens.explorer.view import PAPER_STYLE, Tables, View
from ot_lens.plots import diagnostics, localization_curve, screen
from ot_lens.plots.description import LAYER, Axis, Band, Curve, Description, Line, Panel, Reference
from ot_lens.plots.figures.diagnostics import quantity_panel
from ot_lens.plots.measures import Measure, axis_of, measure_named, sweep_rows
from ot_lens.plots.rows import curve, marked_methods, numbers, some, unit_of
from ot_lens.plots.screen.text import interval
from ot_lens.plots.style import BASELINE, CONTROLS
from ot_lens.tables import baseline_of, controls_of, edits_of, measured, select, single_layers

GEOMETRY = "geometry/"
STRIP = 120


def quantity_of(measure: str) -> str | None:
    """The quantity of the geometry table that a measure names, None for a measure of the sweep."""
    return measure.removeprefix(GEOMETRY) if measure.startswith(GEOMETRY) else None


def _tables(run: OpenRun, state: State) -> Tables:
    quantity = quantity_of(state.measure)
    if quantity is not None:
        rows = select(run.table("geometry"), quantity=quantity)
        return {"geometry": some(rows, f"{quantity} in the geometry")}
    if not state.measure:
        raise NothingToDrawError("this run has neither a sweep nor a geometry table")
    return {"localization": sweep_rows_of(run, state, state.keys)}


def _kept(tables: Tables, run: OpenRun, state: State) -> go.Figure:
    """The strip does not depend on the chosen layers, which the page marks itself."""
    key = ("strip", state.keys, state.strength, state.tokens, state.measure)
    return run.memory.get(key, lambda: _screen(tables, run, state))


def _screen(tables: Tables, run: OpenRun, state: State) -> go.Figure:
    layers = Choices(run).layers
    x = replace(LAYER, title="", limits=(layers[0] - 0.5, layers[-1] + 0.5))
    if "geometry" in tables:
        rows = tables["geometry"]
        panel = quantity_panel(rows, quantity_of(state.measure) or "")
        return _strip(replace(panel, title="", x=x, y=Axis(unit_of(rows, ""))))
    sweep, measure = tables["localization"], measure_named(state.measure)
    real = _real_rows(run, state)
    y = axis_of(measure, edits_of(real), "")
    return _strip(Panel("", x, y, tuple(_elements(sweep, real, measure, state))))


def _real_rows(run: OpenRun, state: State) -> pd.DataFrame:
    """Real edits of the sweep, by both methods; the same at every layer, so kept."""
    key = ("strip", state.keys, state.strength, state.tokens)
    return run.memory.get(key, lambda: sweep_rows(sweep_rows_of(run, state, state.keys)))


def _strip(panel: Panel) -> go.Figure:
    """A click or a drag across the strip chooses layers."""
    figure = screen.draw(Description((panel,), columns=1))
    look = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yref": "paper", "yanchor": "bottom"}
    figure.update_layout(margin={"l": 64, "r": 14, "t": 26, "b": 6}, height=STRIP + 32, dragmode="select")
    figure.update_layout(meta=dict(figure.layout.meta) | {"row": STRIP, "below": 0})
    figure.update_layout(selectdirection="h", clickmode="event", hovermode="x unified")
    figure.update_layout(legend=look | {"font": {"size": 12}})
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False)
    return figure.update_yaxes(automargin=False, nticks=4)


def _elements(
    sweep: pd.DataFrame, real: pd.DataFrame, measure: Measure, state: State
) -> list[Band | Reference | Line]:
    rows = measured(real, measure.name, measure.prompts)
    baseline = numbers(baseline_of(rows)["value"])[:1]
    return [
        *_controls(sweep, measure, state),
        *(Reference(float(value), BASELINE.label, mark=BASELINE) for value in baseline),
        *(Line(mark.label, mark, curve(own)) for mark, own in marked_methods(single_layers(rows))),
    ]


def control_range(sweep: pd.DataFrame, measure: Measure, key: str, kind: str) -> tuple[Curve, int] | None:
    """The smallest and the largest control draw of a method by layer, and how many draws a layer has.

    Args:
        sweep: The table of `localize`.
        measure: What was measured under the controls.
        key: Key of the method.
        kind: Kind of control.
    """
    method, k = split_key(key)
    controls = single_layers(controls_of(measured(sweep, measure.name, measure.prompts), kind))
    rows = select(controls, method=method, **({} if k is None else {"k": k}))
    if rows.empty:
        return None
    ends = rows.groupby("layer")["value"].agg(["min", "mean", "max", "size"]).reset_index()
    found = Curve(*(numbers(ends[name]) for name in ("layer", "mean", "min", "max")))
    return found, int(ends["size"].min())


def _controls(sweep: pd.DataFrame, measure: Measure, state: State) -> list[Band]:
    """Where edits that ignore the classes land: the range of the first edit's controls."""
    bands = []
    for kind, mark in CONTROLS.items():
        limits = control_range(sweep, measure, state.ot, kind)
        if limits is not None:
            drawn, draws = limits
            bands.append(Band(kind, replace(mark, label=f"{mark.label} ({draws} draws)"), drawn))
    return bands


def _paper(tables: Tables, _run: OpenRun, state: State) -> Figure:
    quantity = quantity_of(state.measure)
    if quantity is not None:
        return diagnostics(tables["geometry"], quantity=quantity, style=PAPER_STYLE)
    return localization_curve(tables["localization"], state.measure, style=PAPER_STYLE)


def _code(run: OpenRun, state: State) -> str:
    quantity = quantity_of(state.measure)
    if quantity is not None:
        imports = ("import pandas as pd", "from ot_lens import plots")
        draw = f'figure = plots.diagnostics(geometry, quantity={quantity!r}, style="{PAPER_STYLE}")'
        return program(run, "depth", imports, [table("geometry"), draw])
    draw = f'figure = plots.localization_curve(localization, {state.measure!r}, style="{PAPER_STYLE}")'
    return program(run, "depth", SWEEP_IMPORTS, [*sweep_lines(run, state, state.keys), draw])


def reading(run: OpenRun, state: State) -> str:
    """What the strip says at the chosen layers, in words: value, interval, n."""
    if quantity_of(state.measure) is not None or not state.measure:
        return ""
    measure = measure_named(state.measure)
    rows = measured(_real_rows(run, state), measure.name, measure.prompts)
    texts = []
    for mark, own in marked_methods(single_layers(rows)):
        here = curve(select(own, layer=state.layer))
        n = here.n if here.n is not None else here.value
        for value, low, high, count in zip(here.value, here.low, here.high, n, strict=True):
            text = interval(value, low, high, "share" if measure.scale == "share" else "linear")
            texts.append(f"{mark.label} {text}, n = {count:.0f}")
    return f"Layer {state.layer}: {'; '.join(texts)}." if texts else ""


def _note(run: OpenRun, state: State) -> str:
    try:
        said = reading(run, state)
    except NothingToDrawError:
        said = ""
    return " ".join(part for part in (said, sweep_note(run, state)) if part)


DEPTH = View(
    "depth",
    "Depth",
    "",
    ("layers", "ot", "by", "measure", "strength", "tokens"),
    _tables,
    _kept,
    _paper,
    _code,
    _note,
    depth=True,
)
