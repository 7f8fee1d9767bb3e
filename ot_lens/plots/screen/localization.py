"""Localization curves for the screen: a click on a method hides it in every panel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ot_lens.plots.localization import SHOWN, available, side_position
from ot_lens.plots.measures import Measure, extent, sweep_rows
from ot_lens.plots.rows import Curve, curve, layers_of, marked_methods, numbers
from ot_lens.plots.screen.panels import Panel, add_legend, measure_axis, panel_figure
from ot_lens.plots.screen.traces import (
    axes_of,
    band,
    error_bars,
    hover_text,
    line,
    on_cost_scale,
    points,
)
from ot_lens.plots.style import BASELINE, Mark
from ot_lens.tables import baseline_of, edits_of, every_layer, measured, single_layers


def localization_curves(localization: pd.DataFrame, *, measures: Sequence[str] = SHOWN) -> go.Figure:
    """Each measure by layer, one line a method, and the value for all layers together at the side.

    Args:
        localization: the table of `localize`.
        measures: keys of `ot_lens.plots.MEASURES`; those the table lacks are left out.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    sweep = sweep_rows(localization)
    shown = available(sweep, measures)
    acting = edits_of(sweep)
    layers = layers_of(single_layers(acting))
    figure = panel_figure([_panel(measure, acting, layers) for measure in shown], columns=2)
    for index, measure in enumerate(shown):
        figure.add_traces(_traces(sweep, measure, index, layers))
    return add_legend(figure)


def _panel(measure: Measure, acting: pd.DataFrame, layers: list[int]) -> Panel:
    rows = measured(acting, measure.name, measure.prompts)
    title = f"{measure.prompts}: {measure.label.partition(' (')[0]}"
    axis = measure_axis(measure, measure.label, extent(rows, measure))
    return Panel(title, _layer_axis(layers, side=len(every_layer(rows)) > 0), axis)


def _layer_axis(layers: list[int], *, side: bool) -> dict[str, Any]:
    step = max(1, -(-len(layers) // 10))
    shown, at = layers[::step], side_position(layers)
    names = [str(layer) for layer in shown]
    end = at + 0.6 * (at - layers[-1]) if side else layers[-1] + 0.5
    ticks = (
        {"tickvals": [*shown, at], "ticktext": [*names, "all"]}
        if side
        else {"tickvals": shown, "ticktext": names}
    )
    return {"title": {"text": "layer"}, "range": [layers[0] - 0.4, end]} | ticks


def _traces(sweep: pd.DataFrame, measure: Measure, panel: int, layers: list[int]) -> list[go.Scatter]:
    rows = measured(sweep, measure.name, measure.prompts)
    traces = _baseline(baseline_of(rows), measure, panel, layers)
    methods = list(marked_methods(rows))
    for index, (mark, part) in enumerate(methods):
        drawn = _scaled(curve(single_layers(part)), measure)
        traces.append(band(drawn, mark.color, panel, mark.label))
        hover = _hover(single_layers(part), mark, measure)
        traces.append(line(drawn, mark, panel, hover, showlegend=panel == 0))
        offset = (index - (len(methods) - 1) / 2) * 0.9 / max(len(methods), 4)
        traces += _side(
            every_layer(part), mark, measure, panel, side_position(layers) + offset * _room(layers)
        )
    return traces


def _room(layers: list[int]) -> float:
    return side_position(layers) - layers[-1]


def _hover(rows: pd.DataFrame, mark: Mark, measure: Measure) -> list[str]:
    ordered = rows.sort_values("layer", kind="stable")
    texts = hover_text(f"{mark.label}, {measure.prompts}", ordered, share=measure.scale == "share")
    return [f"layer {layer}: {text}" for layer, text in zip(ordered["layer"], texts, strict=True)]


def _side(rows: pd.DataFrame, mark: Mark, measure: Measure, panel: int, x: float) -> list[go.Scatter]:
    if not len(rows):
        return []
    ends = (numbers(rows[name]) for name in ("value", "low", "high"))
    drawn = _scaled(Curve(np.full(len(rows), x), *ends), measure)
    hover = hover_text(f"all layers: {mark.label}, {measure.prompts}", rows, share=measure.scale == "share")
    bars = error_bars(drawn.errors, mark.color)
    return [points(drawn.x, drawn.value, mark, panel, hover, showlegend=False, error_y=bars)]


def _baseline(rows: pd.DataFrame, measure: Measure, panel: int, layers: list[int]) -> list[go.Scatter]:
    if not len(rows):
        return []
    ends = [float(numbers(rows[name])[0]) for name in ("value", "low", "high")]
    span = np.array([layers[0] - 0.4, side_position(layers) + 0.6 * _room(layers)])
    flat = _scaled(Curve(span, *(np.full(2, end) for end in ends)), measure)
    look = {"color": BASELINE.color, "dash": BASELINE.plotly_dash, "width": 1.5}
    hover = hover_text(f"{BASELINE.label}, {measure.prompts}", rows, share=measure.scale == "share")
    drawn = go.Scatter(
        x=flat.x,
        y=flat.value,
        mode="lines",
        name=BASELINE.label,
        legendgroup=BASELINE.label,
        line=look,
        showlegend=panel == 0,
        text=hover * 2,
        hoverinfo="text",
        **axes_of(panel),
    )
    return [band(flat, BASELINE.color, panel, BASELINE.label), drawn]


def _scaled(drawn: Curve, measure: Measure) -> Curve:
    return on_cost_scale(drawn) if measure.scale == "cost" else drawn
