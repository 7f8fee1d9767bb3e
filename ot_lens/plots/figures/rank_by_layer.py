"""PCA-OT by layer and rank."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.measures import KL, REFUSES, RIGHT, Measure, sweep_rows
from ot_lens.plots.rows import counts, layers_of, matrix_of, settings
from ot_lens.tables import measured, select, single_layers


def rank_by_layer(localization: pd.DataFrame) -> Description:
    """What PCA-OT at one layer does, by layer (x) and rank (y): refused, answered correctly, cost.

    Args:
        localization: The table of `localize`, with at least two ranks.
    """
    rows = _ranked(localization)
    ranks = sorted({int(k) for k in rows["k"]})
    if len(ranks) < 2:
        raise NothingToDrawError("The localization table holds fewer than two ranks of PCA-OT.")
    panels = [grid_panel(rows, measure, "k", ranks, "rank $k$") for measure in (REFUSES, RIGHT, KL)]
    return described(panels, "localization", height=0.3 + 0.2 * len(ranks))


def _ranked(localization: pd.DataFrame) -> pd.DataFrame:
    """Rows of PCA-OT at single layers; without its gated or constrained forms, which have ranks as well."""
    rows = select(single_layers(sweep_rows(localization)), method="pca_ot")
    return rows[rows["k"].notna()]


def grid_panel(
    rows: pd.DataFrame, measure: Measure, row: str, levels: Sequence[int | float], y: str, title: str = ""
) -> Panel:
    """One measure as cells, by layer (x) and levels of a column (y)."""
    layers = layers_of(rows)
    matrix = matrix_of(
        measured(rows, measure.name, measure.prompts), row, "layer", "value", (levels, layers)
    )
    names = [str(layer) for layer in layers], [f"{level:g}" for level in levels]
    text = title or f"{measure.prompts}: {measure.label.partition(' (')[0]}"
    cells = Cells(matrix, *names, _scale(measure, matrix), square=False)
    return Panel(text, Axis("layer"), Axis(y), (cells,))


def _scale(measure: Measure, matrix: np.ndarray) -> ColorScale:
    if measure.scale == "share":
        return ColorScale(f"{measure.prompts} (%)", 0.0, 1.0, (0.0, 0.5, 1.0), percent=True)
    largest = float(np.nanmax(matrix)) if np.isfinite(matrix).any() else 1.0
    return ColorScale(measure.label, 0.0, max(largest, 1e-6), numbered=False)


def caption(localization: pd.DataFrame, **_: object) -> str:
    """What `rank_by_layer` shows."""
    rows = _ranked(localization)
    return (
        "PCA-OT at one layer, by layer and rank k: share of harmful prompts refused, share of them "
        "answered correctly, and KL(original || edited) on harmless prompts as the cost. Intervals are in the "
        f"table. n = {counts(rows)} prompts; {settings(rows)}."
    )
