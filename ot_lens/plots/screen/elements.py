"""The elements of a description on a screen, as traces of plotly."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from ot_lens.plots.description import (
    Area,
    Arrows,
    Band,
    Curve,
    Element,
    Ellipse,
    Line,
    Panel,
    Path,
    Points,
    Reference,
    Scale,
    Text,
    Values,
)
from ot_lens.plots.screen.text import hover_texts, plain, position, translucent
from ot_lens.plots.style import DASHES, Mark

BAND_ALPHA, NULL_ALPHA = 0.16, 0.3
MEAN = "#6E7681"


def axes_of(panel: int) -> dict[str, str]:
    """The axes of a panel, counted from 0."""
    return {"xaxis": f"x{panel + 1}", "yaxis": f"y{panel + 1}"}


@dataclass(frozen=True)
class Place:
    """A panel, and its number among the axes of the figure, counted from 0."""

    panel: Panel
    number: int

    @property
    def axes(self) -> dict[str, str]:
        """The axes, for a trace."""
        return axes_of(self.number)

    def at(self, curve: Curve) -> Curve:
        """A curve at its positions, in single precision: half the bytes, and enough for a screen."""
        x, y = self.panel.x.scale, self.panel.y.scale

        def placed(values: Values | None, scale: Scale) -> Any:
            return None if values is None else position(values, scale).astype(np.float32)

        value, low, high = (placed(values, y) for values in (curve.value, curve.low, curve.high))
        return Curve(
            placed(curve.x, x), value, low, high, None, placed(curve.x_low, x), placed(curve.x_high, x)
        )


def traces_of(element: Element, place: Place) -> Iterator[go.Scatter]:
    """The traces of one element."""
    return TRACES[type(element)](element, place)


def band_outline(curve: Curve) -> Float[np.ndarray, "2 points"]:
    """Outline of a band, each measured stretch its own polygon: along the top and back along the bottom.

    Rows are x and y; a column of NaN separates two polygons.
    """
    known = np.isfinite(curve.low) & np.isfinite(curve.high)
    outline = [np.empty((2, 0))]
    for stretch in np.split(np.arange(len(known)), np.nonzero(np.diff(known))[0] + 1):
        if len(stretch) and known[stretch[0]]:
            x, back = curve.x[stretch], stretch[::-1]
            polygon = [np.append(x, x[::-1]), np.append(curve.high[stretch], curve.low[back])]
            outline += [np.full((2, 1), np.nan), np.array(polygon)]
    return np.concatenate(outline, axis=1)[:, 1:]


def error_bars(errors: np.ndarray | None, color: str) -> dict[str, Any]:
    """Interval bars from rows (below, above)."""
    if errors is None:
        return {}
    bars = {"type": "data", "symmetric": False, "array": errors[1], "arrayminus": errors[0]}
    return bars | {"color": color, "thickness": 1.2, "width": 0}


def _scatter(x: Any, y: Any, place: Place, group: str = "", **look: Any) -> go.Scatter:
    """A trace without hover text or entry in the legend."""
    style = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "name": plain(group)}
    return go.Scatter(x=x, y=y, legendgroup=group, **place.axes, **(style | look))


def _filled(curve: Curve, mark: Mark, place: Place, alpha: float, **look: Any) -> go.Scatter:
    color = translucent(mark.color, alpha)
    style: dict[str, Any] = {"fill": "toself", "fillcolor": color, "line": {"width": 0}}
    x, y = band_outline(curve)
    return _scatter(x, y, place, mark.label, **(style | look))


def _line(line: Line, place: Place) -> Iterator[go.Scatter]:
    curve, mark = place.at(line.curve), line.mark
    yield _filled(curve, mark, place, BAND_ALPHA)
    look: dict[str, Any] = {"line": {"color": mark.color, "dash": mark.plotly_dash, "width": 2}}
    if line.markers:
        look |= {"marker": {"symbol": mark.symbol, "color": mark.color, "size": 7}, "mode": "lines+markers"}
    if curve.isolated.any():
        look["error_y"] = error_bars(np.where(curve.isolated, curve.errors, 0.0), mark.color)
    texts = hover_texts(mark.label, line.curve, place.panel)
    yield _scatter(
        curve.x, curve.value, place, mark.label, showlegend=True, text=texts, hoverinfo="text", **look
    )


def _points(points: Points, place: Place) -> Iterator[go.Scatter]:
    curve, mark = place.at(points.curve), points.mark
    look: dict[str, Any] = {
        "mode": "markers",
        "showlegend": points.legend,
        "opacity": 0.45 if points.faint else 1.0,
    }
    symbol = mark.symbol + ("-open" if points.hollow else "")
    size = 5 if points.size < 3 else 9
    look["marker"] = {"symbol": symbol, "color": mark.color, "size": size}
    look["marker"]["line"] = {"width": 1.6 if points.hollow else 0}
    if np.isfinite([curve.low, curve.high]).any():
        look["error_y"] = error_bars(curve.errors, mark.color)
    look["error_x"] = error_bars(curve.x_errors, mark.color)
    if points.ids:
        hover = f"{plain(points.notes[0])} %{{customdata}}<extra></extra>"
        look |= {
            "customdata": np.array(points.ids, dtype=np.int32),
            "hovertemplate": hover,
            "hoverinfo": None,
        }
    else:
        look |= {
            "text": hover_texts(mark.label, points.curve, place.panel, points.notes),
            "hoverinfo": "text",
        }
    yield _scatter(curve.x, curve.value, place, mark.label, **look)


def _band(band: Band, place: Place) -> Iterator[go.Scatter]:
    curve, mark = place.at(band.curve), band.mark
    yield _filled(curve, mark, place, NULL_ALPHA, showlegend=True)
    dotted = {"color": mark.color, "dash": "dot", "width": 1.2}
    yield _scatter(curve.x, curve.value, place, mark.label, line=dotted)


def _area(area: Area, place: Place) -> Iterator[go.Scatter]:
    curve = place.at(Curve(area.x, area.low, area.low, area.high))
    mark = Mark(area.label, area.color, "circle")
    yield _filled(curve, mark, place, area.opacity, showlegend=bool(area.label))


def _reference(reference: Reference, place: Place) -> Iterator[go.Scatter]:
    if reference.vertical and place.panel.y.limits is None:
        return
    across, along = (place.panel.y, place.panel.x) if reference.vertical else (place.panel.x, place.panel.y)
    ends = np.array(across.limits or _span(place.panel))
    mark, flat = reference.mark, np.full(2, reference.value)
    level = position(flat, along.scale)
    ends = position(ends, across.scale)
    x, y = (level, ends) if reference.vertical else (ends, level)
    if np.isfinite([reference.low, reference.high]).all() and not reference.vertical:
        low, high = (position(np.full(2, end), along.scale) for end in (reference.low, reference.high))
        yield _filled(Curve(ends, level, low, high), mark, place, 0.12)
    line = {"color": mark.color, "dash": mark.plotly_dash, "width": 1.3}
    look: dict[str, Any] = {"line": line, "showlegend": bool(reference.label)}
    if np.isfinite(reference.low):
        ends_of = np.full(2, reference.low), np.full(2, reference.high)
        texts = hover_texts(reference.label, Curve(x, flat, *ends_of), place.panel, ("",) * 2)
        look |= {"text": [text.replace("</b>, ", "</b>") for text in texts], "hoverinfo": "text"}
    yield _scatter(x, y, place, reference.label, **look)


def _span(panel: Panel) -> tuple[float, float]:
    """Ends of what a panel draws, for a line across it."""
    positions = panel.positions
    return (float(positions[0]), float(positions[-1])) if len(positions) else (0.0, 1.0)


def _path(path: Path, place: Place) -> Iterator[go.Scatter]:
    line: dict[str, Any] = {"color": path.color, "dash": path.dash, "width": 1.5 if path.label else 1}
    line |= {"shape": "hv"} if path.steps else {}
    x, y = position(path.x, place.panel.x.scale), position(path.y, place.panel.y.scale)
    yield _scatter(x, y, place, path.label, line=line, showlegend=bool(path.label))


def _ellipse(ellipse: Ellipse, place: Place) -> Iterator[go.Scatter]:
    x, y = ellipse.outline().astype(np.float32).T
    line = {"color": ellipse.color, "dash": DASHES[ellipse.dash][1], "width": 2}
    yield _scatter(x, y, place, ellipse.group, line=line)


def _arrows(arrows: Arrows, place: Place) -> Iterator[go.Scatter]:
    """One broken line with arrow heads at its ends."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for x, y, dx, dy in arrows.rows.tolist():
        xs += [x, x + dx, None]
        ys += [y, y + dy, None]
    color, size = (MEAN, 14) if arrows.thick else ("rgba(128,128,128,0.6)", 7)
    marker: dict[str, Any] = {"symbol": "arrow", "angleref": "previous", "color": color}
    marker["size"] = [0, size, 0] * len(arrows.rows)
    line = {"color": color, "width": 3 if arrows.thick else 1}
    yield _scatter(xs, ys, place, arrows.group, mode="lines+markers", line=line, marker=marker)


def _text(text: Text, place: Place) -> Iterator[go.Scatter]:
    yield _scatter([text.x], [text.y], place, mode="text", text=[plain(text.text)])


TRACES: dict[type, Any] = {
    Line: _line,
    Points: _points,
    Band: _band,
    Area: _area,
    Reference: _reference,
    Path: _path,
    Ellipse: _ellipse,
    Arrows: _arrows,
    Text: _text,
}
