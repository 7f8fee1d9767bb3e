"""Heat maps on a screen."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ot_lens.plots.description import Cells, ColorScale, Panel
from ot_lens.plots.screen.elements import Place
from ot_lens.plots.screen.text import title
from ot_lens.plots.style import DOT, MOST_NAMES, OUTLINE, SIGNIFICANT

# of a significant cell, with a light edge to be seen on dark cells
MARKER = {"symbol": "circle", "size": 5, "color": DOT, "line": {"color": "white", "width": 0.8}}


def color_axis(scale: ColorScale) -> dict[str, Any]:
    """Colours of cells, and their bar; where it stands is up to the layout."""
    low, high = np.log10([scale.low, scale.high]) if scale.log else (scale.low, scale.high)
    bar = {"thickness": 12, "xanchor": "left", "title": {"text": scale.label, "side": "right"}}
    return {"colorscale": scale.maps[1], "cmin": low, "cmax": high, "colorbar": bar | _bar_ticks(scale)}


def _bar_ticks(scale: ColorScale) -> dict[str, Any]:
    if scale.log:
        powers = list(range(int(np.ceil(np.log10(scale.low))), int(np.floor(np.log10(scale.high))) + 1))
        return {"tickvals": powers, "ticktext": [f"10<sup>{power}</sup>" for power in powers]}
    if scale.ticks is None:
        return {}
    names = [f"{100 * tick:.0f}" if scale.percent else f"{tick:g}" for tick in scale.ticks]
    return {"tickvals": list(scale.ticks), "ticktext": names}


def heat_map(panel: Panel, cells: Cells, place: Place, coloraxis: str) -> Iterator[Any]:
    """The cells, and a mark on the best one."""
    scale, z = cells.scale, cells.matrix.astype(np.float32)
    z = np.log10(np.maximum(z, scale.low)) if scale.log else z
    numbered = scale.numbered and max(cells.shape) <= MOST_NAMES
    rows, columns = map(range, cells.shape)
    written = [[_text(cells, r, c) for c in columns] for r in rows] if numbered else None
    data, more = _details(cells)
    shown = "%{customdata[0]:.3g}" if scale.log else "%{z:.1%}" if scale.percent else "%{z:.3g}"
    hover = f"{title(panel.x.title)} %{{x}}, {title(panel.y.title)} %{{y}}: {shown}{more}<extra></extra>"
    look: dict[str, Any] = {"coloraxis": coloraxis, "textfont": {"size": 11}, "showlegend": False}
    look |= {"text": written, "texttemplate": "%{text}" if numbered else None}
    names = {"x": list(cells.columns), "y": list(cells.rows)}
    yield go.Heatmap(z=z, customdata=data, hovertemplate=hover, **names, **look, **place.axes)
    if not numbered and cells.significant.any():
        y, x = map(_named, (cells.rows, cells.columns), np.nonzero(cells.significant))
        dots = {"mode": "markers", "marker": MARKER, "name": SIGNIFICANT, "legendgroup": SIGNIFICANT}
        yield go.Scatter(x=x, y=y, **dots, hoverinfo="skip", **place.axes)
    if cells.best is not None:
        row, column = cells.best
        # Categories have no corners to draw along.
        marker = {"symbol": "square-open", "size": 26, "color": OUTLINE, "line": {"width": 3}}
        at = {"x": [cells.columns[column]], "y": [cells.rows[row]]}
        yield go.Scatter(
            **at, mode="markers", marker=marker, hoverinfo="skip", showlegend=False, **place.axes
        )


def _named(names: Sequence[str], places: np.ndarray) -> np.ndarray:
    """Names by their places; as numbers where all are, which take a fraction of the room in a page."""
    try:
        return np.array(list(map(int, names)))[places]
    except ValueError:
        return np.array(names)[places]


def _details(cells: Cells) -> tuple[np.ndarray | None, str]:
    """More numbers for the hover text, and the text for them; the values first where colour is their log."""
    layers = [cells.matrix] if cells.scale.log else []
    text = ""
    for name, low, high in cells.details:
        at = len(layers)
        text += f"<br>{name} [%{{customdata[{at}]:.3f}}, %{{customdata[{at + 1}]:.3f}}]"
        layers += [low, high]
    return (np.stack(layers, axis=-1).astype(np.float32) if layers else None), text


def _text(cells: Cells, row: int, column: int) -> str:
    """The number of a cell: bold where the null does not explain it."""
    value = cells.matrix[row, column]
    if not np.isfinite(value):
        return ""
    text = cells.scale.text(value)
    return f"<b>{text}</b>" if cells.significant[row, column] else text
