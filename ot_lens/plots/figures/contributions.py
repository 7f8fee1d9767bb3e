"""Which heads and MLPs write a direction: the class difference of each one's contribution."""

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.rows import checked, counts, finite, layers_of, matrix_of, some, unit_of
from ot_lens.plots.style import DIVERGING
from ot_lens.tables import select

DIFFERENCE, LEVEL = "difference", 0.05
# Columns behind the heads, as far as a model has them.
WHOLE = {"attention": "attn", "mlp": "MLP", "block": "block"}
# Names along an axis of heads at most, and inches of a layer, within limits.
MOST_HEADS, PER_LAYER, HEIGHTS = 8, 0.09, (1.7, 5.0)


def contributions(contributions: pd.DataFrame) -> Description:
    """Class differences of contributions: a row for each layer, a column for each head, attention and MLP.

    Args:
        contributions: The table of `contributions`.
    """
    rows = some(_differences(contributions), "value in the contributions table")
    layers, heads = layers_of(rows), _heads(rows)
    wholes = [kind for kind in WHOLE if kind in set(rows["component"])]
    columns = [*heads, *(-1 - number for number in range(len(wholes)))]
    places = {kind: -1 - number for number, kind in enumerate(wholes)}
    placed = rows.assign(column=rows["component"].map(places).where(rows["head"].isna(), rows["head"]).astype(int))
    value, low, high, p = (
        matrix_of(placed, "layer", "column", name, (layers, columns)) for name in ("value", "low", "high", "p_holm")
    )
    most = max(map(abs, finite(rows, "value")))
    scale = ColorScale(f"class difference ({unit_of(rows)})", -most, most, maps=DIVERGING, numbered=False)
    names = [*map(str, heads), *(WHOLE[kind] for kind in wholes)]
    shown = range(0, len(heads), max(1, -(-len(heads) // MOST_HEADS)))
    ticks = [*((float(i), names[i]) for i in shown), *((float(i), names[i]) for i in range(len(heads), len(names)))]
    cells = Cells(
        value, names, list(map(str, layers)), scale, ~(p < LEVEL), square=False, details=(("95 %", low, high),)
    )
    panel = Panel("", Axis("head" if heads else "", ticks=tuple(ticks)), Axis("layer"), (cells,))
    height = float(np.clip(PER_LAYER * len(layers), *HEIGHTS))
    return described([panel], "contributions", columns=1, height=height)


def _differences(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of heads, attentions, MLPs and blocks."""
    rows = select(checked(table, "contributions"), prompts=DIFFERENCE)
    return rows[rows["component"].isin(["head", *WHOLE])]


def _heads(rows: pd.DataFrame) -> list[int]:
    return sorted({int(head) for head in rows["head"].dropna()})


def caption(contributions: pd.DataFrame, **_: object) -> str:
    """What `contributions` shows."""
    rows = _differences(contributions)
    at = contributions["at_layer"].dropna().unique()
    where = f"the stream that enters layer {int(at[0])}" if len(at) else "the stream that leaves the last layer"
    summed = " summed over all tokens" if "all" in set(contributions["tokens"]) else " at the prompt's last token"
    several = rows[rows["component"] != "attention"] if _heads(rows) else rows
    top = several[several["p_holm"] < LEVEL].sort_values("value", key=abs, ascending=False, kind="stable").head(3)
    told = ", ".join(f"{_name(row)} ({row['value']:+.2g})" for _, row in top.iterrows()) or "none"
    return (
        f"Who writes the refusal direction: what each component adds along it to {where},{summed}; mean over "
        "harmful prompts less mean over harmless ones. Columns: the heads, whose sum, with a bias, is the "
        "attention (attn), and the MLP. Embedding, attention and MLP outputs sum to the whole difference. "
        f"With a dot: distinguishable from permuted labels (Holm over all components, {LEVEL:.0%}). "
        f"Largest of the others: {told}. Grey: no such head. Intervals are in the table. "
        f"n = {counts(rows)} prompts."
    )


def _name(row: pd.Series) -> str:
    if row["component"] == "head":
        return f"head {int(row['head'])} of layer {int(row['layer'])}"
    return f"{WHOLE[row['component']]} {int(row['layer'])}"
