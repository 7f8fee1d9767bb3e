"""Which blocks make refusal, where it can be changed, and where it can be seen, as each localizer has it."""

import numpy as np
import pandas as pd

from ot_lens.plots.description import Area, Axis, Description, Line, Panel, described
from ot_lens.plots.rows import checked, counts, curve, finite, null_of, some
from ot_lens.plots.style import NULL, Mark
from ot_lens.tables import select

SAYS = {
    "makes it": Mark("block makes refusal", "#7B5AA6", "circle", "solid"),
    "can be changed": Mark("refusal can be changed", "#B5762A", "square", "solid"),
    "can be seen": Mark("refusal can be seen", "#4C72B0", "diamond", "solid"),
}
OTHER = Mark("other", "#6A7F93", "star", "solid")
NOTHING = Mark("if the block did nothing", NULL.color, NULL.marker, NULL.dash)
LEARNT = Mark("learnt here", "#2E8540", "circle")


def localizers(localizers: pd.DataFrame) -> Description:
    """The effect of each block by localizer, with its null, and the band that stands out tinted.

    Args:
        localizers: The table of `locate_by_layer`; with planted_first and planted_last where it is known
            which layers learnt to refuse.
    """
    rows = some(checked(localizers, "localizers"), "value in the localizers table")
    names = list(dict.fromkeys(rows["localizer"]))
    panels = [_panel(name, select(rows, localizer=name)) for name in names]
    return described(panels, "localizers", columns=4 if len(names) > 9 else 3, height=1.1)


def _panel(name: str, rows: pd.DataFrame) -> Panel:
    first = rows.iloc[0]
    mark = SAYS.get(str(first["says"]), OTHER)
    known = finite(rows, "value", "low", "high", "null_low", "null_high")
    low, high = min(known), max(known)
    bands = [_area(f"{name}/band", first, "band", (low, high), mark)]
    if {"planted_first", "planted_last"} <= set(rows.columns):
        # Along the bottom, so that both can be seen where they meet.
        bands.append(_area(f"{name}/learnt", first, "planted", (low, low + 0.06 * (high - low)), LEARNT))
    lines = Line(name, mark, curve(rows), markers=False)
    elements = (*(band for band in bands if band is not None), *null_of(rows, f"{name}/null", NOTHING), lines)
    return Panel(str(first["label"]), Axis("layer", whole=True), Axis(str(first["unit"])), elements)


def _area(name: str, row: pd.Series, which: str, ends: tuple[float, float], mark: Mark) -> Area | None:
    """A tint over the layers of a band; None where there is none."""
    if pd.isna(row[f"{which}_first"]):
        return None
    x = np.array([float(row[f"{which}_first"]) - 0.5, float(row[f"{which}_last"]) + 0.5])
    low, high = (np.full(2, end) for end in ends)
    label, opacity = (mark.label, 0.9) if which == "planted" else ("", 0.22)
    return Area(name, x, low, high, mark.color, label, opacity)


def caption(localizers: pd.DataFrame, **_: object) -> str:
    """What `localizers` shows."""
    one = localizers.drop_duplicates("localizer")
    says = ", ".join(f"{row['label']}: {_told(row)}" for _, row in one.iterrows())
    planted = " Green along the bottom: the layers that learnt to refuse." if "planted_first" in one else ""
    return (
        "What each block does to refusal, by localizer. Left out, or with the base model's block in its place: "
        "how much less the classes differ in refusal score (which blocks make refusal). Mean shift and "
        "interchange: how much further the edit lowers the refusal score of harmful prompts after the block "
        "than before it (where it can be changed). Direction and probe: how much further the classes are apart "
        "after the block (where it can be seen). Tints over all of the height: the band of layers that stands "
        f"out, by localizer: {says}.{planted} Around the lines: 95 % bootstrap intervals over prompts. Grey: mean "
        "(dotted) and 95 % band if the blocks did nothing (labels permuted; signs flipped where only harmful "
        f"prompts are edited). n = {counts(localizers)} prompts."
    )


def _told(row: pd.Series) -> str:
    if row["verdict"] != "band":
        return str(row["verdict"])
    first, last = int(row["band_first"]), int(row["band_last"])
    return f"layer {first}" if first == last else f"layers {first}-{last}"
