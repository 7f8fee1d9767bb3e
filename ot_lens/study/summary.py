"""Names of methods for people."""

from typing import Any

import pandas as pd

from ot_lens.transport.methods import METHODS


def method_label(method: str, k: Any = None) -> str:
    """The label of a method, with its rank if it has one; k may be a missing value of a table."""
    label = METHODS[method].label if method in METHODS else method
    return label if k is None or pd.isna(k) else f"{label}, k = {k}"
