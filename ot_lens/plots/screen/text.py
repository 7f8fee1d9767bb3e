"""Text and positions on a screen."""

from html import escape

import numpy as np
from jaxtyping import Float

from ot_lens.plots.description import Axis, Curve, Panel, Scale
from ot_lens.plots.measures import COST_KNEE

# symbols of mathtext, as a browser shows them
SYMBOLS = {"$W_2^2$": "W<sub>2</sub><sup>2</sup>", "$k$": "<i>k</i>", "$t$": "<i>t</i>"}


def plain(text: str) -> str:
    """Text of a table, shown literally: plotly reads a few HTML tags in its labels."""
    return escape(text, quote=False)


def title(text: str) -> str:
    """A title with its mathematics and line breaks."""
    text = plain(text).replace("\n", "<br>")
    for mathtext, markup in SYMBOLS.items():
        text = text.replace(mathtext, markup)
    return text


def translucent(color: str, alpha: float) -> str:
    """A hexadecimal colour with an opacity."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def position(value: Float[np.ndarray, "*shape"], scale: Scale) -> Float[np.ndarray, "*shape"]:
    """Values along an axis; costs on the asinh scale of the paper: linear near 0, then logarithmic."""
    return np.arcsinh(value / COST_KNEE) if scale == "cost" else value


def number(value: float, scale: Scale = "linear") -> str:
    """A number for people: per cent for shares, three significant digits otherwise."""
    if not np.isfinite(value):
        return "not measured"
    return f"{100 * value:.1f} %" if scale == "share" else f"{value:.3g}"


def interval(value: float, low: float, high: float, scale: Scale) -> str:
    """A value and its interval, if it has one."""
    if not np.isfinite([low, high]).all():
        return number(value, scale)
    return f"{number(value, scale)} [{number(low, scale)}, {number(high, scale)}]"


def hover_texts(label: str, curve: Curve, panel: Panel, notes: tuple[str, ...] = ()) -> list[str]:
    """One text per point: what it is, values with intervals, sample size."""
    names = {at: name.replace("\n", " ") for at, name in panel.x.ticks or ()}
    texts = []
    for i, (x, value, low, high) in enumerate(zip(curve.x, curve.value, curve.low, curve.high, strict=True)):
        lines = [f"<b>{plain(label)}</b>" + (f", {plain(notes[i])}" if notes else "")]
        if curve.x_low is not None and curve.x_high is not None:
            lines.append(f"{_name(panel.x)} {interval(x, curve.x_low[i], curve.x_high[i], panel.x.scale)}")
        elif not notes:
            lines[0] += f"<br>{_name(panel.x)} {names.get(x, f'{x:g}')}"
        if panel.y.title or curve.x_low is None:
            lines.append(f"{_name(panel.y)} {interval(value, low, high, panel.y.scale)}".strip())
        if curve.n is not None and np.isfinite(curve.n[i]):
            lines.append(f"n = {curve.n[i]:.0f}")
        texts.append("<br>".join(lines))
    return texts


def _name(axis: Axis) -> str:
    return title(axis.title.replace(" (%)", "").replace("\n", " "))
