"""How well fitted maps do on prompts they were not fitted on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.curve_panels import curve_figure
from ot_lens.plots.panels import CurvePanel, Reference, Series, null_of, without_empty
from ot_lens.plots.rows import at_position, checked, counts, curve, numbers
from ot_lens.plots.style import BASELINE, Mark, method_mark, method_order, split_label
from ot_lens.tables import select

COLUMNS = ("layer", "method", "quantity", "value")
BEFORE = Mark("not moved", BASELINE.color, BASELINE.marker, BASELINE.dash)
OPTIMAL = Reference(1.0, "optimal cost")
# quantity -> title, y axis, with null band, reference, limits
PANELS = {
    "w2_after": ("$W_2^2$ left", "activation²", True, (), None),
    "mean_error": ("error of the mean", "activation²", True, (), None),
    "covariance_error": ("error of the covariance", "relative", True, (), None),
    "transport_cost": ("transport cost", "activation²", False, (), None),
    "cost_over_bound": ("cost over its bound", "ratio", False, (OPTIMAL,), (1.0, 1.2)),
    "outside_target": ("outside the target", "share of prompts", True, (), (0.0, 1.0)),
}


def quality_panels(map_quality: pd.DataFrame, position: int | str | None = None) -> list[CurvePanel]:
    """One panel a quantity, one line a method.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = at_position(checked(map_quality, "map_quality", COLUMNS), position)
    panels = without_empty([_panel(rows, name) for name in PANELS])
    if not panels:
        raise NothingToDrawError("no finite value in the map_quality table")
    return panels


def _panel(rows: pd.DataFrame, quantity: str) -> CurvePanel:
    title, y, null, references, limits = PANELS[quantity]
    part = rows[rows["quantity"] == quantity]
    labels = sorted(rows["method"].dropna().unique(), key=lambda name: method_order(*split_label(name)))
    by_label = {label: select(part, method=label) for label in labels}
    series = [Series(f"{quantity}/{k}", method_mark(k), curve(own)) for k, own in by_label.items()]
    if quantity == "w2_after" and labels:
        before = select(rows, quantity="w2_before", method=labels[0])
        series.insert(0, Series("w2_before", BEFORE, curve(before)))
    bands = tuple(b for k, own in by_label.items() for b in null_of(own, f"{quantity}/{k}") if null)
    if quantity == "cost_over_bound" and limits is not None:
        limits = (limits[0], max([limits[1], *(top(own) for own in by_label.values())]))
    return CurvePanel(title, y, tuple(series), bands, references, limits=limits)


def top(rows: pd.DataFrame) -> float:
    """The largest value or upper end of an interval; 0 where there is none."""
    ends = np.concatenate([numbers(rows[name]) for name in ("value", "high") if name in rows])
    return float(np.nanmax(ends)) if np.isfinite(ends).any() else 0.0


def map_quality(
    map_quality: pd.DataFrame,
    *,
    position: int | str | None = None,
    style: str = "icml",
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Push-forward error, transport cost against its bound, and extrapolation of maps on held-out prompts.

    Args:
        map_quality: tables of `geometry.map_quality`, one method or several.
        position: token position; the last in the table when None.
        style: "icml", "neurips" or "wide".
        axes: one axes for each of the six quantities in the table, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    return curve_figure(quality_panels(map_quality, position), style=style, axes=axes, columns=3)


def caption(map_quality: pd.DataFrame, **_: Any) -> str:
    """What `map_quality` shows."""
    quality_panels(map_quality)
    return (
        "Maps on held-out prompts, by layer: (a) the squared Gaussian W2 distance left between moved "
        "harmful and harmless activations (dashed: before the move); the error of the pushed-forward mean "
        "(squared distance) and covariance (Frobenius norm over that of the target); the mean squared "
        "displacement; that over the squared W2 between the samples and their images, which no map with "
        "those images can undercut; and the share of moved prompts outside the range of the harmless "
        "training prompts along a leading component. Tints: 95 % bootstrap intervals over prompts. Grey: "
        "mean (dotted) and 95 % band under permuted labels, a band a method, lying over each other: a "
        f"perfect map lands inside. n = {counts(map_quality)} prompts."
    )
