"""The elements of a description on paper."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ot_lens.plots import description as d
from ot_lens.plots.style import DASHES, MARKERS, NULL, Mark

BAND_ALPHA = 0.18
MOST_MARKERS = 16
HATCH = "////"
REFERENCE_DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5))}


def draw_element(ax: Axes, element: d.Element) -> None:
    """Draw one element; its artists have the gid `kind:name`."""
    DRAW[type(element)](ax, element)


def hatch_of(mark: Mark) -> str | None:
    """Bands are hatched unless they are a null."""
    return None if mark.color == NULL.color else HATCH


def _line(ax: Axes, line: d.Line) -> None:
    curve, mark = line.curve, line.mark
    look: dict[str, Any] = {"color": mark.color, "linestyle": DASHES[mark.dash][0], "zorder": 3}
    if line.markers:
        look |= {"marker": MARKERS[mark.marker][0], "markevery": max(1, -(-len(curve.x) // MOST_MARKERS))}
        look |= {"markeredgecolor": "white", "markeredgewidth": 0.3}
    ax.plot(curve.x, curve.value, label=mark.label, gid=f"line:{line.name}", **look)
    look = {"color": mark.color, "alpha": BAND_ALPHA, "linewidth": 0, "zorder": 2}
    ax.fill_between(curve.x, curve.low, curve.high, gid=f"band:{line.name}", **look)
    if curve.isolated.any():
        _markers(ax, curve.at(curve.isolated), mark, markersize=3.2)


def _points(ax: Axes, points: d.Points) -> None:
    curve, mark = points.curve, points.mark
    look: dict[str, Any] = {"gid": f"line:{points.name}" if ":" not in points.name else points.name}
    look |= {"markersize": points.size, "zorder": 3 if points.hollow else 4}
    if np.isfinite([curve.low, curve.high]).any() or curve.x_errors is not None:
        _markers(ax, curve, mark, hollow=points.hollow, **look)
        return
    look |= {"marker": MARKERS[mark.marker][0], "color": mark.color, "linestyle": "none"}
    look |= {"markerfacecolor": "none" if points.hollow else mark.color, "zorder": 1 if points.faint else 2}
    look |= {"markeredgewidth": 0.5 if points.hollow else 0, "alpha": 0.42 if points.faint else 0.8}
    ax.plot(curve.x, curve.value, **look)


def _markers(ax: Axes, curve: d.Curve, mark: Mark, *, hollow: bool = False, **more: Any) -> None:
    look: dict[str, Any] = {"marker": MARKERS[mark.marker][0], "color": mark.color, "linestyle": "none"}
    look |= {"markerfacecolor": "white" if hollow else mark.color, "markeredgecolor": mark.color}
    look |= {"markeredgewidth": 0.6, "elinewidth": 0.8, "zorder": 4}
    ax.errorbar(curve.x, curve.value, curve.errors, curve.x_errors, **look | more)


def _band(ax: Axes, band: d.Band) -> None:
    curve = band.curve
    look: dict[str, Any] = {"color": band.mark.color, "zorder": 1}
    fill: dict[str, Any] = look | {"alpha": 0.28, "linewidth": 0, "hatch": hatch_of(band.mark)}
    ax.fill_between(curve.x, curve.low, curve.high, gid=f"null:{band.name}", **fill)
    dotted: dict[str, Any] = look | {"linewidth": 0.8, "linestyle": (0, (1, 1))}
    ax.plot(curve.x, curve.value, gid=f"nullmean:{band.name}", **dotted)
    if curve.isolated.any():
        alone = curve.at(curve.isolated)
        ax.vlines(alone.x, alone.low, alone.high, linewidth=5, alpha=0.35, **look)


def _area(ax: Axes, area: d.Area) -> None:
    look: dict[str, Any] = {"color": area.color, "alpha": area.opacity, "linewidth": 0, "zorder": 0}
    ax.fill_between(area.x, area.low, area.high, gid=f"area:{area.name}", **look)


def _reference(ax: Axes, reference: d.Reference) -> None:
    mark = reference.mark
    line, span = (ax.axvline, ax.axvspan) if reference.vertical else (ax.axhline, ax.axhspan)
    look: dict[str, Any] = {"color": mark.color, "linewidth": 0.8, "linestyle": REFERENCE_DASHES[mark.dash]}
    look["zorder"] = 1
    line(reference.value, gid=mark.label or None, **look)
    if np.isfinite([reference.low, reference.high]).all():
        span(reference.low, reference.high, color=mark.color, alpha=0.12, linewidth=0, zorder=0)


def _path(ax: Axes, path: d.Path) -> None:
    look: dict[str, Any] = {"color": path.color, "linewidth": 0.9 if path.label else 0.7, "zorder": 1}
    look |= {"linestyle": (0, (1, 1)) if path.dash == "dot" else DASHES[path.dash][0]}
    ax.plot(path.x, path.y, gid=path.name, drawstyle="steps-post" if path.steps else "default", **look)


def _ellipse(ax: Axes, ellipse: d.Ellipse) -> None:
    x, y = ellipse.outline().T
    look: dict[str, Any] = {"color": ellipse.color, "linewidth": 1.1, "zorder": 3}
    look |= {"linestyle": ":" if ellipse.dash == "dot" else DASHES[ellipse.dash][0]}
    ax.plot(x, y, gid=ellipse.name, **look)


def _arrows(ax: Axes, arrows: d.Arrows) -> None:
    if not arrows.thick:
        look: dict[str, Any] = {"color": "#6B7280", "units": "inches", "width": 0.007, "alpha": 0.8}
        look |= {"headwidth": 4, "headlength": 5, "headaxislength": 4.5, "zorder": 2.5}
        ax.quiver(*arrows.rows.T, angles="xy", scale_units="xy", scale=1, gid=arrows.name, **look)
        return
    for x, y, dx, dy in arrows.rows:
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": "#222222", "linewidth": 1.1}
        arrow |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 6.0}
        ax.annotate("", xy=(x + dx, y + dy), xytext=(x, y), arrowprops=arrow, zorder=5)


def _text(ax: Axes, text: d.Text) -> None:
    ax.text(text.x, text.y, text.text, ha="center", va="center")


DRAW: dict[type, Any] = {
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
