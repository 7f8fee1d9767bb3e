"""The axes of a description on paper: scales, ticks, limits."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullFormatter,
    PercentFormatter,
)

from ot_lens.plots.description import Axis, Panel
from ot_lens.plots.measures import COST_KNEE

STEPS = [1, 2, 2.5, 5, 10]


def typeset(text: str) -> str:
    """A label in the figure's own type: the superscript two of a fallback font would stand out."""
    return text.replace("\u00b2", "$^2$")


def set_axes(ax: Axes, panel: Panel, ticks: int = 5) -> None:
    """Titles, scales, ticks and limits of both axes of a panel."""
    ax.set_xlabel(typeset(panel.x.title))
    ax.set_ylabel(typeset(panel.y.title))
    for which, axis in (("x", panel.x), ("y", panel.y)):
        _scale(ax, which, axis, ticks)
        _limits(ax, which, axis, panel)
    if panel.equal:
        ax.set_aspect("equal")


def _scale(ax: Axes, which: str, axis: Axis, ticks: int) -> None:
    drawn: Any = getattr(ax, f"{which}axis")
    rescale = getattr(ax, f"set_{which}scale")
    if axis.scale == "cost":
        rescale("asinh", linear_width=COST_KNEE)
    elif axis.scale == "log":
        rescale("log")
        drawn.set_major_locator(LogLocator(numticks=5))
        drawn.set_minor_formatter(NullFormatter())
    if axis.ticks is not None:
        drawn.set_ticks([at for at, _ in axis.ticks], [name for _, name in axis.ticks])
    elif axis.whole:
        drawn.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1, steps=[1, 2, 5, 10]))
        drawn.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    elif axis.scale == "share":
        drawn.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        drawn.set_major_locator(MultipleLocator(axis.step))
    elif axis.scale == "linear":
        drawn.set_major_locator(MaxNLocator(nbins=ticks, steps=STEPS))
        ax.ticklabel_format(axis=which, useOffset=False)  # type: ignore[arg-type]


def _limits(ax: Axes, which: str, axis: Axis, panel: Panel) -> None:
    limit = getattr(ax, f"set_{which}lim")
    if axis.limits is not None:
        low, high = axis.limits
        free = axis.scale == "linear" and not (axis.ticks or axis.whole or panel.equal)
        margin = 0.04 * (high - low) if free else 0.0
        limit(low - margin, high + margin)
    elif axis.whole and which == "x" and len(panel.positions):
        ends = panel.positions[[0, -1]]
        margin = max(0.3, 0.02 * (ends[1] - ends[0]))
        limit(ends[0] - margin, ends[1] + margin)
    elif axis.zero:
        limit(0.0, None)
