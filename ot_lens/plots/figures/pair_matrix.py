"""Edits at two layers together."""

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.rows import COLUMNS, checked, counts, layers_of, marked_methods, matrix_of, numbers
from ot_lens.plots.style import BASELINE
from ot_lens.tables import PAIR, SINGLE, at_one_setting, baseline_of, measured, real_edits, select, single_layers

SCORE = "refusal_score"
MOST_METHODS = 4


def pair_matrix(localization: pd.DataFrame) -> Description:
    """Refusal score under edits at every two layers, one panel per method, the best pair outlined.

    Single layers are on the diagonal. The methods are those whose best pair brings the score lowest, at most
    four.

    Args:
        localization: The table of `localize` with sets "pair" and "single".
    """
    table = checked(localization, "localization", (*COLUMNS["localization"], "layers"))
    rows = measured(at_one_setting(real_edits(table)), SCORE, "harmful")
    pairs = select(rows, set=PAIR).dropna(subset="value")
    if pairs.empty:
        raise NothingToDrawError(
            "The localization table holds no pairs of layers: sweep them with sets: [single, pair, all]."
        )
    values = numbers(rows["value"])
    scale = ColorScale("refusal score (nats)", float(np.nanmin(values)), float(np.nanmax(values)))
    ranked = sorted(marked_methods(pairs), key=lambda item: float(item[1]["value"].min()))[:MOST_METHODS]
    labels = {mark.label for mark, _ in ranked}
    both = select(rows, set=(PAIR, SINGLE))
    layers = sorted({*layers_of(_with_ends(pairs), "first", "second"), *layers_of(single_layers(both))})
    panels = [
        _panel(own, mark.label, layers, scale) for mark, own in marked_methods(both) if mark.label in labels
    ]
    return described(panels, "localization", columns=2)


def _with_ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the first and the last of their layers."""
    ends = [str(layers).split(",") for layers in rows["layers"]]
    return rows.assign(first=[int(end[0]) for end in ends], second=[int(end[-1]) for end in ends])


def _panel(rows: pd.DataFrame, title: str, layers: list[int], scale: ColorScale) -> Panel:
    known = _with_ends(rows[rows["value"].notna()])
    matrix = matrix_of(known, "second", "first", "value", (layers, layers))
    pairs = np.where(np.eye(len(layers), dtype=bool), np.nan, matrix)
    best = None
    if np.isfinite(pairs).any():
        row, column = np.unravel_index(np.nanargmin(pairs), pairs.shape)
        best = (int(row), int(column))
    names = [str(layer) for layer in layers]
    return Panel(title, Axis("first layer"), Axis("second layer"), (Cells(matrix, names, names, scale, best=best),))


def caption(localization: pd.DataFrame, **_: object) -> str:
    """What `pair_matrix` shows."""
    panels = pair_matrix(localization).panels
    rows = measured(select(localization, set=PAIR), SCORE, "harmful")
    base = measured(baseline_of(localization), SCORE, "harmful")
    before = numbers(base["value"])
    level = f" ({BASELINE.label}: {before[0]:.1f} nats)" if np.isfinite(before).any() else ""
    which = "the four methods with the lowest score" if len(panels) == MOST_METHODS else "each method"
    return (
        f"Refusal score of harmful prompts at the last prompt token under edits at two layers{level}, "
        f"{which}; single layers on the diagonal. Outlined: the best of the pairs, chosen on the prompts "
        f"shown. Grey: not measured. Intervals are in the table. n = {counts(rows)} prompts."
    )
