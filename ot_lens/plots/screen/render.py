"""A description as a plotly figure."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ot_lens.plots.description import Axis, Description, Panel
from ot_lens.plots.gallery import Entry
from ot_lens.plots.screen.cells import color_axis, heat_map
from ot_lens.plots.screen.elements import Place, Trace, traces_of
from ot_lens.plots.screen.layout import (
    BAR,
    Frame,
    add_color_bars,
    add_legend,
    add_slider,
    axis_name,
    empty_figure,
)
from ot_lens.plots.screen.text import position, title
from ot_lens.plots.style import SIGNIFICANT

SQUARE, ONE_SQUARE, FLAT, EQUAL, CURVES, PER_INCH = 380, 440, 240, 300, 270, 175
# The width of the plotting area for which gaps have the size they need: that of a window of 1200 pixels.
WIDTH = 820
# Between panels, with room for the title of a y axis and short names of its ticks; with neither; for each
# letter beyond.
GAP_X, BARE, LETTER, SHORT = 70, 28, 7, 4
BACKGROUND = "rgba(128,128,128,0.14)"


def draw(description: Description) -> go.Figure:
    """Draw a description with plotly; a click on an entry of the legend hides it in every panel."""
    frames = list(dict.fromkeys(panel.frame for panel in description.panels if panel.frame is not None))
    panels = [p for p in description.panels if p.frame is None or p.frame == frames[0]]
    columns = _columns(description, panels)
    fixed = len(frames) < 2
    axes = [_frame(panel, i, fixed=fixed) for i, panel in enumerate(panels)]
    if description.share == "y":
        for number, (_, _, y) in enumerate(axes):
            y["showticklabels"] = number % columns == 0
    figure = empty_figure(axes, columns, _row(description, panels), _gap(description, panels, columns))
    if panels[0].cells is not None:
        return _heat_maps(figure, panels)
    owners: list[int] = []
    positions: list[int | None] = [*frames] if frames else [None]
    for frame in positions:
        traces = _traces([panel for panel in description.panels if panel.frame == frame])
        owners += [frame or 0] * len(traces)
        figure.add_traces(traces)
    if not fixed:
        first = frames[0] if description.first is None else description.first
        add_slider(figure, owners, frames, first, description.slider)
        return figure
    if not description.collect and not panels[0].equal:
        return figure.update_layout(showlegend=False)
    return add_legend(figure)


def showing(entry: Entry) -> Callable[..., go.Figure]:
    """The function that draws a figure of the gallery."""

    @wraps(entry.describe)
    def shown(*tables: Any, **options: Any) -> go.Figure:
        return draw(entry.describe(*tables, **{**entry.on_screen, **options}))

    shown.__annotations__ = {"return": go.Figure}
    return shown


def _traces(panels: Sequence[Panel]) -> list[Trace]:
    """Traces of all panels at one position of the slider, each label once in the legend."""
    traces: list[Trace] = []
    seen: set[str] = set()
    for number, panel in enumerate(panels):
        for element in panel.elements:
            for trace in traces_of(element, Place(panel, number)):
                if trace["showlegend"]:
                    trace["showlegend"] = trace["legendgroup"] not in seen
                    seen.add(trace["legendgroup"])
                traces.append(trace)
    return traces


def _heat_maps(figure: go.Figure, panels: Sequence[Panel]) -> go.Figure:
    shared = _one_scale(panels)
    cells = [panel.cells for panel in panels if panel.cells is not None]
    scales = [one.scale for one in cells]
    add_color_bars(figure, [color_axis(scale) for scale in (scales[:1] if shared else scales)])
    for index, (panel, one) in enumerate(zip(panels, cells, strict=True)):
        name = axis_name("coloraxis", 0 if shared else index)
        figure.add_traces(list(heat_map(panel, one, Place(panel, index), name)))
    figure.update_layout(plot_bgcolor=BACKGROUND)
    dotted = list(figure.select_traces({"name": SIGNIFICANT}))
    for number, trace in enumerate(dotted):
        trace.showlegend = number == 0
    return add_legend(figure) if dotted else figure.update_layout(showlegend=False)


def _one_scale(panels: Sequence[Panel]) -> bool:
    """Whether one color bar serves all heat maps, if there are any."""
    return len({panel.cells.scale for panel in panels if panel.cells is not None}) <= 1


def _bare(description: Description) -> bool:
    """Whether nothing is written beside panels but for the first of a row."""
    return description.share == "y" and not any(panel.y.title for panel in description.panels)


def _columns(description: Description, panels: Sequence[Panel]) -> int:
    """Panels in a row: as on paper, but no more than there is room for beside titles and color bars."""
    if description.slider:
        return min(2 if len(panels) in (2, 4) else 3, len(panels))
    if _bare(description):
        return min(description.columns, len(panels))
    return min(description.columns, 3 if _one_scale(panels) else 2, len(panels))


def _gap(description: Description, panels: Sequence[Panel], columns: int) -> float:
    """The gap between panels in parts of the width; in all less than half of it."""
    if _bare(description):
        return BARE / WIDTH
    names = [] if description.share == "y" else [name for panel in panels for name in _names(panel)]
    longer = max((len(name) - SHORT for name in names), default=0)
    beside = LETTER * max(longer, 0) + (0 if _one_scale(panels) else BAR)
    return min((GAP_X + beside) / max(WIDTH - beside, 1), 0.45 / max(columns - 1, 1))


def _names(panel: Panel) -> Sequence[str]:
    """What is written in front of the rows of a panel."""
    return panel.cells.rows if panel.cells is not None else [name for _, name in panel.y.ticks or ()]


def _row(description: Description, panels: Sequence[Panel]) -> int:
    """Height of a panel in CSS pixels."""
    cells = panels[0].cells
    if cells is not None:
        return FLAT if not cells.square else SQUARE if len(panels) > 1 else ONE_SQUARE
    if panels[0].equal:
        return EQUAL
    return max(CURVES, round(PER_INCH * description.height)) if not description.slider else 340


def _frame(panel: Panel, index: int, *, fixed: bool) -> Frame:
    if panel.cells is not None:
        common = {"type": "category", "nticks": 16, "constrain": "domain", "showgrid": False}
        # Marks on cells would widen the axes.
        x, y = (
            {"title": {"text": title(axis.title)}, "range": [-0.5, size - 0.5]} | common
            for axis, size in zip((panel.x, panel.y), panel.cells.shape[::-1], strict=True)
        )
        y |= {"scaleanchor": f"x{index + 1}"} if panel.cells.square else {}
        return title(panel.title), x, y
    x, y = _axis(panel.x, panel, fixed), _axis(panel.y, panel, fixed)
    if panel.equal:
        y |= {"scaleanchor": f"x{index + 1}", "scaleratio": 1}
    return title(panel.title), x, y


def _axis(axis: Axis, panel: Panel, fixed: bool) -> dict[str, Any]:
    name = axis.title.removesuffix(" (%)") if axis.scale == "share" else axis.title
    if panel.equal and not fixed:
        name = name.partition(" (")[0]  # the share of variance differs from frame to frame
    look: dict[str, Any] = {"title": {"text": title(name)}}
    if axis.scale == "log":
        look |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    if axis.scale == "share":
        look |= {"tickformat": ".0%", "dtick": axis.step}
    if axis.ticks is not None:
        at = position(np.array([tick for tick, _ in axis.ticks]), axis.scale)
        look |= {"tickvals": at.tolist(), "ticktext": [title(tick) for _, tick in axis.ticks], "tickangle": 0}
    elif axis.whole:
        look["tickformat"] = "d"
    if axis.limits is not None and (fixed or not panel.equal):
        ends = position(np.array(axis.limits), axis.scale)
        ends = np.log10(ends) if axis.scale == "log" else ends
        free = axis.scale == "linear" and axis.ticks is None and not panel.equal
        margin = 0.04 * (ends[1] - ends[0]) if free else 0.0
        look["range"] = [float(ends[0] - margin), float(ends[1] + margin)]
    elif axis.zero:
        look["rangemode"] = "tozero"
    return look
