"""Reading a table of a run: the contents of its columns are checked by their names."""

from pathlib import Path

import numpy as np
import pandas as pd

from ot_lens.errors import RunFolderError
from ot_lens.io.parquet import MAX_BYTES, read_frame
from ot_lens.io.untrusted import CONTROL, quoted, read_bounded

WHOLE = (
    "layer", "layer_a", "layer_b", "layer_other", "edited_layer", "component", "prompt", "k", "draw", "draws",
    "n",
)  # fmt: skip
NUMBERS = (
    "value", "low", "high", "null_mean", "null_low", "null_high", "strength", "p_value", "p_holm", "cosine",
    "angle", "eigenvalue", "share", "pc1", "pc2", "mean1", "mean2", "cov11", "cov12", "cov22", "pc1_share",
    "pc2_share",
)  # fmt: skip
TEXTS = (
    "set", "layers", "method", "tokens", "hook", "transport", "control", "fitting", "measure", "prompts",
    "unit", "interval", "test", "engine", "note", "class", "state", "quantity", "other",
)  # fmt: skip
LARGEST = 10**9
LONGEST = 4_000


def read_table_file(path: Path) -> pd.DataFrame:
    """A table as it was written; raises a `RunFolderError` if the values of a column do not fit its name."""
    table = read_frame(read_bounded(path, MAX_BYTES, RunFolderError), str(path), RunFolderError)
    for name in table.columns:
        column = table[name]
        if name in (*WHOLE, *NUMBERS) and not _holds_numbers(column, whole=name in WHOLE):
            kind = f"whole numbers up to {LARGEST}" if name in WHOLE else "numbers"
            raise RunFolderError(f"{path}: column {name!r} does not contain {kind}: restore the table.")
        if name in TEXTS and not _holds_text(column):
            raise RunFolderError(
                f"{path}: column {name!r} does not contain short plain text: restore the table."
            )
        if CONTROL.search(str(name)) or len(str(name)) > LONGEST:
            raise RunFolderError(f"{path}: no column is named {quoted(name)}: restore the table.")
    return table


def _holds_numbers(column: "pd.Series", *, whole: bool) -> bool:
    if column.isna().all():
        return True
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return False
    known = column.to_numpy(dtype=np.float64, na_value=np.nan)
    known = known[~np.isnan(known)]
    return not whole or bool((np.abs(known) <= LARGEST).all() and (known == np.floor(known)).all())


def _holds_text(column: "pd.Series") -> bool:
    known = column.dropna()
    return all(isinstance(v, str) and len(v) <= LONGEST and not CONTROL.search(v) for v in known.unique())
