"""Whether heads are needed: what changes without them, against as many random heads."""

from typing import Any

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Curve, Description, Panel, Points, Reference, described
from ot_lens.plots.rows import checked, counts, some
from ot_lens.plots.style import BASELINE, NULL, Mark
from ot_lens.tables import select

# How heads are replaced, and what the rows of the figure say.
MODES = {"mean": "harmless mean", "resample": "one harmless prompt"}
CHOSEN = "chosen"
# What is shown: measure, prompts, title of the axis.
SHOWN = (
    ("refusal_score", "harmful", "refusal score\n(change, nats)"),
    ("refusal_score", "harmless", "refusal score\n(change, nats)"),
    ("kl", "harmless", "KL to the model\n(nats)"),
)
HEADS = Mark("heads that write most", "#0072B2", "circle", "solid")
RANDOM = Mark("as many random heads", NULL.color, "diamond", "solid")
OFFSET = 0.16


def ablated_heads(ablated_heads: pd.DataFrame) -> Description:
    """The change without the chosen heads and without random ones, by what takes their place.

    Args:
        ablated_heads: The table of `ablate_heads`, of one mode or several.
    """
    rows = some(checked(ablated_heads, "ablated_heads"), "value in the table of ablated heads", "change")
    rows = select(rows, set=CHOSEN)
    modes = [mode for mode in MODES if mode in set(rows["mode"])]
    names = tuple((float(i), MODES[mode]) for i, mode in enumerate(modes))
    y = Axis(limits=(len(modes) - 0.5, -0.5), ticks=names)
    panels = [
        _panel(select(rows, measure=measure, prompts=prompts), modes, prompts, Axis(title), y)
        for measure, prompts, title in SHOWN
    ]
    return described(
        panels, "ablated_heads", columns=len(panels), height=0.25 + 0.33 * len(modes), share="y", letters=False
    )


def _panel(rows: pd.DataFrame, modes: list[str], title: str, x: Axis, y: Axis) -> Panel:
    elements: list[Any] = [Reference(0.0, "", vertical=True, mark=BASELINE)]
    for row, mode in enumerate(modes):
        own = select(rows, mode=mode)
        elements += _point(own, HEADS, row - OFFSET, ("change", "change_low", "change_high"))
        elements += _point(own, RANDOM, row + OFFSET, ("null_mean", "null_low", "null_high"))
    return Panel(title, x, y, tuple(elements))


def _point(rows: pd.DataFrame, mark: Mark, at: float, columns: tuple[str, str, str]) -> list[Points]:
    if rows.empty:
        return []
    value, low, high = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan)[:1] for name in columns)
    y = np.array([at])
    return [Points(f"{mark.label}, {at:.0f}", mark, Curve(value, y, y, y, None, low, high), size=3.8)]


def caption(ablated_heads: pd.DataFrame, **_: object) -> str:
    """What `ablated_heads` shows."""
    rows = select(checked(ablated_heads, "ablated_heads"), set=CHOSEN)
    first = rows.iloc[0]
    tested = rows[rows["p_value"].notna()]
    p_values = ", ".join(f"{row['p_value']:.2g} ({MODES[row['mode']]})" for _, row in tested.iterrows())
    return (
        f"What changes at the next token without the {int(first['n_heads'])} heads that write most of the refusal "
        f"direction on training prompts (layer.head: {first['heads']}), when their outputs at the last token are "
        "those of harmless prompts: the mean, or those of one drawn for each prompt. Bars: 95 % intervals over "
        f"prompts; grey: the mean of {int(first['random_sets'])} sets of as many random heads, and where 95 % of "
        f"them lie. p of the refusal score of harmful prompts, one-sided: {p_values or 'none'}. "
        f"n = {counts(rows)} prompts."
    )
