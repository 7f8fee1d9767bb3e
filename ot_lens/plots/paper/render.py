"""A description as a matplotlib figure."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Signature, getdoc, signature
from string import ascii_lowercase
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ot_lens.plots.description import Description, Panel
from ot_lens.plots.paper.axes import set_axes
from ot_lens.plots.paper.canvas import canvas, style_named
from ot_lens.plots.paper.cells import color_bars, dot_look, draw_cells
from ot_lens.plots.paper.elements import draw_element
from ot_lens.plots.paper.legend import add_legend, column_legends, entries_of, entries_per_row, rows_above
from ot_lens.plots.style import SIGNIFICANT

# inches of a page for the colour bars and for the tick labels of a panel
BAR, TICKS = 0.75, 0.3
SHARE: dict[str, dict[str, Any]] = {
    "": {},
    "x": {"sharex": True},
    "y": {"sharey": True},
    "xy": {"sharex": True, "sharey": True},
    "columns": {"sharex": "col", "sharey": "col"},
    "rows": {"sharex": True, "sharey": "row"},
}
# what the documentation of every drawing function ends with
OPTIONS = """`style` is "icml", "neurips" or "wide"; `axes` are your own, one per panel, without a legend.
`position` is the token position to show, the last in the table if None. Raises a TableError if a column is
missing or there is nothing to draw."""
AnyAxes = Axes | Sequence[Axes] | np.ndarray | None


def draw(description: Description, *, style: str = "icml", axes: AnyAxes = None) -> Figure:
    """Draw a description with matplotlib; without a legend into `axes` of your own, one per panel."""
    panels = description.on_paper
    columns = min(description.columns, len(panels))
    shape = (-(-len(panels) // columns), columns)
    size, layout = _size(description, panels, shape, style)
    options = {"count": len(panels), "layout": layout, **SHARE[description.share]}
    with canvas(style, axes, shape, size, **options) as (figure, grid):
        for ax, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(ax, panel, (size[0] - BAR) / columns, columns)
        _titles(grid, description, panels)
        if axes is None:
            for ax in grid.flat[len(panels) :]:
                ax.set_visible(False)
            _share_titles(grid, panels)
        if panels[0].cells is not None:
            color_bars(figure, grid, panels)
            if axes is None and figure.findobj(lambda artist: artist.get_gid() == "significant"):
                dot = Line2D([], [], **dot_look(1), label=SIGNIFICANT)
                figure.legend(handles=[dot], loc="outside lower center")
        elif axes is None and description.legend == "columns":
            column_legends(grid, figure.get_figwidth())
            figure.align_ylabels(grid[:, 0])
        elif axes is None:
            figure.align_ylabels()
            free = grid.flat[len(panels)] if grid.size > len(panels) else None
            add_legend(figure, entries_of(description), style_named(style), free)
    return figure


def drawing(describe: Callable[..., Description]) -> Callable[..., Figure]:
    """The function that draws what `describe` returns; it takes `style` and `axes` as well (see `draw`)."""

    @wraps(describe)
    def drawn(*tables: Any, style: str = "icml", axes: AnyAxes = None, **options: Any) -> Figure:
        return draw(describe(*tables, **options), style=style, axes=axes)

    own, (_, *more) = (signature(function).parameters.values() for function in (describe, draw))
    vars(drawn)["__signature__"] = Signature([*own, *more], return_annotation=Figure)
    drawn.__doc__ = f"{getdoc(describe)}\n\n{OPTIONS}"
    return drawn


def _draw_panel(ax: Axes, panel: Panel, width: float, columns: int) -> None:
    if panel.cells is not None:
        draw_cells(ax, panel, panel.cells, cell=(width - 0.35) / panel.cells.shape[1])
        return
    for element in panel.elements:
        draw_element(ax, element)
    set_axes(ax, panel, 3 if columns > 4 else 5)
    if panel.y.ticks is not None:
        ax.tick_params(axis="y", length=0)


def _size(
    description: Description, panels: Sequence[Panel], shape: tuple[int, int], style: str
) -> tuple[tuple[float, float], Any]:
    """Width and height in inches, and the layout engine."""
    look, (rows, columns) = style_named(style), shape
    width = look.column if columns == 1 else look.text
    first = panels[0]
    if first.cells is not None:
        square = first.cells.square
        height = 0.9 * (width - BAR) / columns if square else description.height
        return (width, rows * (height + 0.45)), "compressed" if square else "constrained"
    if first.equal and first.x.limits and first.y.limits:
        width = look.text if columns > 2 else look.text * (0.3 + 0.25 * columns)
        ratio = np.ptp(first.y.limits) / np.ptp(first.x.limits)
        each = (width - 0.42 - TICKS * columns) / columns
        return (width, rows * (each * ratio + 0.15) + 0.8), "compressed"
    entries = entries_of(description)
    lines = -(-len(entries) // entries_per_row(entries, width, look)) if entries else 0
    if description.legend == "columns":
        lines = max(4, rows_above(panels, columns, width))
    scale = look.text / 6.75
    # Two lines of an axis title need their height at any width.
    height = description.height * (max(1.0, scale) if description.legend == "columns" else scale) + 0.42
    if description.share in ("xy", "rows"):
        height -= 0.15
    return (width, rows * height + lines * 0.021 * look.small + 0.08), "constrained"


def _titles(grid: np.ndarray, description: Description, panels: Sequence[Panel]) -> None:
    """Titles of the panels; where paper shows several frames, titles name the frames and rows the panels."""
    lettered = description.letters and len(panels) > 1
    named = grid[0] if description.legend == "columns" else grid.flat
    for index, (ax, panel) in enumerate(zip(named, panels, strict=False)):
        first_row, first_column = index < grid.shape[1], index % grid.shape[1] == 0
        if len(description.frames) < 2:
            letter = f"({ascii_lowercase[index]}) " if lettered else ""
            ax.set_title(letter + panel.title, **({"color": panel.color} if panel.color else {}))
        elif first_row or not panel.title:
            ax.set_title(f"{description.slider} {panel.frame}")
        if len(description.frames) > 1 and panel.title and first_column:
            ax.set_ylabel(panel.title.replace(" ", "\n", 1) + "\n" + panel.y.title)


def _share_titles(grid: np.ndarray, panels: Sequence[Panel]) -> None:
    """Axis titles once per column and once per row, where all panels have the same."""
    columns = grid.shape[1]
    rows = {(panel.y.title, tuple(panel.cells.rows) if panel.cells else ()) for panel in panels}
    joined = grid[0, 0].get_shared_y_axes().joined
    shared = len(rows) == 1 or joined(grid[0, 0], grid[-1, -1])
    by_row = columns > 1 and joined(grid[0, 0], grid[0, 1])
    for index, ax in enumerate(grid.flat[: len(panels)]):
        below = index + columns
        if below < len(panels) and panels[below].x.title == panels[index].x.title:
            ax.set_xlabel("")
        else:
            ax.tick_params(labelbottom=True)
        if index % columns and (shared or by_row):
            ax.set_ylabel("")
