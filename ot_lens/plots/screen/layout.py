"""Panels on the screen: side by side where there is room, under each other on a phone. Sizes in CSS pixels.

Colours of text and grid are left to the page, so that one figure serves a light and a dark one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

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
NOTE: dict[str, Any] = {
    "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "yshift": 6, "showarrow": False,
    "font": {"size": 14},
}  # fmt: skip
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13}


@dataclass(frozen=True)
class Frame:
    """One pair of axes: its title, and what each axis has beyond the common look."""

    title: str
    x: Mapping[str, Any]
    y: Mapping[str, Any]


def empty_figure(frames: Sequence[Frame], columns: int, *, row: int = ROW, width: int = 1000) -> go.Figure:
    """A figure without traces; they go to axes `x1`, `y1`, `x2`, `y2` and so on.

    Args:
        frames: At least one.
        columns: Frames in a row on a wide screen; on a phone they are stacked, see `stacked`.
        row: Height of a frame.
        width: Width that the gaps are measured against.
    """
    layout = _placed(len(frames), columns, row, width)
    for number, frame in enumerate(frames, start=1):
        for letter, own in (("x", frame.x), ("y", frame.y)):
            name = f"{letter}axis{'' if number == 1 else number}"
            layout[name] |= _merged(AXIS, own) | {"anchor": f"{'y' if letter == 'x' else 'x'}{number}"}
        layout["annotations"][number - 1]["text"] = f"<b>{frame.title}</b>"
    layout["meta"] = {"panels": len(frames), "row": row, "below": 0}
    layout |= {"margin": dict(MARGIN), "font": FONT, "hovermode": "closest", "template": go.layout.Template()}
    layout |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False}
    return go.Figure(layout=layout)


def stacked(figure: go.Figure, width: int = 360) -> dict[str, Any]:
    """Changes of the layout for a phone: every panel as wide as the page, stacked."""
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
        layout["annotations"].append(NOTE | {"x": left, "y": top})
    return layout


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged; the second one wins."""
    both = dict(base)
    for key, value in own.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def add_slider(
    figure: go.Figure, owners: Sequence[int], frames: Sequence[int], first: int, what: str
) -> None:
    """Add a slider that shows the traces of one frame at a time; `owners` has the frame of each trace."""
    for trace, owner in zip(figure.data, owners, strict=True):
        trace.visible = owner == first
    every = list(range(len(owners)))
    steps = [
        {
            "method": "restyle",
            "label": str(frame),
            "args": [{"visible": [owner == frame for owner in owners]}, every],
        }
        for frame in frames
    ]
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
