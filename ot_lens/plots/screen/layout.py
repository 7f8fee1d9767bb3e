"""Panels on the screen: side by side where there is room, else under each other. Sizes in CSS pixels.

Colours of text and grid are left to the page, so that one figure serves a light and a dark one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

TITLE, SLIDER, LEGEND_ROW = 96, 80, 22
# The width of a color bar with its ticks and title.
BAR = 70
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
NOTE: dict[str, Any] = {
    "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "yshift": 6, "showarrow": False,
    "font": {"size": 14},
}  # fmt: skip
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13}


# title of a panel, and what its axes x and y have beyond the common look
Frame = tuple[str, dict[str, Any], dict[str, Any]]


def empty_figure(frames: Sequence[Frame], columns: int, row: int, gap: float) -> go.Figure:
    """A figure without traces, with axes `x1`, `y1`, `x2` and so on; its frames are `row` pixels high.

    The gap between two columns is a part of the width.
    """
    layout = _placed(len(frames), columns, row, gap)
    for index, (title, x, y) in enumerate(frames):
        layout[axis_name("xaxis", index)] |= _axis(x) | {"anchor": f"y{index + 1}"}
        layout[axis_name("yaxis", index)] |= _axis(y) | {"anchor": f"x{index + 1}"}
        layout["annotations"][index]["text"] = f"<b>{title}</b>"
    layout["meta"] = {"panels": len(frames), "row": row, "below": 0}
    layout |= {"margin": dict(MARGIN), "font": FONT, "hovermode": "closest", "template": go.layout.Template()}
    layout |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False}
    return go.Figure(layout=layout)


def axis_name(kind: str, index: int) -> str:
    """What plotly calls the axis of a panel."""
    return kind if index == 0 else f"{kind}{index + 1}"


def add_color_bars(figure: go.Figure, axes: Sequence[Mapping[str, Any]]) -> None:
    """One color bar beside all panels, or one behind each."""
    beside, layout = len(axes) == 1, figure.layout.to_plotly_json()
    for index, axis in enumerate(axes):
        bar = axis["colorbar"] | _bar_place(layout, index, beside=beside)
        figure.layout[axis_name("coloraxis", index)] = {**axis, "colorbar": bar}
    if beside:
        figure.update_layout(margin_r=BAR)


def _bar_place(layout: Mapping[str, Any], index: int, *, beside: bool) -> dict[str, Any]:
    """Right of all panels, or in the gap behind its own; as high as its own."""
    right = layout[axis_name("xaxis", index)]["domain"][1]
    low, high = layout[axis_name("yaxis", index)]["domain"]
    x = 1.01 if beside else right + 0.004
    return {"x": x, "y": (low + high) / 2, "len": max(high - low, 0.1) * 0.95}


def stacked(figure: go.Figure) -> dict[str, Any]:
    """Changes of the layout for a narrow window: every panel as wide as the page, stacked."""
    meta = figure.layout.meta
    placed = _placed(meta["panels"], 1, meta["row"])
    placed["height"] += meta["below"]
    own = figure.layout.to_plotly_json()
    notes = [dict(note) for note in own["annotations"]]
    titles = [{"x": title["x"], "y": title["y"]} for title in placed["annotations"]]
    for note, at in zip(notes, titles, strict=False):
        note.update(at)
    placed["annotations"] = notes
    for index in range(meta["panels"]):
        placed[axis_name("yaxis", index)]["showticklabels"] = True
        if (name := axis_name("coloraxis", index)) in own:
            placed[name] = {"colorbar": _bar_place(placed, index, beside=True)}
            placed["margin"] = {"r": BAR}
    return placed


def _placed(count: int, columns: int, row: int, gap_x: float = 0.0) -> dict[str, Any]:
    """Domains, title positions and the height of the plotting area; gaps in parts of its width."""
    columns = min(columns, count)
    rows = -(-count // columns)
    height = rows * row + (rows - 1) * TITLE
    gap_y = TITLE / height
    wide, high = (1 - gap_x * (columns - 1)) / columns, row / height
    layout: dict[str, Any] = {"annotations": [], "height": height + MARGIN["t"] + MARGIN["b"]}
    for index in range(count):
        left, top = (index % columns) * (wide + gap_x), 1 - (index // columns) * (high + gap_y)
        layout[axis_name("xaxis", index)] = {"domain": [left, min(left + wide, 1.0)]}
        layout[axis_name("yaxis", index)] = {"domain": [max(top - high, 0.0), top]}
        layout["annotations"].append(NOTE | {"x": left, "y": top})
    return layout


def _axis(own: Mapping[str, Any]) -> dict[str, Any]:
    """The common look of an axis, and its own."""
    return AXIS | dict(own) | {"title": AXIS["title"] | own["title"]}


def add_slider(
    figure: go.Figure, owners: Sequence[int], frames: Sequence[int], first: int, what: str
) -> None:
    """Add a slider that shows the traces of one frame at a time; `owners` has the frame of each trace."""
    for trace, owner in zip(figure.data, owners, strict=True):
        trace.visible = owner == first
    shown = {frame: {"visible": [owner == frame for owner in owners]} for frame in frames}
    every = list(range(len(owners)))
    steps = [{"method": "restyle", "label": str(f), "args": [change, every]} for f, change in shown.items()]
    look = {"pad": {"t": 52, "b": 6}, "x": 0, "len": 1.0, "y": 0, "yanchor": "top"}
    look |= {"currentvalue": {"prefix": f"{what} ", "xanchor": "left"}}
    slider = {"steps": steps, "active": list(frames).index(first)} | look
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
