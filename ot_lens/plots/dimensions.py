"""How many dimensions each class occupies, by depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.curve_panels import curve_figure
from ot_lens.plots.panels import CurvePanel, Series, null_of, without_empty
from ot_lens.plots.rows import at_position, checked, counts, curve
from ot_lens.plots.style import CLASSES

COLUMNS = ("layer", "quantity", "value")
TITLES = {"effective_rank": "effective rank", "participation_ratio": "participation ratio"}


def dimension_panels(geometry: pd.DataFrame, position: int | str | None = None) -> list[CurvePanel]:
    """A panel for each measure of dimension that the table holds.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = at_position(checked(geometry, "geometry", COLUMNS), position)
    panels = without_empty([_panel(rows, name, title) for name, title in TITLES.items()])
    if not panels:
        raise NothingToDrawError("the geometry table has no effective_rank or participation_ratio")
    return panels


def _panel(rows: pd.DataFrame, name: str, title: str) -> CurvePanel:
    parts = {label: rows[rows["quantity"] == f"{name}_{label}"] for label in CLASSES}
    series = tuple(Series(f"{name}_{k}", CLASSES[k], curve(part)) for k, part in parts.items())
    bands = tuple(band for k, part in parts.items() for band in null_of(part, f"{name}_{k}"))
    return CurvePanel(title, "dimensions", series, bands)


def effective_rank(
    geometry: pd.DataFrame,
    *,
    position: int | str | None = None,
    style: str = "icml",
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Effective rank and participation ratio of each class covariance by layer.

    Args:
        geometry: the table of `diagnose`.
        position: token position; the last in the table when None.
        style: "icml", "neurips" or "wide".
        axes: one axes for each of the two in the table, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    return curve_figure(dimension_panels(geometry, position), style=style, axes=axes, columns=2)


def caption(geometry: pd.DataFrame, **_: Any) -> str:
    """What `effective_rank` shows."""
    dimension_panels(geometry)
    names = [f"{name}_{label}" for name in TITLES for label in CLASSES]
    return (
        "Dimensions that the activations of each class occupy, by layer: the effective rank, exp(entropy of "
        "the normalized covariance spectrum), and the participation ratio, (sum l)^2 / sum l^2. Coloured "
        "bands: 95 % bootstrap intervals over prompts. Grey: mean (dotted) and 95 % band under permuted "
        "class labels, one band a class. Neither can exceed n - 1. n = "
        f"{counts(geometry[geometry['quantity'].isin(names)])} prompts a class."
    )
