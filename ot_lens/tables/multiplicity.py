"""Holm's correction of the sweep's p-values over the layers that were tried."""

import numpy as np
import pandas as pd

from ot_lens.statistics import holm

# A layer is tried once for each combination of these: the rows that share them form one family of tests.
FAMILY = (
    "set", "method", "k", "strength", "tokens", "hook", "transport", "control", "draw", "fitting", "measure",
    "prompts",
)  # fmt: skip


def add_holm(table: pd.DataFrame) -> pd.DataFrame:
    """Fill `p_holm`: Holm's step-down correction over the layers, or sets of layers, that were tried."""
    tested = table[table["p_value"].notna()]
    corrected = pd.Series(np.nan, index=table.index, dtype="float64")
    for _, values in tested.groupby(list(FAMILY), dropna=False, sort=False)["p_value"]:
        corrected[values.index] = holm(values.to_numpy())
    return table.assign(p_holm=corrected)
