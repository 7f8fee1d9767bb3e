"""The legend of a description on paper."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ot_lens.plots.description import Area, Band, Description, Key, Line, Panel, Path, Points, Reference
from ot_lens.plots.paper.canvas import Style
from ot_lens.plots.paper.elements import REFERENCE_DASHES, hatch_of
from ot_lens.plots.style import DASHES, MARKERS

# mean width of a letter as a share of its height, in the fonts of the styles
LETTER = {"stix": 0.46, "dejavusans": 0.56}
# inches of a panel's share of the figure from which a legend above it has room for two columns
TWO_COLUMNS = 2.0
# most entries in an empty cell of the grid, and the size of their markers
MOST_IN_CELL, SIZE = 5, 4.8
# order of the entries, by kind of element
ORDER = (Line | Points, Band, Area, Reference, Path)

Entry = Line2D | Patch


def entries_of(description: Description) -> list[Entry]:
    """One entry per mark, kind of band, tint, path and kind of reference, then the description's own."""
    entries: dict[str, Entry] = {}
    for entry in _collected(description):
        entries.setdefault(str(entry.get_label()), entry)
    entries |= {key.label: _of_key(key) for key in description.keys}
    return [entry for label, entry in entries.items() if label]


def _collected(description: Description) -> Iterator[Entry]:
    """The entries of all elements, kind by kind; a panel's title need not be repeated."""
    drawn = [(e, p) for p in description.on_paper for e in p.elements] if description.collect else []
    for kind in ORDER:
        for element, panel in drawn:
            hidden = isinstance(element, Points) and not element.legend
            if isinstance(element, kind) and not hidden:
                entry = _entry(element)
                if not isinstance(element, Line | Points) or entry.get_label() != panel.title:
                    yield entry


def _entry(element: Any) -> Entry:
    if isinstance(element, Area):
        return Patch(facecolor=element.color, alpha=element.opacity, linewidth=0, label=element.label)
    if isinstance(element, Path):
        dotted: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (1, 1))}
        return Line2D([], [], color=element.color, label=element.label, **dotted)
    mark = element.mark
    look: dict[str, Any] = {"color": mark.color, "label": mark.label}
    if isinstance(element, Band):
        return Patch(facecolor=mark.color, alpha=0.35, linewidth=0, label=mark.label, hatch=hatch_of(mark))
    if isinstance(element, Reference):
        look |= {"label": element.label, "linewidth": 0.8, "linestyle": REFERENCE_DASHES[mark.dash]}
        return Line2D([], [], **look)
    joined = isinstance(element, Line)
    look |= {"marker": MARKERS[mark.marker][0] if not joined or element.markers else "", "markersize": SIZE}
    look |= {"linestyle": DASHES[mark.dash][0] if joined else "none"}
    return Line2D([], [], markeredgecolor="white", markeredgewidth=0.3, **look)


def _of_key(key: Key) -> Line2D:
    look: dict[str, Any] = {"color": key.color, "linestyle": DASHES[key.dash][0] if key.dash else "none"}
    look |= {"marker": MARKERS[key.marker][0] if key.marker else "", "markersize": key.size}
    look |= {"markerfacecolor": "white" if key.hollow else key.color}
    return Line2D([], [], linewidth=1.1, label=key.label, **look)


def entries_per_row(entries: Sequence[Entry], width: float, look: Style) -> int:
    """How many entries fit side by side in a width in inches."""
    widths = [_width(entry, look) for entry in entries]
    if sum(widths) < width:
        return max(1, len(entries))
    return max(1, min(len(entries), int(width / max(widths))))


def _width(entry: Entry, look: Style) -> float:
    return (len(str(entry.get_label())) * LETTER[look.math] + 3.6) * look.small / 72


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


def rows_above(panels: Sequence[Panel], columns: int, width: float) -> int:
    """Rows of the longest legend above a column of panels, in a figure of a width in inches."""
    labels = [{line.mark.label for p in panels[i::columns] for line in p.of(Line)} for i in range(columns)]
    return -(-max(map(len, labels)) // _side_by_side(width, columns))


def _side_by_side(width: float, columns: int) -> int:
    """Columns of a legend above one of so many columns of panels."""
    return 2 if width / columns > TWO_COLUMNS else 1


def column_legends(grid: np.ndarray, width: float) -> None:
    """A legend above each column, with the column's title as its heading, all as high as the longest."""
    found = [_entries_in(list(column)) for column in grid.T]
    columns = _side_by_side(width, len(grid[0]))
    rows = max(-(-len(entries) // columns) for entries in found)
    for ax, entries in zip(grid[0], found, strict=True):
        labels, handles = list(entries), list(entries.values())
        blank = columns * rows - len(handles)
        blanks = [Line2D([], [], linestyle="none")] * blank
        look: dict[str, Any] = {"ncols": columns, "alignment": "left", "bbox_to_anchor": (0.0, 1.02)}
        title = ax.get_title(loc="left")
        ax.set_title("")
        ax.legend(handles + blanks, labels + [""] * blank, loc="lower left", title=title, **look)


def _entries_in(column: Sequence[Axes]) -> dict[str, Any]:
    """The entries of a column of panels by label; a method may be missing in the uppermost."""
    known: dict[str, Any] = {}
    for ax in column:
        handles, labels = ax.get_legend_handles_labels()
        known = dict(zip(labels, handles, strict=True)) | known
    return known
