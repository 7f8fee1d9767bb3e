"""Panels of cells on the screen, from the same description as those on paper."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ot_lens.plots.heat_panels import MARK, MOST_NAMES
from ot_lens.plots.panels import HeatPanel, Scale
from ot_lens.plots.screen.curve_panels import symbols
from ot_lens.plots.screen.panels import Panel, panel_figure, plain
from ot_lens.plots.screen.traces import axes_of

SQUARE, FLAT = 380, 240
MOST_CELLS = 12


def heat_screen(panels: Sequence[HeatPanel], columns: int = 2) -> go.Figure:
    """One pair of axes a panel; panels of one scale share its colour bar.

    Args:
        panels: at least one.
        columns: panels in a row on a wide screen.
    """
    axes = [Panel("", _axis(panel.x), _rows_axis(panel, i + 1)) for i, panel in enumerate(panels)]
    figure = panel_figure(axes, min(columns, len(panels)), row=SQUARE if panels[0].square else FLAT)
    shared = all(panel.scale == panels[0].scale for panel in panels)
    for index, (note, panel) in enumerate(zip(figure.layout.annotations, panels, strict=True)):
        note.text = f"<b>{symbols(plain(panel.title))}</b>"
        bar = None if shared and index else _bar(figure, panel.scale, index, shared=shared)
        figure.add_trace(_cells(panel, index, bar))
        if panel.best is not None:
            figure.add_trace(_outline(panel, index))
    figure.update_layout(showlegend=False, plot_bgcolor="rgba(128,128,128,0.14)")
    return figure.update_layout(margin_r=70 if shared else figure.layout.margin.r)


def _axis(title: str) -> dict[str, Any]:
    look: dict[str, Any] = {"type": "category", "nticks": 16, "constrain": "domain", "showgrid": False}
    return look | {"title": {"text": symbols(title)}}


def _rows_axis(panel: HeatPanel, number: int) -> dict[str, Any]:
    return _axis(panel.y) | ({"scaleanchor": f"x{number}"} if panel.square else {})


def _bar(figure: go.Figure, scale: Scale, index: int, *, shared: bool) -> dict[str, Any]:
    """Beside all panels, or inside the gap right of its own."""
    suffix = "" if index == 0 else str(index + 1)
    x, y = figure.layout[f"xaxis{suffix}"].domain, figure.layout[f"yaxis{suffix}"].domain
    ticks = scale.ticks
    look: dict[str, Any] = {"thickness": 12, "x": 1.01 if shared else x[1] + 0.004, "xanchor": "left"}
    look |= {
        "y": (y[0] + y[1]) / 2,
        "len": max(y[1] - y[0], 0.1) * 0.95,
        "title": {"text": scale.label, "side": "right"},
    }
    if scale.log:
        powers = list(range(int(np.ceil(np.log10(scale.low))), int(np.floor(np.log10(scale.high))) + 1))
        return look | {"tickvals": powers, "ticktext": [f"10<sup>{power}</sup>" for power in powers]}
    if ticks is not None:
        names = [f"{100 * tick:.0f}" if scale.percent else f"{tick:g}" for tick in ticks]
        look |= {"tickvals": list(ticks), "ticktext": names}
    return look


def _cells(panel: HeatPanel, index: int, bar: dict[str, Any] | None) -> go.Heatmap:
    scale, z = panel.scale, panel.matrix.astype(np.float32)
    ends = [scale.low, scale.high]
    if scale.log:
        z, ends = np.log10(np.maximum(z, scale.low)), np.log10(ends).tolist()
    small = scale.numbered and max(panel.shape) <= MOST_CELLS and panel.shape[0] <= MOST_NAMES
    written = (
        [[_text(panel, r, c) for c in range(panel.shape[1])] for r in range(panel.shape[0])]
        if small
        else None
    )
    return go.Heatmap(
        x=list(panel.columns),
        y=list(panel.rows),
        z=z,
        zmin=ends[0],
        zmax=ends[1],
        colorscale=scale.maps[1],
        showscale=bar is not None,
        colorbar=bar,
        customdata=panel.matrix.astype(np.float32) if scale.log else None,
        hovertemplate=f"{symbols(panel.x)} %{{x}}, {symbols(panel.y)} %{{y}}: {_shown(scale)}<extra></extra>",
        text=written,
        texttemplate="%{text}" if small else None,
        textfont={"size": 11},
        **axes_of(index),
    )


def _shown(scale: Scale) -> str:
    """The number of a cell as plotly is to write it: of what was measured, where colour is its logarithm."""
    if scale.log:
        return "%{customdata:.3g}"
    return "%{z:.1%}" if scale.percent else "%{z:.3g}"


def _text(panel: HeatPanel, row: int, column: int) -> str:
    """The number of a cell: bold where the null does not explain it."""
    value = panel.matrix[row, column]
    if not np.isfinite(value):
        return ""
    text = panel.scale.text(value)
    return f"<b>{text}</b>" if panel.chance is not None and not panel.chance[row, column] else text


def _outline(panel: HeatPanel, index: int) -> go.Scatter:
    """A mark on the best cell; categories have no corners to draw along."""
    row, column = panel.best or (0, 0)
    look = {"symbol": "square-open", "size": 26, "color": MARK, "line": {"width": 3}}
    place = {"x": [panel.columns[column]], "y": [panel.rows[row]]}
    return go.Scatter(**place, mode="markers", marker=look, hoverinfo="skip", **axes_of(index))
