"""The primitives of the screen figures, from the same curves as those on paper."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from ot_lens.plots.rows import Curve
from ot_lens.plots.screen.panels import cost_position, plain, translucent
from ot_lens.plots.style import NULL, Mark

BAND_ALPHA = 0.16


def axes_of(panel: int) -> dict[str, str]:
    """The axes of a panel, counted from 0."""
    return {"xaxis": f"x{panel + 1}", "yaxis": f"y{panel + 1}"}


def band_outline(curve: Curve) -> Float[np.ndarray, "2 points"]:
    """Outline of a band, each measured stretch its own polygon: along the top and back along the bottom.

    Rows are x and y; a column of NaN stands between two polygons.
    """
    known = np.isfinite(curve.low) & np.isfinite(curve.high)
    outline = [np.empty((2, 0))]
    for stretch in np.split(np.arange(len(known)), np.nonzero(np.diff(known))[0] + 1):
        if len(stretch) and known[stretch[0]]:
            x, back = curve.x[stretch], stretch[::-1]
            polygon = [np.append(x, x[::-1]), np.append(curve.high[stretch], curve.low[back])]
            outline += [np.full((2, 1), np.nan), np.array(polygon)]
    return np.concatenate(outline, axis=1)[:, 1:]


def band(curve: Curve, color: str, panel: int, name: str, **look: Any) -> go.Scatter:
    """An interval or null band."""
    xs, ys = band_outline(curve)
    style = {
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "hoverinfo": "skip",
        "showlegend": False,
    }
    style |= {"fillcolor": translucent(color, BAND_ALPHA), "name": plain(name), "legendgroup": name} | look
    return go.Scatter(x=xs, y=ys, **axes_of(panel), **style)


def line(curve: Curve, mark: Mark, panel: int, hover: list[str] | None, **look: Any) -> go.Scatter:
    """A line with markers; points that stand alone get interval bars."""
    alone = curve.isolated
    style: dict[str, Any] = {
        "mode": "lines+markers",
        "name": plain(mark.label),
        "legendgroup": mark.label,
        "line": {"color": mark.color, "dash": mark.plotly_dash, "width": 2},
        "marker": {"symbol": mark.symbol, "color": mark.color, "size": 7},
    }
    if hover is not None:
        style |= {"text": hover, "hoverinfo": "text"}
    if alone.any():
        style["error_y"] = error_bars(np.where(alone, curve.errors, 0.0), mark.color)
    return go.Scatter(x=curve.x, y=curve.value, **axes_of(panel), **(style | look))


def points(
    x: Any, y: Any, mark: Mark, panel: int, hover: list[str] | None, *, hollow: bool = False, **look: Any
) -> go.Scatter:
    """Markers, filled or hollow."""
    symbol = mark.symbol + ("-open" if hollow else "")
    marker = {"symbol": symbol, "color": mark.color, "size": 9, "line": {"width": 1.6 if hollow else 0}}
    style: dict[str, Any] = {"mode": "markers", "name": plain(mark.label), "legendgroup": mark.label}
    if hover is not None:
        style |= {"text": hover, "hoverinfo": "text"}
    return go.Scatter(x=x, y=y, marker=marker, **axes_of(panel), **(style | look))


def error_bars(errors: np.ndarray, color: str) -> dict[str, Any]:
    """Interval bars from rows (below, above)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": errors[1],
        "arrayminus": errors[0],
        "color": color,
        "thickness": 1.2,
        "width": 0,
    }


def null_band(curve: Curve, panel: int, *, legend: bool, mark: Mark = NULL) -> list[go.Scatter]:
    """The mean and the 95 % band of a null."""
    name = mark.label
    mean = go.Scatter(
        x=curve.x,
        y=curve.value,
        mode="lines",
        name=name,
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
        line={"color": mark.color, "dash": "dot", "width": 1.2},
        **axes_of(panel),
    )
    fill = translucent(mark.color, 0.3)
    return [band(curve, mark.color, panel, name, showlegend=legend, fillcolor=fill), mean]


def on_cost_scale(curve: Curve) -> Curve:
    """A curve of costs on the asinh scale."""
    return Curve(curve.x, *(cost_position(part) for part in (curve.value, curve.low, curve.high)))


def on_screen(curve: Curve) -> Curve:
    """A curve in single precision, half the bytes: enough for a screen."""
    return Curve(*(part.astype(np.float32) for part in (curve.x, curve.value, curve.low, curve.high)))


def number(value: float, *, share: bool = False) -> str:
    """A number for people: per cent for shares, three significant digits otherwise."""
    if not np.isfinite(value):
        return "not measured"
    return f"{100 * value:.1f} %" if share else f"{value:.3g}"


def hover_text(what: str, rows: pd.DataFrame, *, share: bool = False, value: str = "value") -> list[str]:
    """One line a row: what, value, interval, n."""
    texts = []
    for row in rows.to_dict("records"):
        text = f"{plain(what)}<br>{number(_float(row[value]), share=share)}"
        low, high = _float(row.get("low")), _float(row.get("high"))
        if np.isfinite([low, high]).all():
            text += f" [{number(low, share=share)}, {number(high, share=share)}]"
        texts.append(text + (f"<br>n = {row['n']}" if "n" in row else ""))
    return texts


def _float(value: Any) -> float:
    return float("nan") if value is None or pd.isna(value) else float(value)
