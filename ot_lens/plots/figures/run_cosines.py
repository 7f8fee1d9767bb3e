"""Refusal directions of this run compared with those of another."""

from typing import Any

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Cells, Description, Panel, described
from ot_lens.plots.figures.direction_cosines import COSINE
from ot_lens.plots.rows import at_position, checked, counts, matrix_of, some

COLUMNS = ("layer", "layer_other", "cosine")


def run_cosines(run_cosines: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Heat map of the cosine between refusal directions at this run's layers (x) and at another run's (y).

    Args:
        run_cosines: Columns layer, layer_other, cosine and, of a null, null_low and null_high.
        position: Token position; the last in the table if None.

    Raises:
        TableError: If a column is missing or there is nothing to draw.
    """
    rows = some(at_position(checked(run_cosines, "run_cosines", COLUMNS), position), "cosine", "cosine")
    own, other = (sorted({int(n) for n in rows[name].unique()}) for name in ("layer", "layer_other"))
    cells = {
        name: matrix_of(rows, "layer_other", "layer", name, (other, own))
        for name in ("cosine", "null_low", "null_high")
        if name in rows
    }
    chance = None
    if "null_low" in cells:
        chance = (cells["cosine"] >= cells["null_low"]) & (cells["cosine"] <= cells["null_high"])
    names = [str(n) for n in own], [str(n) for n in other]
    heat_map = Cells(cells["cosine"], *names, COSINE, chance)
    return described([Panel("", Axis("layer"), Axis(_other(rows)), (heat_map,))], "run_cosines", columns=1)


_describe = run_cosines  # the caption's parameter has the name of the table


def _other(rows: pd.DataFrame) -> str:
    name = str(rows["other"].iloc[0]) if "other" in rows else "the other run"
    return f"layer of {name}"


def caption(run_cosines: pd.DataFrame, **_: Any) -> str:
    """What `run_cosines` shows."""
    [panel] = _describe(run_cosines).panels
    [cells] = panel.of(Cells)
    blank = "Grey: no direction there. " if np.isnan(cells.matrix).any() else ""
    null = (
        ""
        if cells.chance is None
        else (
            "Bold, or outside the thin line: outside the 95 % band of the same cosine under permuted labels. "
        )
    )
    return (
        "Cosine between the difference-in-means (refusal) directions of this run and of another one "
        f"({panel.y.title.removeprefix('layer of ')}), at every two layers. {null}{blank}"
        f"n = {counts(run_cosines)} prompts of both classes."
    )
