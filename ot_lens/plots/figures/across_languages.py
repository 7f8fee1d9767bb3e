"""How much of an edit's effect on refusal transfers from the language it was fitted in to others."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.rows import checked, counts, marked_methods, matrix_of, some
from ot_lens.plots.style import DIVERGING
from ot_lens.tables import UNEDITED, edits_of, select

SHARE = ColorScale("share of the effect (%)", 0.0, 1.0, (0.0, 0.5, 1.0), percent=True)
COSINE = ColorScale("cosine", -1.0, 1.0, (-1.0, 0.0, 1.0), DIVERGING)
FITTED, MEASURED = Axis("fitted in"), Axis("measured in")
Matrix = Float[np.ndarray, "fitted measured"]


def across_languages(languages: pd.DataFrame) -> Description:
    """Matrices of languages: the share of the effect that transfers, by method, and cosines of directions.

    Args:
        languages: The table of `across_languages`. Each method is shown at the layer where its edits have the
            largest effect in the language that they were fitted in; the cosines at that of the first method.
    """
    rows = some(checked(languages, "languages"), "value in the languages table")
    names, panels, first = list(dict.fromkeys(rows["measured_in"])), [], None
    for mark, own in marked_methods(rows):
        layer = _best_layer(own)
        first = layer if first is None else first
        panels.append(_panel(f"{mark.label}, layer {layer}", select(own, layer=layer), names))
    cosines = select(rows, method=UNEDITED, quantity="cosine", layer=first)
    panels.append(_cosines(f"directions, layer {first}", cosines, names))
    return described(panels, "languages", columns=2)


def _best_layer(rows: pd.DataFrame) -> int:
    own = rows[(rows["quantity"] == "effect") & (rows["fitted_in"] == rows["measured_in"])]
    means = own.groupby("layer")["value"].mean().fillna(-np.inf)
    return int(means.index[int(means.to_numpy().argmax())])


def _panel(title: str, rows: pd.DataFrame, names: list[str]) -> Panel:
    effects, shares = (select(rows, quantity=quantity) for quantity in ("effect", "share"))
    value, low, high = (_matrix(effects, name, names) for name in ("value", "null_low", "null_high"))
    details = [
        ("95 % interval of the share", shares, "low", "high"),
        ("effect (nats)", effects, "low", "high"),
        ("permuted labels (nats)", effects, "null_low", "null_high"),
    ]
    shown = tuple((name, _matrix(own, a, names), _matrix(own, b, names)) for name, own, a, b in details)
    share, chance = _matrix(shares, "value", names), (value >= low) & (value <= high)
    cells = Cells(share, names, names, SHARE, chance, details=shown)
    return Panel(title, MEASURED, FITTED, (cells,))


def _cosines(title: str, rows: pd.DataFrame, names: list[str]) -> Panel:
    def both(column: str) -> Matrix:
        half = _matrix(rows, column, names)
        return np.where(np.isnan(half), half.T, half)

    cosine, null = both("value"), (both("null_low"), both("null_high"))
    details = (("95 % interval", both("low"), both("high")), ("permuted labels", *null))
    chance = (cosine >= null[0]) & (cosine <= null[1])
    return Panel(title, Axis(), Axis(), (Cells(cosine, names, names, COSINE, chance, details=details),))


def _matrix(rows: pd.DataFrame, value: str, names: list[str]) -> Matrix:
    index = {name: number for number, name in enumerate(names)}
    places = {column: rows[column].map(index) for column in ("fitted_in", "measured_in")}
    numbered = rows.assign(**places)
    return matrix_of(numbered, "fitted_in", "measured_in", value, (range(len(names)), range(len(names))))


def caption(languages: pd.DataFrame, **_: object) -> str:
    """What `across_languages` shows."""
    edits = select(edits_of(languages), quantity="effect")
    return (
        "Maps fitted in one language and measured in another, each method at its most effective layer: how much "
        "the edit lowers the refusal score of harmful prompts, as a share of what the same method does at that "
        "layer when fitted in the language itself. Bold, or with a dot: more than edits fitted to "
        "permuted labels do. Grey: the method has no effect in the language itself. Last: the cosine of the "
        "languages' difference-in-means directions, bold or with a dot outside the 95 % band of permuted labels. "
        f"n = {counts(edits)} harmful prompts per language; the table holds every layer and the intervals."
    )
