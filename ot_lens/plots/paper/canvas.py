"""Sizes and type of the venues, and the figure to draw into. The caller's own rcParams are never changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import OtLensError

SCREEN_DPI = 150


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
    """The style of a venue.

    Raises:
        OtLensError: no style of that name.
    """
    if name not in STYLES:
        raise OtLensError(f"unknown figure style {name!r}: choose one of {', '.join(STYLES)}")
    return STYLES[name]


def rc(name: str) -> dict[str, Any]:
    """Matplotlib parameters of a style, to be used with `matplotlib.rc_context`."""
    style = style_named(name)
    return _type(style) | _LINES | _OUTPUT


def _type(style: Style) -> dict[str, Any]:
    return {
        "font.family": list(style.family),
        "mathtext.fontset": style.math,
        "font.size": style.size,
        "axes.titlesize": style.size,
        "axes.labelsize": style.size,
        "xtick.labelsize": style.small,
        "ytick.labelsize": style.small,
        "legend.fontsize": style.small,
        "legend.title_fontsize": style.size,
        "figure.titlesize": style.size,
    }


_LINES: dict[str, Any] = {
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.labelpad": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E7E7E7",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.4,
    "patch.linewidth": 0.6,
    "hatch.linewidth": 0.4,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "legend.handlelength": 2.0,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "legend.labelspacing": 0.25,
    "legend.borderpad": 0.0,
    "legend.borderaxespad": 0.3,
}
_OUTPUT: dict[str, Any] = {
    "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType inside the PDF: venues refuse Type 3
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "ot_lens",
}


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
    layout: Literal["constrained", "compressed"] = "constrained",
    **subplots: Any,
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with its axes in a style, or the caller's own axes under the caller's own settings.

    Args:
        style: one of `STYLES`; ignored when `axes` are given.
        axes: None for a new figure, else as many axes as `shape` holds.
        shape: rows and columns.
        size: width and height in inches.
        layout: "compressed" where the axes have a fixed aspect.
        **subplots: passed to `Figure.subplots`.

    Raises:
        OtLensError: too few or too many axes, or an unknown style.
    """
    if axes is not None:
        given = np.array(axes, dtype=object).reshape(-1)
        if given.size != shape[0] * shape[1]:
            raise OtLensError(f"{given.size} axes given: this figure needs {shape[0] * shape[1]} ({shape})")
        yield given[0].get_figure(root=True), given.reshape(shape)
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
    for name in ("x", "y"):
        look = {
            "labelsize": now[f"{name}tick.labelsize"],
            "labelfontfamily": now["font.family"][0],
            "labelcolor": now[f"{name}tick.labelcolor"],
            "color": now[f"{name}tick.color"],
            "length": now[f"{name}tick.major.size"],
            "width": now[f"{name}tick.major.width"],
            "grid_color": now["grid.color"],
            "grid_linewidth": now["grid.linewidth"],
        }
        getattr(ax, f"{name}axis").set_tick_params(which="major", **look)
