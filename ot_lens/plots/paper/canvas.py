"""Sizes and type of the venues, and the figure to draw into. The caller's own rcParams are never changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import OtLensError, one_of

SCREEN_DPI = 150
# what all styles share
STYLE_SHEET = Path(__file__).with_name("paper.mplstyle")
SHARED: Any = mpl.rc_params_from_file(STYLE_SHEET, use_default_template=False)


class ShownFigure(Figure):
    """A figure that shows itself as the value of a notebook's cell, whatever the notebook's backend."""

    def _repr_png_(self) -> bytes:
        """The figure as PNG; IPython's hook."""
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=SCREEN_DPI)
        return picture.getvalue()


@dataclass(frozen=True)
class Style:
    """Sizes of a venue: widths in inches, type in points."""

    column: float
    text: float
    size: float
    small: float
    family: tuple[str, ...]
    math: str


STYLES = {
    "icml": Style(3.25, 6.75, 8.0, 7.0, ("STIXGeneral",), "stix"),
    "neurips": Style(2.7, 5.5, 8.0, 7.0, ("STIXGeneral",), "stix"),
    "wide": Style(4.6, 9.6, 9.0, 8.0, ("DejaVu Sans",), "dejavusans"),
}


def style_named(name: str) -> Style:
    """The style of a venue; an OtLensError for any other name."""
    one_of("figure style", name, list(STYLES), OtLensError)
    return STYLES[name]


def rc(name: str) -> dict[str, Any]:
    """Matplotlib parameters of a style, to be used with `matplotlib.rc_context`."""
    style = style_named(name)
    sizes = dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), style.size)
    sizes |= dict.fromkeys(("legend.title_fontsize", "figure.titlesize"), style.size)
    sizes |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), style.small)
    return {"font.family": list(style.family), "mathtext.fontset": style.math, **sizes, **SHARED}


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Draw in a style whatever the caller's own settings are, and give them back."""
    with matplotlib.style.context(["default", rc(name)], after_reset=True):
        yield


@contextmanager
def canvas(
    style: str,
    axes: Axes | Sequence[Axes] | np.ndarray | None,
    shape: tuple[int, int],
    size: tuple[float, float],
    *,
    count: int | None = None,
    layout: Literal["constrained", "compressed"] = "constrained",
    **subplots: Any,
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with its axes in a style, or the caller's own axes under the caller's own settings.

    Args:
        style: One of `STYLES`; ignored when `axes` are given.
        axes: None for a new figure, else as many axes as are needed.
        shape: Rows and columns.
        size: Width and height in inches.
        count: Number of axes needed; all of `shape` if None.
        layout: "compressed" where the axes have a fixed aspect.
        **subplots: Passed to `Figure.subplots`.

    Raises:
        OtLensError: If there are too few or too many axes, or the style is unknown.
    """
    if axes is not None:
        given, needed = np.array(axes, dtype=object).reshape(-1), count or shape[0] * shape[1]
        missing = shape[0] * shape[1] - given.size
        if given.size < needed or missing < 0:
            raise OtLensError(
                f"{given.size} axes given: this figure needs {needed} ({shape[0]} x {shape[1]})."
            )
        # The last row of the grid may stay open.
        yield given[0].get_figure(root=True), np.append(given, [given[-1]] * missing).reshape(shape)
        return
    with styled(style):
        figure = ShownFigure(figsize=size, layout=layout)
        grid = figure.subplots(*shape, squeeze=False, **subplots)
        for ax in grid.flat:
            _fix_ticks(ax)
        yield figure, grid


def _fix_ticks(ax: Axes) -> None:
    """Give the ticks their look for good: matplotlib makes some of them only when the figure is saved."""
    now: dict[Any, Any] = dict(mpl.rcParams)
    look = {"labelfontfamily": now["font.family"][0], "grid_color": now["grid.color"]}
    look |= {"grid_linewidth": now["grid.linewidth"]}
    for axis, tick in ((ax.xaxis, "xtick"), (ax.yaxis, "ytick")):
        own = {name: now[f"{tick}.{name}"] for name in ("labelsize", "labelcolor", "color")}
        own |= {name: now[f"{tick}.major.{name}"] for name in ("size", "width")}
        axis.set_tick_params(which="major", length=own.pop("size"), **look, **own)
