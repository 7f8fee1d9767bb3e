"""What a figure shows, as data: panels with axes and elements. Two renderers draw any description.

`ot_lens.plots.paper` draws with matplotlib, `ot_lens.plots.screen` with plotly. A description holds values
in the units of the table; each renderer scales them (see `Axis.scale`), chooses sizes and collects the
legend.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.style import REFERENCE, SEQUENTIAL, Mark

Scale = Literal["linear", "log", "share", "cost"]
Values = Float[np.ndarray, " points"]
LEVEL = 0.95


@dataclass(frozen=True)
class Curve:
    """Values with the ends of their intervals, ordered by x; NaN where nothing was measured.

    The sample sizes `n` are for the hover text; `x_low` and `x_high` are there if x was measured too.
    """

    x: Values
    value: Values
    low: Values
    high: Values
    n: Values | None = None
    x_low: Values | None = None
    x_high: Values | None = None

    @property
    def isolated(self) -> Bool[np.ndarray, " points"]:
        """Points without a measured neighbour: a line and a band through them would be invisible."""
        known = np.isfinite(self.value)
        before = np.concatenate([[False], known[:-1]])
        after = np.concatenate([known[1:], [False]])
        return known & ~before & ~after

    @property
    def errors(self) -> Float[np.ndarray, "2 points"]:
        """Distances from the values to both ends of their intervals, zero where there is none."""
        return np.nan_to_num(np.clip([self.value - self.low, self.high - self.value], 0.0, None))

    @property
    def x_errors(self) -> Float[np.ndarray, "2 points"] | None:
        """The same along x; None if x has no intervals."""
        if self.x_low is None or self.x_high is None:
            return None
        return Curve(self.x, self.x, self.x_low, self.x_high).errors

    def at(self, rows: Bool[np.ndarray, " points"]) -> "Curve":
        """Some of the points."""
        return Curve(self.x[rows], self.value[rows], self.low[rows], self.high[rows])


@dataclass(frozen=True)
class Axis:
    """One axis of a panel: its title with the unit, and what the renderer is not to choose.

    A "share" goes from 0 to 1 and is drawn in per cent; a "cost" is linear near 0, then logarithmic (asinh).
    """

    title: str = ""
    scale: Scale = "linear"
    limits: tuple[float, float] | None = None
    ticks: tuple[tuple[float, str], ...] | None = None  # positions and names
    whole: bool = False  # positions are whole numbers, such as layers
    step: float = 0.5  # distance between the ticks of a share
    zero: bool = False  # the axis starts at 0


LAYER = Axis("layer", whole=True)


@dataclass(frozen=True)
class Line:
    """A line with its interval band; bars at isolated points. `name` is unique in the figure."""

    name: str
    mark: Mark
    curve: Curve
    markers: bool = True


@dataclass(frozen=True)
class Points:
    """Unconnected markers with interval bars. `name` is unique in the panel.

    Hover texts show `notes`, what each point is. With `ids`, such as numbers of prompts, a page can follow a
    point from panel to panel; then there is one note, which goes before the number.
    """

    name: str
    mark: Mark
    curve: Curve
    hollow: bool = False
    faint: bool = False
    size: float = 3.2  # diameter in points on paper
    notes: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    legend: bool = True  # the mark gets an entry


@dataclass(frozen=True)
class Band:
    """What values are compared with: a null, or the range of controls."""

    name: str
    mark: Mark
    curve: Curve


@dataclass(frozen=True)
class Area:
    """A tinted area between two curves over x."""

    name: str
    x: Values
    low: Values
    high: Values
    color: str
    label: str = ""
    opacity: float = 0.35


@dataclass(frozen=True)
class Reference:
    """A straight line at a meaningful value of y (of x if `vertical`), with its interval if it has one."""

    value: float
    label: str
    vertical: bool = False
    mark: Mark = REFERENCE
    low: float = np.nan
    high: float = np.nan


@dataclass(frozen=True)
class Path:
    """A thin line without data of its own: a front, a diagonal, other panels' curves."""

    name: str
    x: Values
    y: Values
    color: str
    label: str = ""
    dash: str = "solid"
    steps: bool = False


@dataclass(frozen=True)
class Ellipse:
    """The set that holds 95 % of a Gaussian in the plane."""

    name: str
    color: str
    mean: tuple[float, float]
    cov: tuple[tuple[float, float], tuple[float, float]]
    dash: str = "solid"
    group: str = ""

    def outline(self, level: float = LEVEL, points: int = 120) -> Float[np.ndarray, "points 2"]:
        """Points of the outline; a singular covariance, such as a projection leaves, gives a segment."""
        values, vectors = np.linalg.eigh(np.array(self.cov, dtype=np.float64))
        angle = np.linspace(0.0, 2 * np.pi, points)
        # The squared Mahalanobis radius is the chi-square quantile with two degrees of freedom.
        radii = np.sqrt(-2 * np.log(1 - level) * np.clip(values, 0.0, None))
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return np.array(self.mean, dtype=np.float64) + (circle * radii) @ vectors.T


@dataclass(frozen=True)
class Arrows:
    """Displacements, rows (x, y, dx, dy): thin grey ones, or one thick one of a mean."""

    name: str
    rows: Float[np.ndarray, "arrows 4"]
    thick: bool = False
    group: str = ""


@dataclass(frozen=True)
class Text:
    """Text at a point of a panel."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class ColorScale:
    """What colour means: title, ends and ticks of the colour bar, and its map in matplotlib and plotly.

    `numbered` says whether cells show their number where there is room.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...] | None = None
    maps: tuple[str, str] = SEQUENTIAL
    percent: bool = False
    log: bool = False
    numbered: bool = True

    def text(self, value: float) -> str:
        """The number of a cell, short."""
        if self.percent:
            return f"{100 * value:.0f}"
        largest = max(abs(self.low), abs(self.high))
        digits = 2 if largest <= 1 else 1 if abs(self.high) > 1 and largest < 10 else 0
        text = f"{value:.{digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\u2212")


@dataclass(frozen=True)
class Cells:
    """A heat map, alone in its panel: the first row at the bottom, NaN where nothing was measured."""

    matrix: Float[np.ndarray, "rows columns"]
    columns: Sequence[str]
    rows: Sequence[str]
    scale: ColorScale
    chance: Bool[np.ndarray, "rows columns"] | None = None  # cells that the null explains
    best: tuple[int, int] | None = None  # row and column of the cell to outline
    square: bool = True
    # more numbers of each cell for the hover text: name, lower and upper ends
    details: tuple[tuple[str, Float[np.ndarray, "rows columns"], Float[np.ndarray, "rows columns"]], ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), len(self.columns)

    @cached_property
    def significant(self) -> Bool[np.ndarray, "rows columns"]:
        """Cells that were measured and that the null does not explain; none without a null."""
        if self.chance is None:
            return np.zeros(self.shape, dtype=bool)
        return np.isfinite(self.matrix) & ~self.chance


Element = Line | Points | Band | Area | Reference | Path | Ellipse | Arrows | Text | Cells


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Elements are drawn in their order, the first at the back."""

    title: str
    x: Axis
    y: Axis
    elements: tuple[Any, ...]
    frame: int | None = None  # where on the slider a screen shows it; None for always
    color: str = ""  # of the title
    equal: bool = False  # both axes have the same scale

    def of(self, kind: type) -> list[Any]:
        """Elements of one kind."""
        return [element for element in self.elements if isinstance(element, kind)]

    @property
    def cells(self) -> Cells | None:
        """The heat map, if the panel is one."""
        return next(iter(self.of(Cells)), None)

    @property
    def positions(self) -> Values:
        """Positions along x at which something is drawn, ascending."""
        drawn = [element.curve.x for element in self.elements if isinstance(element, Line | Points | Band)]
        return np.unique(np.concatenate([*drawn, np.empty(0)]))


@dataclass(frozen=True)
class Key:
    """An entry of the legend that belongs to no single element."""

    label: str
    color: str
    marker: str = ""
    dash: str = ""
    hollow: bool = False
    size: float = 4.2


@dataclass(frozen=True)
class Description:
    """A figure of at least one panel, `columns` of them in a row.

    A legend "below" has entries of the elements (if `collect`) and `keys`; one of "columns" is above each
    column, with the panel's title as its heading.
    """

    panels: tuple[Panel, ...]
    columns: int = 3
    height: float = 1.28  # of a panel of free shape on paper, in inches at a text width of 6.75 inches
    keys: tuple[Key, ...] = ()
    legend: Literal["below", "columns"] = "below"
    collect: bool = True
    letters: bool = True  # titles begin with (a), (b), ... if there are several panels
    share: Literal["", "x", "y", "xy", "columns", "rows"] = ""  # axes with common limits and tick labels
    slider: str = ""  # what the frames of the panels count, such as "layer"
    frames: tuple[int, ...] = ()  # shown on paper
    first: int | None = None  # the frame that a screen shows first

    @property
    def on_paper(self) -> list[Panel]:
        """Panels of the frames that paper shows; `columns` counts those."""
        return [panel for panel in self.panels if panel.frame is None or panel.frame in self.frames]


def described(panels: Sequence[Panel], what: str, **options: Any) -> Description:
    """A description of the panels with a finite value, without the lines that hold none.

    Raises:
        NothingToDrawError: If no panel holds one.
    """
    drawn = [replace(panel, elements=tuple(filter(_finite, panel.elements))) for panel in panels]
    drawn = [panel for panel in drawn if any(isinstance(e, Line | Points | Cells) for e in panel.elements)]
    if not drawn:
        raise NothingToDrawError(f"The {what} table holds no finite value to draw.")
    return Description(tuple(drawn), **options)


def _finite(element: Element) -> bool:
    if isinstance(element, Line | Points):
        return bool(np.isfinite(element.curve.value).any())
    return not isinstance(element, Cells) or bool(np.isfinite(element.matrix).any())
