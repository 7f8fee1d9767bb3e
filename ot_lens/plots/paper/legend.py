"""The legend of a description on paper."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ot_lens.plots.description import Area, Band, Description, Key, Line, Path, Points, Reference, marks_of
from ot_lens.plots.paper.canvas import Style
from ot_lens.plots.paper.elements import REFERENCE_DASHES, hatch_of
from ot_lens.plots.style import DASHES, MARKERS

# mean width of a letter as a share of its height, in the fonts of the styles
LETTER = 0.46
# inches of figure from which a legend above a panel has room for two columns
TWO_COLUMNS = 6.0
# most entries in an empty cell of the grid, and the size of their markers
MOST_IN_CELL, SIZE = 5, 4.8

Entry = Line2D | Patch


def entries_of(description: Description) -> list[Entry]:
    """One entry per mark, kind of band, tint, path and kind of reference, then the description's own."""
    entries: dict[str, Entry] = {}
    panels = description.on_paper if description.collect else []
    for element, panel in marks_of(panels):
        if element.mark.label != panel.title:
            entries[element.mark.label] = _of_mark(element)
    for kind in (Band, Area, Reference, Path):
        for element in (element for panel in panels for element in panel.of(kind)):
            entry = OTHERS[kind](element)
            entries.setdefault(str(entry.get_label()), entry)
    entries |= {key.label: _of_key(key) for key in description.keys}
    return [entry for label, entry in entries.items() if label]


def _of_mark(element: Line | Points) -> Line2D:
    mark, joined = element.mark, isinstance(element, Line)
    look: dict[str, Any] = {"color": mark.color, "markersize": SIZE, "label": mark.label}
    look |= {"marker": mark.mpl_marker if not isinstance(element, Line) or element.markers else ""}
    look |= {"markeredgecolor": "white", "markeredgewidth": 0.3}
    return Line2D([], [], linestyle=mark.mpl_dash if joined else "none", **look)


def _of_band(band: Band) -> Patch:
    look: dict[str, Any] = {"facecolor": band.mark.color, "alpha": 0.35, "linewidth": 0}
    return Patch(label=band.mark.label, hatch=hatch_of(band.mark), **look)


def _of_area(area: Area) -> Patch:
    return Patch(facecolor=area.color, alpha=area.opacity, linewidth=0, label=area.label)


def _of_reference(reference: Reference) -> Line2D:
    mark = reference.mark
    dash = REFERENCE_DASHES[mark.dash]
    return Line2D([], [], color=mark.color, linewidth=0.8, linestyle=dash, label=reference.label)


def _of_path(path: Path) -> Line2D:
    return Line2D([], [], color=path.color, linewidth=0.9, linestyle=(0, (1, 1)), label=path.label)


def _of_key(key: Key) -> Line2D:
    look: dict[str, Any] = {"color": key.color, "linestyle": DASHES[key.dash][0] if key.dash else "none"}
    look |= {"marker": MARKERS[key.marker][0] if key.marker else "", "markersize": key.size}
    return Line2D(
        [], [], linewidth=1.1, label=key.label, markerfacecolor="white" if key.hollow else key.color, **look
    )


OTHERS: dict[type, Any] = {Band: _of_band, Area: _of_area, Reference: _of_reference, Path: _of_path}


def entries_per_row(entries: Sequence[Entry], width: float, look: Style) -> int:
    """How many entries fit side by side in a width in inches."""
    widths = [_width(entry, look) for entry in entries]
    if sum(widths) < width:
        return max(1, len(entries))
    return max(1, min(len(entries), int(width / max(widths))))


def _width(entry: Entry, look: Style) -> float:
    return (len(str(entry.get_label())) * LETTER + 3.6) * look.small / 72


def add_legend(figure: Figure, entries: list[Entry], look: Style, free: Axes | None) -> None:
    """The legend below the panels, or in an empty cell of their grid if it fits."""
    width = figure.get_figwidth()
    if (
        free is not None
        and 0 < len(entries) <= MOST_IN_CELL
        and max(_width(e, look) for e in entries) < width / 3
    ):
        free.set_visible(True)
        free.set_axis_off()
        free.legend(handles=entries, loc="center left")
    elif entries:
        figure.legend(
            handles=entries, loc="outside lower center", ncols=entries_per_row(entries, width, look)
        )


def column_legends(grid: np.ndarray, width: float) -> None:
    """A legend above each column, with the column's title as its heading, all as high as the longest."""
    found = [ax.get_legend_handles_labels() for ax in grid[0]]
    columns = 2 if width > TWO_COLUMNS else 1
    rows = max(-(-len(handles) // columns) for handles, _ in found)
    for ax, (handles, labels) in zip(grid[0], found, strict=True):
        blank = columns * rows - len(handles)
        blanks = [Line2D([], [], linestyle="none")] * blank
        look: dict[str, Any] = {"ncols": columns, "alignment": "left", "bbox_to_anchor": (0.0, 1.02)}
        title = ax.get_title(loc="left")
        ax.set_title("")
        ax.legend(handles + blanks, labels + [""] * blank, loc="lower left", title=title, **look)
