"""The sweep's table: its columns, their types, and the words that it uses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.statistics import holm

# Key, method and layer set of the rows of the unedited model.
UNEDITED = "none"
SINGLE, PAIR, ALL = "single", "pair", "all"
SETS = (SINGLE, PAIR, ALL)
LISTED, SEARCHED = "listed", "search"
REMOVE, INDUCE = "harmful_to_harmless", "harmless_to_harmful"
NOT_A_CONTROL = ""
INDEPENDENT, SEQUENTIAL = "independent", "sequential"

# What a candidate is, in the columns of the table. The key alone identifies it.
IDENTITY = (
    "key", "set", "layers", "layer", "method", "k", "strength", "transport", "control", "draw", "fitting",
)  # fmt: skip
COLUMNS = (
    "key", "set", "layers", "layer", "method", "k", "strength", "tokens", "hook", "transport", "control",
    "draw", "fitting", "measure", "prompts", "value", "low", "high", "n", "unit", "interval", "p_value",
    "p_holm", "test", "seed", "engine", "verified", "note",
)  # fmt: skip
TYPES = {"layer": "Int64", "k": "Int64", "draw": "Int64", "n": "int64"} | dict.fromkeys(
    ("value", "low", "high", "p_value", "p_holm", "strength", "verified"), "float64"
)
UNEDITED_COLUMNS: dict[str, Any] = {
    "key": UNEDITED, "set": UNEDITED, "layers": "", "layer": None, "method": UNEDITED, "k": None,
    "strength": 0.0, "tokens": "", "hook": "", "transport": "", "control": NOT_A_CONTROL, "draw": None,
    "fitting": "", "engine": "hooks", "note": "",
}  # fmt: skip
# Columns of the outcomes of single prompts and their types; `key` is that of an edit of the sweep.
OUTCOMES = {
    "key": "string", "prompts": "string", "prompt": "int64", "refused": "boolean", "coherent": "boolean",
    "degenerate": "boolean", "judged": "boolean", "correct": "boolean", "refusal_score": "float64",
    "kl": "float64", "nll": "float64", "n_tokens": "Int64",
}  # fmt: skip
# Columns of the table of variants besides those of the sweep: the key of the edit that was varied, which of
# its settings, and the value of it.
VARIANT_COLUMNS = ("of", "axis", "level")
# Column `edits` of a table of defences, which also has UNEDITED: see `restore_refusal`.
ATTACK, DEFENCE, ATTACK_AND_DEFENCE = "attack", "defence", "attack and defence"
# A layer is tried once for each combination of these: the rows that share them form one family of tests.
FAMILY = (
    "set", "method", "k", "strength", "tokens", "hook", "transport", "control", "draw", "fitting", "measure",
    "prompts",
)  # fmt: skip


def join(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate the tables of a sweep's candidates and correct the p-values over layers (Holm)."""
    return add_holm(pd.concat(tables, ignore_index=True).astype(TYPES))


def add_holm(table: pd.DataFrame) -> pd.DataFrame:
    """Fill `p_holm`: Holm's step-down correction over the layers, or sets of layers, that were tried."""
    tested = table[table["p_value"].notna()]
    corrected = pd.Series(np.nan, index=table.index, dtype="float64")
    for _, values in tested.groupby(list(FAMILY), dropna=False, sort=False)["p_value"]:
        corrected[values.index] = holm(values.to_numpy())
    return table.assign(p_holm=corrected)


def layers_label(layers: Sequence[int]) -> str:
    """Layers as text: "4" for one, "0-7" for three or more consecutive ones, "1,4" otherwise."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def layers_of_label(label: str) -> list[int]:
    """The inverse of `layers_label`."""
    first, dash, last = label.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(layer) for layer in label.split(",")]
