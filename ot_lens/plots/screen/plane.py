"""The principal plane for the screen: one panel an edit, a slider where there are several layers."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ot_lens.plots.depth import depths, rivals
from ot_lens.plots.plane import (
    BEFORE,
    axis_titles,
    displacements,
    ellipse_outline,
    plane_limits,
    plane_rows,
    records,
    states_of,
)
from ot_lens.plots.rows import layers_of, spread_out
from ot_lens.plots.screen.panels import Panel, add_layer_slider, add_legend, panel_figure
from ot_lens.plots.screen.traces import axes_of, points
from ot_lens.plots.style import CLASSES, Mark, method_mark

MOST_LAYERS = 12
MEAN = "#6E7681"


def principal_plane(
    plane: pd.DataFrame,
    ellipses: pd.DataFrame,
    *,
    layer: int | None = None,
    position: int | str | None = None,
) -> go.Figure:
    """Harmful, harmless and moved activations, with 95 % ellipses and displacements.

    Args:
        plane: points, the first table of `geometry.principal_plane`.
        ellipses: means and covariances, the second.
        layer: the layer shown first; the middle one when None.
        position: token position; the last in the table when None.

    Raises:
        TableError: a column is missing, the layer is not in the table, or there is nothing to draw.
    """
    chosen, _points, outlines = plane_rows(plane, ellipses, layer, position)
    states = states_of(plane)
    layers = sorted({*spread_out(layers_of(plane), MOST_LAYERS), chosen})
    x, y = axis_titles(outlines) if len(layers) == 1 else ("PC 1", "PC 2")
    panels = [
        Panel(method_mark(state).label if state else "activations", {"title": {"text": x}}, _square(index, y))
        for index, state in enumerate(states or [""])
    ]
    figure = panel_figure(panels, columns=2 if len(panels) in (2, 4) else 3, row=300)
    owners: list[int] = []
    for shown in layers:
        traces = _layer(*plane_rows(plane, ellipses, shown, position)[1:], states)
        owners += [shown] * len(traces)
        figure.add_traces(traces)
    if len(layers) == 1:
        return add_legend(_fixed(figure, *plane_rows(plane, ellipses, chosen, position)[1:]))
    add_layer_slider(figure, owners, layers, chosen)
    return figure


def plane_by_depth(
    plane: pd.DataFrame, ellipses: pd.DataFrame, *, position: int | str | None = None
) -> go.Figure:
    """A projection beside a transport, a slider over the depth; see `ot_lens.plots.plane_by_depth`.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    layers, shown = depths(plane, position), [BEFORE, *rivals(plane)]
    points, outlines = (
        table[table["state"].isin(shown) & table["layer"].isin(layers)] for table in (plane, ellipses)
    )
    return principal_plane(points, outlines, layer=layers[0], position=position)


def _square(index: int, title: str) -> dict[str, Any]:
    """The same scale on both axes."""
    return {"title": {"text": title}, "scaleanchor": f"x{index + 1}", "scaleratio": 1}


def _fixed(figure: go.Figure, rows: pd.DataFrame, outlines: pd.DataFrame) -> go.Figure:
    """One scale for all panels."""
    x, y = plane_limits(rows, outlines)
    return figure.update_xaxes(range=list(x)).update_yaxes(range=list(y))


def _layer(rows: pd.DataFrame, outlines: pd.DataFrame, states: list[str]) -> list[go.Scatter]:
    traces = []
    for panel, state in enumerate(states or [None]):
        for label, mark in CLASSES.items():
            traces += _cloud(rows, outlines, label, BEFORE, mark, panel)
        if state is not None:
            traces += [_arrows(rows, state, panel), _mean_arrow(outlines, state, panel)]
            traces += _cloud(rows, outlines, "harmful", state, method_mark(state), panel)
            traces += _outline(outlines, "harmless", state, CLASSES["harmless"], "dot", panel)
    return traces


def _cloud(
    rows: pd.DataFrame, outlines: pd.DataFrame, label: str, state: str, mark: Mark, panel: int
) -> list[go.Scatter]:
    here = rows[(rows["class"] == label) & (rows["state"] == state)]
    moved = state != BEFORE
    x, y = (here[name].to_numpy(np.float32) for name in ("pc1", "pc2"))
    look: dict[str, Any] = {"opacity": 0.85 if moved else 0.45, "showlegend": moved or panel == 0}
    hover = f"{label} prompt %{{customdata}}{', moved' if moved else ''}<extra></extra>"
    look |= {"customdata": here["prompt"].to_numpy(), "hovertemplate": hover}
    traces = [points(x, y, mark, panel, None, hollow=label == "harmless", **look).update(marker_size=5)]
    dash = "solid" if moved else mark.plotly_dash
    return traces + _outline(outlines, label, state, mark, dash, panel)


def _outline(
    outlines: pd.DataFrame, label: str, state: str, mark: Mark, dash: str, panel: int
) -> list[go.Scatter]:
    look = {"color": mark.color, "dash": dash, "width": 2}
    drawn = [
        ellipse_outline(row).astype(np.float32)
        for row in records(outlines[(outlines["class"] == label) & (outlines["state"] == state)])
    ]
    return [
        go.Scatter(
            x=xy[:, 0],
            y=xy[:, 1],
            mode="lines",
            line=look,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=mark.label,
            **axes_of(panel),
        )
        for xy in drawn
    ]


def _arrows(rows: pd.DataFrame, state: str, panel: int) -> go.Scatter:
    """Displacements as one broken line with arrow heads at its ends."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for x, y, dx, dy in displacements(rows, state).tolist():
        xs += [x, x + dx, None]
        ys += [y, y + dy, None]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines+markers",
        line={"color": "rgba(128,128,128,0.5)", "width": 1},
        hoverinfo="skip",
        marker={
            "symbol": "arrow",
            "angleref": "previous",
            "size": [0, 7, 0] * (len(xs) // 3),
            "color": "rgba(128,128,128,0.7)",
        },
        showlegend=False,
        legendgroup=method_mark(state).label,
        **axes_of(panel),
    )


def _mean_arrow(outlines: pd.DataFrame, state: str, panel: int) -> go.Scatter:
    harmful = [row for row in records(outlines) if row["class"] == "harmful"]
    ends = [row for name in (BEFORE, state) for row in harmful if row["state"] == name]
    return go.Scatter(
        x=[row["mean1"] for row in ends],
        y=[row["mean2"] for row in ends],
        mode="lines+markers",
        line={"color": MEAN, "width": 3},
        marker={"symbol": "arrow", "angleref": "previous", "size": [0, 14][: len(ends)], "color": MEAN},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=method_mark(state).label,
        **axes_of(panel),
    )
