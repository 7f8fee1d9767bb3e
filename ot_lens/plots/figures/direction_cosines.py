"""Cosine between the refusal directions of two layers."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.rows import counts, layers_of, matrix_of, rows_of
from ot_lens.plots.style import DIVERGING

COSINE = ColorScale("cosine of refusal directions", -1.0, 1.0, (-1.0, -0.5, 0.0, 0.5, 1.0), DIVERGING)
INTERVALS = (("low", "high", "95 % interval"), ("null_low", "null_high", "permuted labels"))
NULL = "Bold, or with a dot: outside the 95 % band of the same cosine under permuted labels. "
Matrix = Float[np.ndarray, "layers layers"]


def direction_cosines(cosines: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Heat map, layer by layer, of the cosine between refusal directions; chance is marked.

    Args:
        cosines: The table of `geometry.direction_cosines`.
    """
    rows = rows_of(cosines, "cosines", position)
    layers = layers_of(rows, "layer_a", "layer_b")

    def matrix(column: str) -> Matrix:
        """One column of the table, which may hold either half of the matrix."""
        half = matrix_of(rows, "layer_a", "layer_b", column, (layers, layers))
        return np.where(np.isnan(half), half.T, half)

    details = tuple(
        (name, matrix(low), matrix(high))
        for low, high, name in INTERVALS
        if {low, high} <= set(rows.columns) and cosines[low].notna().any()
    )
    cosine, names = matrix("cosine"), [str(layer) for layer in layers]
    null = [matrix(name) for name in ("null_low", "null_high") if name in rows]
    chance = within(cosine, null)
    if chance is not None:
        np.fill_diagonal(chance, val=True)
    cells = Cells(cosine, names, names, COSINE, chance, details=details)
    return described([Panel("", Axis("layer"), Axis("layer"), (cells,))], "cosines", columns=1)


def within(
    matrix: Float[np.ndarray, "rows columns"], ends: list[Float[np.ndarray, "rows columns"]]
) -> Bool[np.ndarray, "rows columns"] | None:
    """The cells that a null band explains; None without a band."""
    return (matrix >= ends[0]) & (matrix <= ends[1]) if len(ends) == 2 else None


def caption(cosines: pd.DataFrame, **_: object) -> str:
    """What `direction_cosines` shows."""
    [cells] = direction_cosines(cosines).panels[0].of(Cells)
    blank = "Grey: a layer where the class means do not differ, so that there is no direction. "
    return (
        "Cosine between the difference-in-means (refusal) directions of two layers, at the last captured token "
        f"position. {NULL if cells.chance is not None else ''}{blank if np.isnan(cells.matrix).any() else ''}"
        f"n = {counts(cosines)} prompts of both classes."
    )
