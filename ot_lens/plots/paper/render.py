"""A description as a matplotlib figure."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Signature, signature
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import OtLensError
from ot_lens.plots.description import Description, Panel, titles_of
from ot_lens.plots.paper.axes import set_axes
from ot_lens.plots.paper.canvas import canvas, style_named
from ot_lens.plots.paper.cells import color_bars, draw_cells
from ot_lens.plots.paper.elements import draw_element
from ot_lens.plots.paper.legend import add_legend, column_legends, entries_of, entries_per_row

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
AnyAxes = Axes | Sequence[Axes] | np.ndarray | None


def draw(description: Description, *, style: str = "icml", axes: AnyAxes = None) -> Figure:
    """Draw a description with matplotlib.

    Args:
        description: What to draw.
        style: "icml", "neurips" or "wide".
        axes: One axes per panel, to draw into a layout of your own; no legend is drawn then.

    Raises:
        OtLensError: If the style is unknown or the number of axes is wrong.
    """
    panels = description.on_paper
    columns = min(description.columns, len(panels))
    shape = (-(-len(panels) // columns), columns)
    own = _filled(axes, len(panels), shape)
    size, layout = _size(description, panels, shape, style)
    with canvas(style, own, shape, size, layout=layout, **SHARE[description.share]) as (figure, grid):
        for ax, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(ax, panel, (size[0] - BAR) / columns, columns)
        _titles(grid, description, panels)
        if axes is None:
            for ax in grid.flat[len(panels) :]:
                ax.set_visible(False)
            _share_titles(grid, panels)
            _finish(figure, grid, description, panels, style)
        elif panels[0].cells is not None:
            _bars(figure, grid, panels)
    return figure


def drawing(describe: Callable[..., Description]) -> Callable[..., Figure]:
    """The function that draws what `describe` returns; it takes `style` and `axes` as well (see `draw`)."""

    @wraps(describe)
    def drawn(*tables: Any, style: str = "icml", axes: AnyAxes = None, **options: Any) -> Figure:
        return draw(describe(*tables, **options), style=style, axes=axes)

    own = signature(describe)
    style, axes = (p for p in signature(draw).parameters.values() if p.name in ("style", "axes"))
    vars(drawn)["__signature__"] = Signature(
        [*own.parameters.values(), style, axes], return_annotation=Figure
    )
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


def _finish(
    figure: Figure, grid: np.ndarray, description: Description, panels: Sequence[Panel], style: str
) -> None:
    """Colour bars, or the legend."""
    if panels[0].cells is not None:
        _bars(figure, grid, panels)
    elif description.legend == "columns":
        column_legends(grid, figure.get_figwidth())
        figure.align_ylabels(grid[:, 0])
    else:
        figure.align_ylabels()
        free = grid.flat[len(panels)] if grid.size > len(panels) else None
        add_legend(figure, entries_of(description), style_named(style), free)


def _bars(figure: Figure, grid: np.ndarray, panels: Sequence[Panel]) -> None:
    cells = [panel.cells for panel in panels if panel.cells is not None]
    color_bars(figure, list(grid.flat[: len(cells)]), cells, grid.shape[0])


def _filled(axes: AnyAxes, count: int, shape: tuple[int, int]) -> np.ndarray | None:
    """The caller's axes, in a grid whose last row may stay open."""
    if axes is None:
        return None
    given = list(np.array(axes, dtype=object).reshape(-1))
    if not count <= len(given) <= shape[0] * shape[1]:
        raise OtLensError(f"{len(given)} axes given: this figure needs {count} ({shape[0]} x {shape[1]}).")
    return np.array(given + given[-1:] * (shape[0] * shape[1] - len(given)), dtype=object)


def _size(
    description: Description, panels: Sequence[Panel], shape: tuple[int, int], style: str
) -> tuple[tuple[float, float], Any]:
    """Width and height in inches, and the layout engine."""
    look, (rows, columns) = style_named(style), shape
    width = look.column if columns == 1 else look.text
    if panels[0].cells is not None:
        square = panels[0].cells.square
        height = 0.9 * (width - BAR) / columns if square else description.height
        return (width, rows * (height + 0.45)), "compressed" if square else "constrained"
    if panels[0].equal and panels[0].x.limits and panels[0].y.limits:
        width = look.text if columns > 2 else look.text * (0.3 + 0.25 * columns)
        ratio = np.ptp(panels[0].y.limits) / np.ptp(panels[0].x.limits)
        each = (width - 0.42 - TICKS * columns) / columns
        return (width, rows * (each * ratio + 0.15) + 0.8), "compressed"
    entries = entries_of(description)
    lines = -(-len(entries) // entries_per_row(entries, width, look)) if entries else 0
    if description.legend == "columns":
        lines = 4
    scale = look.text / 6.75
    # Two lines of an axis title need their height at any width.
    height = description.height * (max(1.0, scale) if description.legend == "columns" else scale) + 0.42
    if description.share in ("xy", "rows"):
        height -= 0.15
    return (width, rows * height + lines * 0.021 * look.small + 0.08), "constrained"


def _titles(grid: np.ndarray, description: Description, panels: Sequence[Panel]) -> None:
    """Titles of the panels; where paper shows several frames, titles name the frames and rows the panels."""
    frames = len(description.frames) > 1
    columns = grid.shape[1]
    if description.legend == "columns":
        for ax, title in zip(grid[0], titles_of(description), strict=False):
            ax.set_title(title)
        return
    for index, (ax, panel, title) in enumerate(zip(grid.flat, panels, titles_of(description), strict=False)):
        if not frames:
            ax.set_title(title, **({"color": panel.color} if panel.color else {}))
            continue
        if index < columns or not panel.title:
            ax.set_title(f"{description.slider} {panel.frame}")
        if panel.title and index % columns == 0:
            ax.set_ylabel(panel.title.replace(" ", "\n", 1) + "\n" + panel.y.title)


def _share_titles(grid: np.ndarray, panels: Sequence[Panel]) -> None:
    """Axis titles once per column and once per row, where all panels have the same."""
    columns = grid.shape[1]
    rows = {(panel.y.title, tuple(panel.cells.rows) if panel.cells else ()) for panel in panels}
    shared = len(rows) == 1 or grid.flat[0].get_shared_y_axes().joined(grid.flat[0], grid.flat[-1])
    by_row = columns > 1 and grid.flat[0].get_shared_y_axes().joined(grid[0, 0], grid[0, 1])
    for index, ax in enumerate(grid.flat[: len(panels)]):
        below = index + columns
        if below < len(panels) and panels[below].x.title == panels[index].x.title:
            ax.set_xlabel("")
        else:
            ax.tick_params(labelbottom=True)
        if index % columns and (shared or by_row):
            ax.set_ylabel("")
