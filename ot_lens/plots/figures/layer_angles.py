"""Principal angles between layers."""

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.rows import counts, layers_of, matrix_of, rows_of
from ot_lens.plots.style import CLASSES
from ot_lens.tables import select

ANGLE = ColorScale("angle (degrees)", 0.0, 90.0, (0.0, 30.0, 60.0, 90.0))


def layer_angles(layer_angles: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Heat maps, layer by layer, of the largest principal angle between leading subspaces, one per class.

    Args:
        layer_angles: Tables of `geometry.layer_angles`, of one class or of both.
    """
    rows = rows_of(layer_angles, "layer_angles", position)
    rows = select(rows, component=rows["component"].max())
    layers = layers_of(rows, "layer_a", "layer_b")
    panels = [_panel(select(rows, **{"class": label}), label, layers) for label in CLASSES]
    return described(panels, "layer_angles", columns=2)


def _panel(rows: pd.DataFrame, label: str, layers: list[int]) -> Panel:
    names = [str(layer) for layer in layers]
    matrix = matrix_of(rows, "layer_a", "layer_b", "angle", (layers, layers))
    chance = None
    if "null_low" in rows:
        low = matrix_of(rows, "layer_a", "layer_b", "null_low", (layers, layers))
        chance = (matrix >= low) | np.eye(len(layers), dtype=bool)
    cells = Cells(matrix, names, names, ANGLE, chance)
    return Panel(f"{label} activations", Axis("layer"), Axis("layer"), (cells,))


def caption(table: pd.DataFrame, **_: object) -> str:
    """What `layer_angles` shows."""
    blank = any(np.isnan(p.cells.matrix).any() for p in layer_angles(table).panels if p.cells)
    return (
        "Largest principal angle between the spaces of the "
        f"{table['component'].nunique()} leading principal components at two layers, one panel per class. "
        "Bold, or with a dot: smaller than the 95 % band of two random subspaces of that "
        f"dimension. {'Grey: too few dimensions at that layer. ' if blank else ''}"
        f"n = {counts(table)} prompts per class; the table holds the bootstrap intervals."
    )
