"""How far the answer follows activations that were replaced, over layers and tokens."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.rows import checked, counts, layers_of, matrix_of, numbers, some
from ot_lens.plots.style import CLASSES, DIVERGING
from ot_lens.tables import select

LEVEL = 0.05
MAP = ["kind", "module", "patched"]
KINDS = {"interchange": "interchange", "knock_out": "knock-out"}
MODULES = {"block": "block", "attention": "attention", "mlp": "MLP"}
INTERVALS = (("low", "high", "95 % interval"), ("null_low", "null_high", "partner of the same class"))


def interchange_map(interchange: pd.DataFrame) -> Description:
    """Heat map of the change of the refusal score by layer and token, one panel per module and class.

    Args:
        interchange: The table of `interchange`.
    """
    rows = some(checked(interchange, "interchange"), "value in the interchange table")
    largest = float(np.nanmax(np.abs(numbers(rows["value"])))) or 1.0
    scale = ColorScale("change of refusal score (nats)", -largest, largest, maps=DIVERGING, numbered=False)
    panels = [_panel(own, scale) for own in _maps(rows)]
    return described(panels, "interchange", columns=min(len(panels), 2), height=1.6)


def _maps(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for kind, module, patched in rows[MAP].drop_duplicates().itertuples(index=False):
        yield select(rows, kind=kind, module=module, patched=patched)


def _panel(rows: pd.DataFrame, scale: ColorScale) -> Panel:
    first = rows.iloc[0]
    layers, positions = layers_of(rows), list(dict.fromkeys(rows["position"]))
    numbered = rows.assign(column=rows["position"].map(positions.index))

    def matrix(name: str) -> np.ndarray:
        return matrix_of(numbered, "layer", "column", name, (layers, range(len(positions))))

    details = tuple(
        (name, matrix(low), matrix(high)) for low, high, name in INTERVALS if rows[low].notna().any()
    )
    cells = Cells(
        matrix("value"), positions, [str(layer) for layer in layers], scale, ~(matrix("p_adjusted") < LEVEL),
        square=False, details=details,
    )  # fmt: skip
    what = f"{KINDS.get(first['kind'], first['kind'])}, {MODULES.get(first['module'], first['module'])}"
    mark = CLASSES.get(str(first["patched"]))
    title = f"{what}, {first['patched']}"
    return Panel(title, Axis("token"), Axis("layer"), (cells,), color=mark.color if mark else "")


def _template(rows: pd.DataFrame) -> str:
    """The tokens behind the instruction, by their positions."""
    one = rows.drop_duplicates("position")
    named = one[(one["token"] != one["position"]) & (one["token"] != "instruction")]
    return ", ".join(f"{row['position']} {row['token']}" for _, row in named.iterrows())


def caption(interchange: pd.DataFrame, **_: object) -> str:
    """What `interchange_map` shows."""
    kinds = set(interchange["kind"])
    left = interchange["n_left_out"].max()
    parts = []
    if "interchange" in kinds:
        parts.append(
            "Change of the refusal score where the output of a block, its attention or its MLP at one token is "
            "replaced by that of a prompt of the other class at the same token, counted from the prompt's end."
        )
    if "knock_out" in kinds:
        parts.append("Knock-out: the same with what it adds left out.")
    parts.append(
        "Titles name the class of the prompts whose activations are replaced. With a dot: more than "
        "a partner of the same class does (knock-out: more than nothing; signs of the prompts' differences "
        "flipped, adjusted over the map)."
    )
    if _template(interchange):
        parts.append(f"Behind the instruction: {_template(interchange)}.")
    if left > 0:
        parts.append(f"Up to {int(left)} prompts had no counterpart at a token and were left out there.")
    return f"{' '.join(parts)} Intervals (95 %) are in the table. n = {counts(interchange)} prompts."
