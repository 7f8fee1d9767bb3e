"""Heat maps on paper."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ot_lens.plots.description import Cells, ColorScale, Panel
from ot_lens.plots.paper.axes import typeset
from ot_lens.plots.style import DOT, MISSING, MOST_NAMES, OUTLINE

# widths of characters as shares of the type size, and the inches left free in a cell
WIDTHS, DIGIT, PADDING = {".": 0.26, "\u2212": 0.66}, 0.52, 0.02
# points of a dot per inch of its cell, and the smallest and the largest dot
PER_INCH, DOTS = 14, (1.0, 3.0)


def draw_cells(ax: Axes, panel: Panel, cells: Cells, *, cell: float) -> AxesImage:
    """The cells of `cell` inches, their numbers where there is room, and the outlined one."""
    scale = cells.scale
    norm = (LogNorm if scale.log else Normalize)(scale.low, scale.high)
    ax.set_facecolor(MISSING)
    image = ax.imshow(
        cells.matrix,
        cmap=scale.maps[0],
        norm=norm,
        origin="lower",
        interpolation="nearest",
        aspect="equal" if cells.square else "auto",
        gid=f"cells:{panel.title}",
    )
    texts = {i: scale.text(value) for i, value in np.ndenumerate(cells.matrix) if np.isfinite(value)}
    needed = PADDING + max(map(text_width, texts.values()), default=0.0)
    if scale.numbered and cell > needed and len(cells.rows) <= MOST_NAMES:
        _numbers(ax, cells, image, texts)
    elif cells.significant.any():
        rows, columns = np.nonzero(cells.significant)
        ax.plot(columns, rows, gid="significant", **dot_look(cell))
    if cells.best is not None:
        row, column = cells.best
        corner = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=2.6))
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=OUTLINE, linewidth=1.4, gid="best"))
    _cell_axes(ax, panel, cells)
    return image


def dot_look(cell: float) -> dict[str, Any]:
    """Of the dot on a significant cell of some inches, which has a light edge to be seen on dark cells."""
    size = float(np.clip(PER_INCH * cell, *DOTS))
    return {
        "linestyle": "",
        "marker": "o",
        "color": DOT,
        "markersize": size,
        "markeredgecolor": "white",
        "markeredgewidth": size / 6,
    }


def text_width(text: str) -> float:
    """Inches that a number takes in the type of tick labels."""
    size = FontProperties(size=mpl.rcParams["xtick.labelsize"]).get_size_in_points()
    return size / 72 * sum(WIDTHS.get(character, DIGIT) for character in text)


def _numbers(ax: Axes, cells: Cells, image: AxesImage, texts: dict[tuple[int, ...], str]) -> None:
    """Bold where the null does not explain the cell; dark on light and light on dark."""
    for (row, column), text in texts.items():
        red, green, blue = image.cmap(image.norm(cells.matrix[row, column]))[:3]
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        look: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
        look |= {
            "fontsize": mpl.rcParams["xtick.labelsize"],
            "fontweight": "bold" if cells.significant[row, column] else "normal",
        }
        ax.text(column, row, text, color="white" if dark else "#1A1A1A", **look)


def _cell_axes(ax: Axes, panel: Panel, cells: Cells) -> None:
    for axis, names in ((ax.xaxis, cells.columns), (ax.yaxis, cells.rows)):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1, steps=[1, 2, 5, 10]))
        named = dict(enumerate(names))
        axis.set_major_formatter(FuncFormatter(lambda x, _, named=named: named.get(round(x, 6), "")))
    if panel.x.ticks is not None:
        ax.set_xticks(*zip(*panel.x.ticks, strict=True))
    if len(cells.rows) <= MOST_NAMES:
        ax.set_yticks(range(len(cells.rows)), cells.rows)
    ax.set_xlabel(panel.x.title)
    ax.set_ylabel(panel.y.title)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def color_bars(figure: Figure, grid: np.ndarray, panels: Sequence[Panel]) -> None:
    """One bar for all heat maps where they share a scale, as long as they are in rows, else one for each."""
    axes, scales = list(grid.flat[: len(panels)]), [p.cells.scale for p in panels if p.cells is not None]
    shared = all(scale == scales[0] for scale in scales)
    for owners, scale in zip([axes] if shared else axes, scales, strict=False):
        image = (axes[0] if shared else owners).images[0]
        aspect = 16 * len(grid) if shared else 10
        bar = figure.colorbar(image, ax=owners, shrink=0.95, pad=0.02, aspect=aspect)
        _bar_ticks(bar, scale)
        bar.set_label(typeset(scale.label))
        bar.outline.set_visible(False)


def _bar_ticks(bar: Any, scale: ColorScale) -> None:
    if scale.ticks is not None:
        bar.set_ticks(list(scale.ticks))
    elif not scale.log:
        bar.locator = MaxNLocator(nbins=5)
        bar.update_ticks()
    if scale.percent:
        bar.formatter = PercentFormatter(1.0, decimals=0, symbol="")
        bar.update_ticks()
