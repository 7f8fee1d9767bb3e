"""Cosine between the refusal directions of two layers."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.rows import at_position, checked, counts, numbers, some
from ot_lens.plots.style import DIVERGING

COLUMNS = ("layer_a", "layer_b", "cosine")
COSINE = ColorScale("cosine of refusal directions", -1.0, 1.0, (-1.0, -0.5, 0.0, 0.5, 1.0), DIVERGING)
INTERVALS = (("low", "high", "95 % interval"), ("null_low", "null_high", "permuted labels"))


def direction_cosines(cosines: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Heat map, layer by layer, of the cosine between refusal directions; chance is marked.

    Args:
        cosines: The table of `geometry.direction_cosines`.
        position: Token position; the last in the table if None.

    Raises:
        TableError: If a column is missing or there is nothing to draw.
    """
    layers, matrix = cosine_matrix(cosines, position)
    names = [str(layer) for layer in layers]
    chance = by_chance(cosines, matrix, position) if "null_low" in cosines else None
    details = tuple(
        (name, cosine_matrix(cosines, position, low)[1], cosine_matrix(cosines, position, high)[1])
        for low, high, name in INTERVALS
        if {low, high} <= set(cosines.columns) and cosines[low].notna().any()
    )
    cells = Cells(matrix, names, names, COSINE, chance, details=details)
    return described([Panel("", Axis("layer"), Axis("layer"), (cells,))], "cosines", columns=1)


def cosine_matrix(
    cosines: pd.DataFrame, position: int | str | None = None, value: str = "cosine"
) -> tuple[list[int], Float[np.ndarray, "layers layers"]]:
    """Layers and the matrix [layers, layers] of one column; NaN where the table has no row.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = some(at_position(checked(cosines, "cosines", COLUMNS), position), "cosine", "cosine")
    layers = sorted({int(layer) for name in ("layer_a", "layer_b") for layer in rows[name].unique()})
    matrix = np.full((len(layers), len(layers)), np.nan)
    index = {layer: i for i, layer in enumerate(layers)}
    a, b = rows["layer_a"].map(index).to_numpy(), rows["layer_b"].map(index).to_numpy()
    matrix[a, b] = numbers(rows[value])
    return layers, np.where(np.isnan(matrix), matrix.T, matrix)


def by_chance(
    cosines: pd.DataFrame, matrix: Float[np.ndarray, "layers layers"], position: int | str | None = None
) -> Bool[np.ndarray, "layers layers"]:
    """Cells off the diagonal whose cosine lies inside the 95 % band of permuted labels."""
    if not {"null_low", "null_high"} <= set(cosines.columns):
        return np.zeros(matrix.shape, dtype=bool)
    low, high = (cosine_matrix(cosines, position, name)[1] for name in ("null_low", "null_high"))
    return (matrix >= low) & (matrix <= high) & ~np.eye(len(matrix), dtype=bool)


def caption(cosines: pd.DataFrame, **_: Any) -> str:
    """What `direction_cosines` shows."""
    matrix = cosine_matrix(cosines)[1]
    told = "Bold, or outside the thin line: outside the 95 % band of the same cosine under permuted labels. "
    null = told if "null_low" in cosines else ""
    blank = "Grey: a layer where the class means do not differ, so that there is no direction. "
    return (
        "Cosine between the difference-in-means (refusal) directions of two layers, at the last captured "
        f"token position. {null}{blank if np.isnan(matrix).any() else ''}n = {counts(cosines)} prompts of "
        "both classes."
    )
