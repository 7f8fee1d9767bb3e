"""Can a monitor see an edit: how far edited activations stand from the model's own harmless ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.curve_panels import curve_figure
from ot_lens.plots.panels import CurvePanel, Series, null_of, without_empty
from ot_lens.plots.rows import at_position, checked, counts, curve, numbers
from ot_lens.plots.style import BASELINE, NULL, Mark, method_mark, method_order, split_label
from ot_lens.tables import UNEDITED, baseline_of, edits_of, select

COLUMNS = ("layer", "edited_layer", "method", "quantity", "value")
TITLES = {
    "mahalanobis": ("distance", "Mahalanobis"),
    "mahalanobis_auc": ("monitor: distance", "AUC"),
    "classifier_auc": ("monitor: classifier", "AUC"),
}
UNSEEN = Mark("cannot be seen (null)", NULL.color, NULL.marker, NULL.dash)
HARMFUL = Mark("harmful, no edit", BASELINE.color, BASELINE.marker, BASELINE.dash)


def visibility_panels(visibility: pd.DataFrame, position: int | str | None = None) -> list[CurvePanel]:
    """Each quantity (columns) as read at the last captured layer, by edited layer.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = at_position(checked(visibility, "visibility", COLUMNS), position)
    read = rows[rows["layer"] == rows["layer"].max()]
    panels = without_empty([_panel(read, name, *titles) for name, titles in TITLES.items()])
    if not panels:
        raise NothingToDrawError("no finite value in the visibility table")
    return panels


def _panel(rows: pd.DataFrame, quantity: str, title: str, y: str) -> CurvePanel:
    part = rows[rows["quantity"] == quantity]
    edits = edits_of(part)
    labels = sorted(edits["method"].dropna().unique(), key=lambda name: method_order(*split_label(name)))
    layers = sorted(int(n) for n in edits["edited_layer"].unique())
    lines = {label: curve(select(edits, method=label), x="edited_layer") for label in labels}
    series = [Series(f"{quantity}/{label}", method_mark(label), line) for label, line in lines.items()]
    plain = baseline_of(part)
    if len(plain):
        level = pd.concat([plain.assign(edited_layer=layer) for layer in layers or [0]])
        series.insert(0, Series(f"{quantity}/{UNEDITED}", HARMFUL, curve(level, x="edited_layer")))
    bands = tuple(
        band
        for label in labels
        for band in null_of(select(edits, method=label), f"{quantity}/{label}", UNSEEN, "edited_layer")
    )
    limits = (_floor(part), 1.0) if quantity.endswith("auc") else None
    return CurvePanel(title, y, tuple(series), bands, x="edited layer", limits=limits)


def _floor(rows: pd.DataFrame) -> float:
    """Where an axis of AUC begins: 0.4, or below the lowest value."""
    ends = np.concatenate([numbers(rows[name]) for name in ("value", "low", "null_low") if name in rows])
    return min(0.4, float(np.nanmin(ends))) if np.isfinite(ends).any() else 0.4


def visibility_to_monitor(
    visibility: pd.DataFrame,
    *,
    position: int | str | None = None,
    style: str = "icml",
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """How visible an edit is to a monitor at the last layer, by edited layer and method.

    Args:
        visibility: the table of a study: rows of `geometry.visibility` with the column edited_layer.
        position: token position; the last in the table when None.
        style: "icml", "neurips" or "wide".
        axes: one axes for each quantity in the table, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    return curve_figure(visibility_panels(visibility, position), style=style, axes=axes, columns=3)


def caption(visibility: pd.DataFrame, **_: Any) -> str:
    """What `visibility_to_monitor` shows."""
    visibility_panels(visibility)
    layer = int(visibility["layer"].max())
    return (
        "How visible an edit is to a monitor that reads the last prompt token at layer "
        f"{layer}, by edited layer: the mean Mahalanobis distance of edited harmful activations to the "
        "model's own harmless ones, how well that distance tells the two apart (AUC; a monitor that never "
        "saw an edit), and how well a classifier does that was trained on both (AUC; a monitor that knows "
        "the edit). Dashed: harmful prompts without an edit. Tints: 95 % intervals over held-out scores. "
        "Grey: mean (dotted) and 95 % band of held-out harmless prompts (distance) or of permuted labels "
        "(AUC), a band a method, lying over each other. An edit inside the grey cannot be seen. "
        f"n = {counts(visibility)} activations, edited and harmless."
    )
