"""MethodSpec comparison for the screen: every single layer can be pointed at."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ot_lens.plots.comparison import TITLES, drawable_columns, drawable_pairs
from ot_lens.plots.measures import (
    RIGHT,
    SUCCESS,
    Contender,
    Measure,
    Values,
    baseline,
    contenders,
    extent,
    front,
    interval,
    places,
    sweep_rows,
)
from ot_lens.plots.screen.panels import (
    Panel,
    add_legend,
    cost_position,
    measure_axis,
    panel_figure,
    plain,
)
from ot_lens.plots.screen.traces import axes_of, error_bars, number, points
from ot_lens.plots.style import BASELINE, Mark

ROW_OF_METHODS = 34


def method_comparison(localization: pd.DataFrame) -> go.Figure:
    """Refusal rate against harmless cost, and right answers against refusals, with intervals both ways.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    sweep = sweep_rows(localization)
    pairs, methods = drawable_pairs(sweep), contenders(sweep)
    titles = [TITLES[x.key] for x, _ in pairs]
    panels = [Panel(t, _axis(x, sweep), _axis(y, sweep)) for t, (x, y) in zip(titles, pairs, strict=True)]
    figure = panel_figure(panels, columns=len(panels), row=340)
    for panel, (x, y) in enumerate(pairs):
        if y is RIGHT:
            figure.add_trace(_diagonal(panel, rising=x is SUCCESS))
        elif y is SUCCESS:
            figure.add_trace(_front(methods, x, panel))
        for method in methods:
            figure.add_traces(_scatter(method, x, y, panel))
        look = {"showlegend": panel == 0}
        figure.add_traces(_cross(baseline(sweep), BASELINE, x, y, panel, "the model as it is", **look))
    return add_legend(figure)


def _axis(measure: Measure, sweep: pd.DataFrame) -> dict[str, Any]:
    return measure_axis(measure, f"{measure.prompts}: {measure.label}", extent(sweep, measure))


def _short_axis(measure: Measure, sweep: pd.DataFrame) -> dict[str, Any]:
    """The axis of a narrow panel: its title names the prompts already."""
    axis = measure_axis(measure, measure.label, extent(sweep, measure)) | {"tickangle": 0}
    return axis | {"dtick": 0.5} if measure.scale == "share" else axis


def _front(methods: list[Contender], x: Measure, panel: int) -> go.Scatter:
    """The points that no other beats, joined by steps."""
    cost, reached = front(places(methods, x, SUCCESS)).T
    return go.Scatter(
        x=cost_position(cost) if x.scale == "cost" else cost,
        y=reached,
        mode="lines",
        name="Pareto front",
        legendgroup="Pareto front",
        showlegend=panel == 0,
        hoverinfo="skip",
        line={"color": "rgba(128,128,128,0.9)", "dash": "dot", "shape": "hv", "width": 1.5},
        **axes_of(panel),
    )


def _diagonal(panel: int, *, rising: bool) -> go.Scatter:
    return go.Scatter(
        x=[0, 1],
        y=[0, 1] if rising else [1, 0],
        mode="lines",
        fill="tozeroy",
        fillcolor="rgba(128,128,128,0.08)",
        hoverinfo="skip",
        line={"color": "rgba(128,128,128,0.6)", "width": 1},
        showlegend=False,
        **axes_of(panel),
    )


def _scatter(method: Contender, x: Measure, y: Measure, panel: int) -> list[go.Scatter]:
    traces = []
    if method.others:
        places = np.array([[_place(found, x)[0], _place(found, y)[0]] for found in method.others.values()])
        hover = [_hover(method.mark, f"layer {n}", found, x, y) for n, found in method.others.items()]
        faint = points(places[:, 0], places[:, 1], method.mark, panel, hover, showlegend=False, opacity=0.4)
        traces.append(faint.update(marker_size=5))
    traces += _cross(method.together, method.mark, x, y, panel, "all layers", hollow=True, showlegend=False)
    best = f"layer {method.layer}, its best"
    return traces + _cross(method.best, method.mark, x, y, panel, best, showlegend=panel == 0)


def _place(found: Values, measure: Measure) -> np.ndarray:
    """Value, low, high on the axis's scale."""
    ends = np.array(interval(found, measure))
    return cost_position(ends) if measure.scale == "cost" else ends


def _cross(
    found: Values, mark: Mark, x: Measure, y: Measure, panel: int, where: str, **look: Any
) -> list[go.Scatter]:
    px, py = _place(found, x), _place(found, y)
    if not np.isfinite([px[0], py[0]]).all():
        return []
    bars: dict[str, Any] = {
        "error_x": error_bars(_arms(px), mark.color),
        "error_y": error_bars(_arms(py), mark.color),
    }
    return [points([px[0]], [py[0]], mark, panel, [_hover(mark, where, found, x, y)], **bars, **look)]


def _arms(ends: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.clip([[ends[0] - ends[1]], [ends[2] - ends[0]]], 0.0, None))


def _hover(mark: Mark, where: str, found: Values, *measures: Measure) -> str:
    lines = [f"<b>{plain(mark.label)}</b>, {where}"]
    for measure in measures:
        value, low, high = (number(end, share=measure.scale == "share") for end in interval(found, measure))
        lines.append(f"{measure.prompts}: {measure.label.removesuffix(' (%)')} {value} [{low}, {high}]")
    return "<br>".join(lines)


def method_intervals(localization: pd.DataFrame) -> go.Figure:
    """One row a method, one panel a measure: best single layer (filled) and all layers together (hollow).

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    sweep = sweep_rows(localization)
    methods = contenders(sweep)
    shown = drawable_columns(sweep)
    names = [plain(m.mark.label if m.layer is None else f"{m.mark.label}, layer {m.layer}") for m in methods]
    rows = {"tickvals": list(range(len(methods))), "ticktext": names, "range": [len(methods) - 0.4, -0.6]}
    panels = [
        Panel(m.prompts, _short_axis(m, sweep), rows | {"showticklabels": i == 0})
        for i, m in enumerate(shown)
    ]
    figure = panel_figure(panels, columns=len(shown), row=60 + ROW_OF_METHODS * len(methods), width=2000)
    for panel, measure in enumerate(shown):
        figure.add_traces(_forest(sweep, methods, measure, panel))
    return figure.update_layout(showlegend=False)


def _forest(sweep: pd.DataFrame, methods: list[Contender], measure: Measure, panel: int) -> list[go.Scatter]:
    traces = []
    base = _place(baseline(sweep), measure)[0]
    if np.isfinite(base):
        look = {"color": BASELINE.color, "dash": "dash", "width": 1.2}
        height = [-0.6, len(methods) - 0.4]
        traces.append(
            go.Scatter(x=[base, base], y=height, mode="lines", line=look, hoverinfo="skip", **axes_of(panel))
        )
    for row, method in enumerate(methods):
        best = "all layers" if method.layer is None else f"layer {method.layer}"
        for found, offset, where in ((method.best, -0.16, best), (method.together, 0.16, "all layers")):
            ends = _place(found, measure)
            if np.isfinite(ends[0]):
                hover, hollow = [_hover(method.mark, where, found, measure)], found is method.together
                bars = error_bars(_arms(ends), method.mark.color)
                traces.append(
                    points([ends[0]], [row + offset], method.mark, panel, hover, hollow=hollow, error_x=bars)
                )
    return traces
