"""The strip along the depth: one measure at every layer, both edits with their band, controls behind."""

from dataclasses import replace
from html import unescape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.code import SWEEP_IMPORTS, program, sweep_lines, table
from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import Choices, State
from ot_lens.explorer.sweep_views import sweep_note, sweep_rows_of
from ot_lens.explorer.view import PAPER_STYLE, Tables, View
from ot_lens.plots import localization_curve
from ot_lens.plots.curve_panels import curve_figure
from ot_lens.plots.measures import Measure, extent, measure_named, sweep_rows
from ot_lens.plots.panels import CurvePanel, Series, null_of
from ot_lens.plots.rows import Curve, curve, marked_methods, numbers
from ot_lens.plots.screen.panels import Panel, measure_axis, panel_figure, plain
from ot_lens.plots.screen.traces import band, hover_text, line, null_band, on_cost_scale
from ot_lens.plots.style import BASELINE, CONTROLS, Mark
from ot_lens.tables import baseline_of, controls_of, edits_of, measured, select, single_layers

GEOMETRY = "geometry/"
STRIP = 120


def quantity_of(measure: str) -> str | None:
    """The quantity of the geometry table that a measure names, None for a measure of the sweep."""
    return measure.removeprefix(GEOMETRY) if measure.startswith(GEOMETRY) else None


def quantity_rows(geometry: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Rows of one quantity.

    Raises:
        NothingToDrawError: There is none.
    """
    rows = geometry[geometry["quantity"].eq(quantity)]
    if not np.isfinite(numbers(rows["value"])).any():
        raise NothingToDrawError(f"the geometry table holds no {quantity}")
    return rows


def quantity_by_layer(geometry: pd.DataFrame, quantity: str, *, style: str = "icml") -> Figure:
    """One quantity of the geometry table by layer, with interval and null band.

    Args:
        geometry: The table of `diagnose`.
        quantity: Its name in the table.
        style: "icml", "neurips" or "wide".

    Raises:
        NothingToDrawError: The table holds no such quantity.
    """
    rows, mark = quantity_rows(geometry, quantity), _mark(quantity)
    series = (Series(quantity, mark, curve(rows)),)
    panel = CurvePanel(mark.label, _axis_title(rows, quantity), series, null_of(rows, quantity))
    return curve_figure([panel], style=style, columns=1)


def _mark(quantity: str) -> Mark:
    return Mark(quantity.replace("_", " "), "#7B5AA6", "circle")


def _unit(rows: pd.DataFrame) -> str:
    return str(rows["unit"].iloc[0]) if "unit" in rows else ""


def _axis_title(rows: pd.DataFrame, quantity: str) -> str:
    unit = _unit(rows)
    return quantity.replace("_", " ") + (f" ({unit})" if unit else "")


def _tables(run: OpenRun, state: State) -> Tables:
    quantity = quantity_of(state.measure)
    if quantity is not None:
        return {"geometry": quantity_rows(run.table("geometry"), quantity)}
    if not state.measure:
        raise NothingToDrawError("this run has neither a sweep nor a geometry table")
    return {"localization": sweep_rows_of(run, state, state.keys)}


def _kept(tables: Tables, run: OpenRun, state: State) -> go.Figure:
    """The strip does not depend on the chosen layers, which the page marks itself."""
    key = ("strip", state.keys, state.strength, state.tokens, state.measure)
    return run.memory.get(key, lambda: _screen(tables, run, state))


def _screen(tables: Tables, run: OpenRun, state: State) -> go.Figure:
    layers = Choices(run).layers
    x = {
        "range": [layers[0] - 0.5, layers[-1] + 0.5],
        "showticklabels": False,
        "ticks": "",
        "showgrid": False,
    }
    if "geometry" in tables:
        rows, quantity = tables["geometry"], quantity_of(state.measure) or ""
        figure = panel_figure([Panel("", x, {"title": {"text": plain(_unit(rows))}})], columns=1, row=STRIP)
        return _strip(figure.add_traces(_quantity_traces(rows, quantity)))
    sweep, measure = tables["localization"], measure_named(state.measure)
    real = _real_rows(run, state)
    ends = extent(edits_of(real), measure)
    figure = panel_figure([Panel("", x, measure_axis(measure, "", ends))], columns=1, row=STRIP)
    return _strip(figure.add_traces(_sweep_traces(sweep, real, measure, layers, state)))


def _real_rows(run: OpenRun, state: State) -> pd.DataFrame:
    """Real edits of the sweep, by both methods; the same at every layer, so kept."""
    key = ("strip", state.keys, state.strength, state.tokens)
    return run.memory.get(key, lambda: sweep_rows(sweep_rows_of(run, state, state.keys)))


def _strip(figure: go.Figure) -> go.Figure:
    """A click or a drag across the strip chooses layers."""
    figure.update_layout(margin={"l": 64, "r": 14, "t": 26, "b": 6}, height=STRIP + 32, dragmode="select")
    look = {
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "font": {"size": 12},
    }
    figure.update_layout(selectdirection="h", clickmode="event", legend=look, hovermode="x unified")
    return figure.update_yaxes(automargin=False, nticks=4)


def _quantity_traces(rows: pd.DataFrame, quantity: str) -> list[go.Scatter]:
    mark = _mark(quantity)
    hover = hover_text(mark.label, rows.sort_values("layer", kind="stable"))
    traces = [trace for null in null_of(rows, quantity) for trace in null_band(null.curve, 0, legend=True)]
    return [*traces, band(curve(rows), mark.color, 0, mark.label), line(curve(rows), mark, 0, hover)]


def _sweep_traces(
    sweep: pd.DataFrame, real: pd.DataFrame, measure: Measure, layers: list[int], state: State
) -> list[go.Scatter]:
    rows = measured(real, measure.name, measure.prompts)
    traces = _controls(sweep, measure, state) + _baseline(baseline_of(rows), measure, layers)
    for mark, part in marked_methods(single_layers(rows)):
        drawn = _scaled(curve(part), measure)
        ordered = part.sort_values("layer", kind="stable")
        hover = hover_text(mark.label, ordered, share=measure.scale == "share")
        traces += [band(drawn, mark.color, 0, mark.label), line(drawn, mark, 0, hover)]
    return traces


def _scaled(drawn: Curve, measure: Measure) -> Curve:
    return on_cost_scale(drawn) if measure.scale == "cost" else drawn


def _baseline(rows: pd.DataFrame, measure: Measure, layers: list[int]) -> list[go.Scatter]:
    if rows.empty:
        return []
    span = np.array([layers[0] - 0.5, layers[-1] + 0.5])
    flat = _scaled(Curve(span, *(np.full(2, numbers(rows["value"])[0]) for _ in range(3))), measure)
    look = {"color": BASELINE.color, "dash": BASELINE.plotly_dash, "width": 1.5}
    return [
        go.Scatter(x=flat.x, y=flat.value, mode="lines", name=BASELINE.label, line=look, hoverinfo="skip")
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


def _controls(sweep: pd.DataFrame, measure: Measure, state: State) -> list[go.Scatter]:
    """Where edits that know nothing of the classes land: the range of the first edit's controls."""
    traces: list[go.Scatter] = []
    for kind, mark in CONTROLS.items():
        found = control_range(sweep, measure, state.ot, kind)
        if found is not None:
            drawn, draws = found
            look = replace(mark, label=f"{mark.label} ({draws} draws)")
            traces += null_band(_scaled(drawn, measure), 0, legend=True, mark=look)
    return traces


def _paper(tables: Tables, _run: OpenRun, state: State) -> Figure:
    quantity = quantity_of(state.measure)
    if quantity is not None:
        return quantity_by_layer(tables["geometry"], quantity, style=PAPER_STYLE)
    return localization_curve(tables["localization"], state.measure, style=PAPER_STYLE)


def _code(run: OpenRun, state: State) -> str:
    quantity = quantity_of(state.measure)
    if quantity is not None:
        imports = (
            "import pandas as pd",
            "from ot_lens import plots",
            "from ot_lens.explorer.depth_view import quantity_by_layer",
        )
        draw = f'figure = quantity_by_layer(geometry, {quantity!r}, style="{PAPER_STYLE}")'
        return program(run, "depth", imports, [table("geometry"), draw])
    draw = f'figure = plots.localization_curve(localization, {state.measure!r}, style="{PAPER_STYLE}")'
    return program(run, "depth", SWEEP_IMPORTS, [*sweep_lines(run, state, state.keys), draw])


def reading(run: OpenRun, state: State) -> str:
    """What the strip says at the chosen layers, in words: value, interval, n."""
    if quantity_of(state.measure) is not None or not state.measure:
        return ""
    measure = measure_named(state.measure)
    rows = measured(_real_rows(run, state), measure.name, measure.prompts)
    parts = []
    for mark, part in marked_methods(single_layers(rows)):
        here = part[part["layer"].eq(state.layer)]
        texts = hover_text(mark.label, here, share=measure.scale == "share")
        parts += [unescape(text.replace("<br>", " ", 1).replace("<br>", ", ")) for text in texts]
    return f"Layer {state.layer}: {'; '.join(parts)}." if parts else ""


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
