"""Similarity of the representations at two layers."""

from itertools import product

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.rows import counts, layers_of, matrix_of, rows_of
from ot_lens.plots.style import CLASSES
from ot_lens.tables import select

SCALES = {
    "linear_cka": ColorScale("CKA", 0.0, 1.0, (0.0, 0.5, 1.0)),
    "projection_kernel": ColorScale("projection kernel", 0.0, 1.0, (0.0, 0.5, 1.0)),
}
INTERVALS = (("low", "high", "95 % interval"), ("null_low", "null_high", "by chance"))


def layer_similarity(layer_similarity: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Heat maps, layer by layer, of both similarities, one panel per quantity and class.

    Args:
        layer_similarity: The table of `geometry.similarity` of one capture.
    """
    rows = rows_of(layer_similarity, "layer_similarity", position)
    layers = layers_of(rows, "layer_a", "layer_b")
    panels = [
        _panel(select(rows, quantity=quantity, **{"class": label}), scale, label, layers)
        for (quantity, scale), label in product(SCALES.items(), CLASSES)
    ]
    return described(panels, "layer_similarity", columns=2)


def _panel(rows: pd.DataFrame, scale: ColorScale, label: str, layers: list[int]) -> Panel:
    def matrix(column: str) -> np.ndarray:
        return matrix_of(rows, "layer_a", "layer_b", column, (layers, layers))

    names, value = [str(layer) for layer in layers], matrix("value")
    known = [ends for ends in INTERVALS if set(ends[:2]) <= set(rows.columns)]
    chance = (value <= matrix("null_high")) | np.eye(len(layers), dtype=bool) if "null_high" in rows else None
    details = tuple((name, matrix(low), matrix(high)) for low, high, name in known)
    cells = Cells(value, names, names, scale, chance, details=details)
    return Panel(f"{scale.label}, {label}", Axis("layer"), Axis("layer"), (cells,))


def caption(table: pd.DataFrame, **_: object) -> str:
    """What `layer_similarity` shows."""
    blank = any(np.isnan(p.cells.matrix).any() for p in layer_similarity(table).panels if p.cells)
    grey = "Grey: a layer at which the prompts do not differ in enough dimensions. "
    return (
        "Similarity of the activations at two layers, one panel per measure and class. Debiased linear CKA: "
        "whether the prompts lie in the same pattern. Projection kernel: whether they vary along the same leading "
        "principal components. Bold, or with a dot: above the 95 % band of permuted prompts (CKA) or "
        f"of two random subspaces (kernel). {grey if blank else ''}n = {counts(table)} prompts per class; the "
        "table holds the intervals."
    )
