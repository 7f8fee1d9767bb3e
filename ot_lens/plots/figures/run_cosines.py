"""Refusal directions of this run compared with those of another."""

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Cells, Description, Panel, described
from ot_lens.plots.figures.direction_cosines import COSINE, NULL, within
from ot_lens.plots.rows import counts, layers_of, matrix_of, rows_of


def run_cosines(run_cosines: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Heat map of the cosine between refusal directions at this run's layers (x) and at another run's (y).

    Args:
        run_cosines: Columns layer, layer_other, cosine and, of a null, null_low and null_high.
    """
    rows = rows_of(run_cosines, "run_cosines", position)
    layers = layers_of(rows, "layer_other"), layers_of(rows, "layer")
    cosine, *null = (
        matrix_of(rows, "layer_other", "layer", name, layers)
        for name in ("cosine", "null_low", "null_high")
        if name in rows
    )
    other = str(rows["other"].iloc[0]) if "other" in rows else "the other run"
    cells = Cells(cosine, [*map(str, layers[1])], [*map(str, layers[0])], COSINE, within(cosine, null))
    return described([Panel("", Axis("layer"), Axis(f"layer of {other}"), (cells,))], "run_cosines", columns=1)


def caption(table: pd.DataFrame, **_: object) -> str:
    """What `run_cosines` shows."""
    [panel] = run_cosines(table).panels
    [cells] = panel.of(Cells)
    blank = "Grey: no direction there. " if np.isnan(cells.matrix).any() else ""
    return (
        "Cosine between the difference-in-means (refusal) directions of this run and of another one "
        f"({panel.y.title.removeprefix('layer of ')}), at every two layers. "
        f"{NULL if cells.chance is not None else ''}{blank}n = {counts(table)} prompts of both classes."
    )
