"""Panels on the screen: side by side where there is room, under each other on a phone. Sizes in CSS pixels.

Colours of text and grid are left to the page, so that one figure serves a light and a dark one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from ot_lens.plots.lines import COST_KNEE, cost_limit, cost_ticks, spans_decades, tick_label
from ot_lens.plots.measures import Measure

ROW, GAP_X, TITLE, SLIDER, LEGEND_ROW = 270, 70, 96, 80, 22
MARGIN = {"l": 62, "r": 14, "t": 40, "b": 50}
GRID = "rgba(128,128,128,0.22)"
AXIS: dict[str, Any] = {
    "showline": True,
    "linecolor": "rgba(128,128,128,0.7)",
    "gridcolor": GRID,
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "rgba(128,128,128,0.7)",
    "ticklen": 4,
    "automargin": True,
    "title": {"standoff": 6},
}
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13}


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its title and what each axis has beyond the common look."""

    title: str
    x: Mapping[str, Any] = field(default_factory=dict)
    y: Mapping[str, Any] = field(default_factory=dict)


def panel_figure(panels: Sequence[Panel], columns: int, *, row: int = ROW, width: int = 1000) -> go.Figure:
    """An empty figure with its panels; traces go to axes `x1`, `y1`, `x2`, `y2` and so on.

    Args:
        panels: at least one.
        columns: panels in a row on a wide screen; under each other on a phone, see `stacked`.
        row: height of a panel.
        width: width that the gaps are measured against.
    """
    layout = _placed(len(panels), columns, row, width)
    for number, panel in enumerate(panels, start=1):
        for letter, own in (("x", panel.x), ("y", panel.y)):
            name = f"{letter}axis{'' if number == 1 else number}"
            layout[name] |= _merged(AXIS, own) | {"anchor": f"{'y' if letter == 'x' else 'x'}{number}"}
        layout["annotations"][number - 1]["text"] = f"<b>{plain(panel.title)}</b>"
    layout["meta"] = {"panels": len(panels), "row": row, "below": 0}
    layout |= {"margin": dict(MARGIN), "font": FONT, "hovermode": "closest", "template": go.layout.Template()}
    layout |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False}
    return go.Figure(layout=layout)


def stacked(figure: go.Figure, width: int = 360) -> dict[str, Any]:
    """What changes in the layout on a phone: every panel as wide as the page, one under the other."""
    meta = figure.layout.meta
    placed = _placed(meta["panels"], 1, meta["row"], width)
    placed["height"] += meta["below"]
    titles = placed.pop("annotations")
    notes = [note.to_plotly_json() for note in figure.layout.annotations]
    placed["annotations"] = [
        note | {key: titles[i][key] for key in ("x", "y")} if i < len(titles) else note
        for i, note in enumerate(notes)
    ]
    for number in range(2, meta["panels"] + 1):
        placed[f"yaxis{number}"]["showticklabels"] = True
    return placed


def _placed(count: int, columns: int, row: int, width: int) -> dict[str, Any]:
    """Domains, title positions and the height of the plotting area."""
    columns = min(columns, count)
    rows = -(-count // columns)
    height = rows * row + (rows - 1) * TITLE
    gap_x, gap_y = GAP_X / width, TITLE / height
    wide, high = (1 - gap_x * (columns - 1)) / columns, row / height
    layout: dict[str, Any] = {"annotations": [], "height": height + MARGIN["t"] + MARGIN["b"]}
    for index in range(count):
        left, top = (index % columns) * (wide + gap_x), 1 - (index // columns) * (high + gap_y)
        suffix = "" if index == 0 else str(index + 1)
        layout[f"xaxis{suffix}"] = {"domain": [left, min(left + wide, 1.0)]}
        layout[f"yaxis{suffix}"] = {"domain": [max(top - high, 0.0), top]}
        layout["annotations"].append(
            {
                "x": left,
                "y": top,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "bottom",
                "yshift": 6,
                "showarrow": False,
                "font": {"size": 14},
            }
        )
    return layout


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged; the second one wins."""
    both = dict(base)
    for key, value in own.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def measure_axis(measure: Measure, title: str, extent: tuple[float, float]) -> dict[str, Any]:
    """An axis with the scale of a measure; values of a cost must go through `cost_position`."""
    if measure.scale == "share":
        name = title.removesuffix(" (%)")
        return {"title": {"text": name}, "tickformat": ".0%", "range": [-0.04, 1.04], "dtick": 0.25}
    if measure.scale == "cost":
        return cost_axis(title, extent[1])
    return {"title": {"text": title}} | (
        {"type": "log", "dtick": 1} if spans_decades(measure, extent) else {}
    )


def cost_axis(title: str, largest: float) -> dict[str, Any]:
    """An axis for values that went through `cost_position`."""
    ticks, top = cost_ticks(largest), cost_limit(largest)
    return {
        "title": {"text": title},
        "tickvals": cost_position(np.array(ticks)).tolist(),
        "ticktext": [tick_label(tick, largest) for tick in ticks],
        "range": cost_position(np.array([-COST_KNEE / 3, top])).tolist(),
    }


def cost_position(value: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Where a cost stands on the asinh scale that the paper figures have: linear near 0, then logarithmic."""
    return np.arcsinh(value / COST_KNEE)


def plain(text: str) -> str:
    """Text of a table as plotly shows it literally: plotly reads a few HTML tags in its labels."""
    return escape(text, quote=False)


def translucent(color: str, alpha: float) -> str:
    """A hexadecimal colour with an opacity."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def add_layer_slider(figure: go.Figure, owners: Sequence[int], layers: Sequence[int], shown: int) -> None:
    """A slider that shows the traces of one layer at a time.

    Args:
        figure: its last traces belong to layers, in the order of `owners`.
        owners: the layer of each of those traces.
        layers: layers in the order of the slider.
        shown: the layer shown first.
    """
    first = len(figure.data) - len(owners)
    for trace, owner in zip(figure.data[first:], owners, strict=True):
        trace.visible = owner == shown
    steps = [
        {
            "method": "restyle",
            "label": str(layer),
            "args": [{"visible": [owner == layer for owner in owners]}, list(range(first, len(figure.data)))],
        }
        for layer in layers
    ]
    look = {
        "currentvalue": {"prefix": "layer ", "xanchor": "left"},
        "pad": {"t": 52, "b": 6},
        "x": 0,
        "len": 1.0,
    }
    slider = {"steps": steps, "active": list(layers).index(shown), "y": 0, "yanchor": "top"} | look
    _make_room(figure.update_layout(sliders=[slider]), SLIDER)


def add_legend(figure: go.Figure, per_row: int = 6) -> go.Figure:
    """A legend under the panels, with room for its rows."""
    entries = sum(trace.showlegend is not False for trace in figure.data)
    place = {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"}
    return _make_room(figure.update_layout(legend=place), LEGEND_ROW * -(-entries // per_row))


def _make_room(figure: go.Figure, below: int) -> go.Figure:
    """Grow a figure downward; `meta` keeps how much, for a page that puts its own controls there."""
    meta = figure.layout.meta
    return figure.update_layout(
        height=figure.layout.height + below,
        margin_b=figure.layout.margin.b + below,
        meta=meta | {"below": meta["below"] + below},
    )
