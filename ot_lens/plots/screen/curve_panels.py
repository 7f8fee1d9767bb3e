"""Panels of curves on the screen, from the same description as those on paper."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ot_lens.plots.panels import CurvePanel, Reference, Series
from ot_lens.plots.screen.panels import Panel, add_legend, panel_figure, plain
from ot_lens.plots.screen.traces import axes_of, band, error_bars, line, null_band, number, points

# symbols of mathtext in titles, as a browser shows them
SYMBOLS = {"$W_2^2$": "W<sub>2</sub><sup>2</sup>", "$k$": "<i>k</i>", "$t$": "<i>t</i>"}


def symbols(text: str) -> str:
    """A title whose mathematics a browser shows."""
    for mathtext, markup in SYMBOLS.items():
        text = text.replace(mathtext, markup)
    return text


def curve_screen(panels: Sequence[CurvePanel], columns: int = 3) -> go.Figure:
    """One pair of axes a panel, one legend for all; a click in it hides a line in every panel.

    Args:
        panels: at least one.
        columns: panels in a row on a wide screen.
    """
    figure = panel_figure([Panel("", _x_axis(panel), _y_axis(panel)) for panel in panels], columns)
    for note, panel in zip(figure.layout.annotations, panels, strict=True):
        note.text = f"<b>{symbols(plain(panel.title))}</b>"
    seen: set[str] = set()
    for index, panel in enumerate(panels):
        for shown in panel.bands:
            figure.add_traces(
                null_band(shown.curve, index, legend=_new(shown.mark.label, seen), mark=shown.mark)
            )
        figure.add_traces([_reference(r, panel, index, legend=_new(r.label, seen)) for r in panel.references])
        for part in panel.series:
            figure.add_traces(_series(part, panel, index, legend=_new(part.mark.label, seen)))
    return add_legend(figure)


def _new(label: str, seen: set[str]) -> bool:
    """Whether a label comes for the first time; none at all never does."""
    fresh = bool(label) and label not in seen
    seen.add(label)
    return fresh


def _x_axis(panel: CurvePanel) -> dict[str, Any]:
    title: dict[str, Any] = {"title": {"text": symbols(panel.x)}}
    if panel.ticks is None:
        return title | {"tickformat": "d"}
    at = [position for position, _ in panel.ticks]
    names = [name.replace("\n", "<br>") for _, name in panel.ticks]
    return title | {"tickvals": at, "ticktext": names, "range": [min(at) - 0.5, max(at) + 0.5]}


def _y_axis(panel: CurvePanel) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": symbols(panel.y)}}
    if panel.log:
        return axis | {"type": "log", "dtick": 1}
    if panel.limits is None:
        return axis
    margin = 0.04 * (panel.limits[1] - panel.limits[0])
    return axis | {"range": [panel.limits[0] - margin, panel.limits[1] + margin]}


def _series(part: Series, panel: CurvePanel, index: int, *, legend: bool) -> list[go.Scatter]:
    hover = _hover(part, panel)
    if not panel.joined:
        shown = points(part.curve.x, part.curve.value, part.mark, index, hover, showlegend=legend)
        return [shown.update(error_y=error_bars(part.curve.errors, part.mark.color))]
    drawn = line(part.curve, part.mark, index, hover, showlegend=legend)
    return [band(part.curve, part.mark.color, index, part.mark.label), drawn]


def _hover(part: Series, panel: CurvePanel) -> list[str]:
    names = {position: name.replace("\n", " ") for position, name in panel.ticks or ()}
    drawn = part.curve
    return [
        f"{plain(part.mark.label)}<br>{plain(panel.x or '')} {names.get(x, f'{x:g}')}: {number(value)}"
        + (f" [{number(low)}, {number(high)}]" if np.isfinite([low, high]).all() else "")
        for x, value, low, high in zip(drawn.x, drawn.value, drawn.low, drawn.high, strict=True)
    ]


def _reference(reference: Reference, panel: CurvePanel, index: int, *, legend: bool) -> go.Scatter:
    ends = panel.limits or (0.0, 1.0)
    span = [position for position, _ in panel.ticks] if panel.ticks else panel.positions
    across = [min(span) - 0.5, max(span) + 0.5] if panel.ticks else [min(span), max(span)]
    flat = [reference.value, reference.value]
    x, y = (flat, list(ends)) if reference.vertical else (across, flat)
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        name=reference.label,
        legendgroup=reference.label,
        showlegend=legend,
        hoverinfo="skip",
        line={"color": "#7A808A", "dash": "dot", "width": 1.2},
        **axes_of(index),
    )
