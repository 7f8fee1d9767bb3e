"""The elements of a description on a screen, as traces of plotly."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ot_lens.plots import description as d
from ot_lens.plots.screen.text import hover_texts, plain, position, translucent
from ot_lens.plots.style import DASHES, MARKERS, Mark

BAND_ALPHA, NULL_ALPHA = 0.16, 0.3
MEAN = "#6E7681"
# A trace of plotly by its properties, which the figure checks: a graph object would be checked twice.
Trace = dict[str, Any]


def axes_of(panel: int) -> dict[str, str]:
    """The axes of a panel, counted from 0."""
    return {"xaxis": f"x{panel + 1}", "yaxis": f"y{panel + 1}"}


@dataclass(frozen=True)
class Place:
    """A panel, and its number among the axes of the figure, counted from 0."""

    panel: d.Panel
    number: int

    @property
    def axes(self) -> dict[str, str]:
        """The axes, for a trace."""
        return axes_of(self.number)

    def at(self, curve: d.Curve) -> d.Curve:
        """A curve at its positions, in single precision: half the bytes, and enough for a screen."""
        ends = (curve.value, curve.low, curve.high)
        value, low, high = (position(end, self.panel.y.scale).astype(np.float32) for end in ends)
        along: list[Any] = [
            None if end is None else position(end, self.panel.x.scale).astype(np.float32)
            for end in (curve.x, curve.x_low, curve.x_high)
        ]
        x, x_low, x_high = along
        return d.Curve(x, value, low, high, None, x_low, x_high)


def traces_of(element: d.Element, place: Place) -> Iterator[Trace]:
    """The traces of one element."""
    return TRACES[type(element)](element, place)


def band_outline(curve: d.Curve) -> Float[np.ndarray, "2 points"]:
    """Outline (x, y) of a band; NaN separates the polygons of measured stretches, each there and back."""
    known = np.isfinite(curve.low) & np.isfinite(curve.high)
    outline = [np.empty((2, 0))]
    measured = np.ma.masked_array(known, ~known)
    for stretch in np.ma.clump_unmasked(measured):  # type: ignore[no-untyped-call]
        x = curve.x[stretch]
        polygon = [np.append(x, x[::-1]), np.append(curve.high[stretch], curve.low[stretch][::-1])]
        outline += [np.full((2, 1), np.nan), np.array(polygon)]
    return np.concatenate(outline, axis=1)[:, 1:]


def error_bars(errors: np.ndarray | None, color: str) -> dict[str, Any]:
    """Interval bars from rows (below, above)."""
    if errors is None:
        return {}
    bars = {"type": "data", "symmetric": False, "array": errors[1], "arrayminus": errors[0]}
    return bars | {"color": color, "thickness": 1.2, "width": 0}


def _scatter(x: Any, y: Any, place: Place, group: str = "", **look: Any) -> Trace:
    """A trace without hover text or entry in the legend."""
    style = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "name": plain(group)}
    return {"type": "scatter", "x": x, "y": y, "legendgroup": group, **place.axes, **(style | look)}


def _filled(curve: d.Curve, mark: Mark, place: Place, alpha: float, **look: Any) -> Trace:
    color = translucent(mark.color, alpha)
    style: dict[str, Any] = {"fill": "toself", "fillcolor": color, "line": {"width": 0}}
    x, y = band_outline(curve).astype(np.float32)
    return _scatter(x, y, place, mark.label, **(style | look))


def _line(line: d.Line, place: Place) -> Iterator[Trace]:
    curve, mark = place.at(line.curve), line.mark
    yield _filled(curve, mark, place, BAND_ALPHA)
    look: dict[str, Any] = {"line": {"color": mark.color, "dash": DASHES[mark.dash][1], "width": 2}}
    if line.markers:
        marker = {"symbol": MARKERS[mark.marker][1], "color": mark.color, "size": 7}
        look |= {"marker": marker, "mode": "lines+markers"}
    if curve.isolated.any():
        look["error_y"] = error_bars(np.where(curve.isolated, curve.errors, 0.0), mark.color)
    look |= {"text": hover_texts(mark.label, line.curve, place.panel), "hoverinfo": "text"}
    yield _scatter(curve.x, curve.value, place, mark.label, showlegend=True, **look)


def _points(points: d.Points, place: Place) -> Iterator[Trace]:
    curve, mark = place.at(points.curve), points.mark
    symbol, hollow = MARKERS[mark.marker][1], points.hollow
    marker: dict[str, Any] = {"symbol": f"{symbol}-open" if hollow else symbol, "color": mark.color}
    marker |= {"size": 5 if points.size < 3 else 9, "line": {"width": 1.6 if hollow else 0}}
    look: dict[str, Any] = {"mode": "markers", "marker": marker, "showlegend": points.legend}
    look |= {"opacity": 0.45 if points.faint else 1.0, "error_x": error_bars(curve.x_errors, mark.color)}
    look["cliponaxis"] = bool(points.ids)  # prompts may lie outside the limits; all else is shown whole
    if np.isfinite([curve.low, curve.high]).any():
        look["error_y"] = error_bars(curve.errors, mark.color)
    if points.ids:
        hover = f"{plain(points.notes[0])} %{{customdata}}<extra></extra>"
        look |= {
            "customdata": np.array(points.ids, dtype=np.min_scalar_type(max(points.ids))),
            "hovertemplate": hover,
            "hoverinfo": None,
        }
    else:
        texts = hover_texts(mark.label, points.curve, place.panel, points.notes)
        look |= {"text": texts, "hoverinfo": "text"}
    yield _scatter(curve.x, curve.value, place, mark.label, **look)


def _band(band: d.Band, place: Place) -> Iterator[Trace]:
    curve, mark = place.at(band.curve), band.mark
    yield _filled(curve, mark, place, NULL_ALPHA, showlegend=True)
    dotted = {"color": mark.color, "dash": "dot", "width": 1.2}
    yield _scatter(curve.x, curve.value, place, mark.label, line=dotted)


def _area(area: d.Area, place: Place) -> Iterator[Trace]:
    curve = place.at(d.Curve(area.x, area.low, area.low, area.high))
    mark = Mark(area.label, area.color, "circle")
    yield _filled(curve, mark, place, area.opacity, showlegend=bool(area.label))


def _reference(reference: d.Reference, place: Place) -> Iterator[Trace]:
    if reference.vertical and place.panel.y.limits is None:
        return
    across, along = (place.panel.y, place.panel.x) if reference.vertical else (place.panel.x, place.panel.y)
    positions = place.panel.positions if len(place.panel.positions) else np.array([0.0, 1.0])
    ends = position(np.array(across.limits or positions[[0, -1]], dtype=float), across.scale)
    mark, flat = reference.mark, np.full(2, reference.value)
    level = position(flat, along.scale)
    x, y = (level, ends) if reference.vertical else (ends, level)
    if np.isfinite([reference.low, reference.high]).all() and not reference.vertical:
        low, high = (position(np.full(2, end), along.scale) for end in (reference.low, reference.high))
        yield _filled(d.Curve(ends, level, low, high), mark, place, 0.12)
    line = {"color": mark.color, "dash": DASHES[mark.dash][1], "width": 1.3}
    look: dict[str, Any] = {"line": line, "showlegend": bool(reference.label)}
    if np.isfinite(reference.low):
        ends_of = np.full(2, reference.low), np.full(2, reference.high)
        texts = hover_texts(reference.label, d.Curve(x, flat, *ends_of), place.panel, ("",) * 2)
        look |= {"text": [text.replace("</b>, ", "</b>") for text in texts], "hoverinfo": "text"}
    yield _scatter(x, y, place, reference.label, **look)


def _path(path: d.Path, place: Place) -> Iterator[Trace]:
    line: dict[str, Any] = {"color": path.color, "dash": path.dash, "width": 1.5 if path.label else 1}
    line |= {"shape": "hv"} if path.steps else {}
    x, y = position(path.x, place.panel.x.scale), position(path.y, place.panel.y.scale)
    yield _scatter(x, y, place, path.label, line=line, showlegend=bool(path.label))


def _ellipse(ellipse: d.Ellipse, place: Place) -> Iterator[Trace]:
    x, y = ellipse.outline().astype(np.float32).T
    line = {"color": ellipse.color, "dash": DASHES[ellipse.dash][1], "width": 2}
    yield _scatter(x, y, place, ellipse.group, line=line)


def _arrows(arrows: d.Arrows, place: Place) -> Iterator[Trace]:
    """One broken line with arrow heads at its ends."""
    x, y, dx, dy = arrows.rows.T
    xs, ys = (
        np.stack([at, at + step, at + np.nan], axis=1).ravel().astype(np.float32)
        for at, step in ((x, dx), (y, dy))
    )
    color, size = (MEAN, 14) if arrows.thick else ("rgba(128,128,128,0.6)", 7)
    marker: dict[str, Any] = {"symbol": "arrow", "angleref": "previous", "color": color}
    marker["size"] = [0, size, 0] * len(arrows.rows)
    line = {"color": color, "width": 3 if arrows.thick else 1}
    yield _scatter(xs, ys, place, arrows.group, mode="lines+markers", line=line, marker=marker)


def _text(text: d.Text, place: Place) -> Iterator[Trace]:
    yield _scatter([text.x], [text.y], place, mode="text", text=[plain(text.text)])


TRACES: dict[type, Any] = {
    d.Line: _line,
    d.Points: _points,
    d.Band: _band,
    d.Area: _area,
    d.Reference: _reference,
    d.Path: _path,
    d.Ellipse: _ellipse,
    d.Arrows: _arrows,
    d.Text: _text,
}
