"""A sweep at a glance: one row per edit, one column per measure, intervals in the cells."""

import pandas as pd

from ot_lens.errors import OtLensError
from ot_lens.tables.schema import UNEDITED
from ot_lens.tables.selection import edits_of, real_edits

# Settings that name a row only where the sweep varied them.
VARIED = ("set", "strength", "fitting", "tokens")


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Format a sweep for reading: value (low to high), shares in %.

    Controls and edits from harmless to harmful are left out. The unedited model comes first.

    Args:
        table: A sweep (`localize`), or some rows of one.

    Returns:
        Indexed by method, layers, and those of set, strength, fitting and tokens that were varied; one column
        per class of prompts and measure, named with its unit and its n. The cells are text; the numbers are
        in `table`.

    Raises:
        OtLensError: If no row is left.
    """
    rows = real_edits(table)
    if rows.empty:
        raise OtLensError(
            "The table has no edit to show: pass a sweep, or rows of one that are not controls."
        )
    edits = edits_of(rows)
    keys = ["method", "layers", *(name for name in VARIED if edits[name].nunique() > 1)]
    named = rows.assign(method=_labels(rows), column=_columns(rows), cell=_cells(rows))
    # Edits that differ in a parameter without a column of its own share a row.
    cells = named.groupby([*keys, "column"], dropna=False)["cell"].agg(" | ".join)
    wide = cells.unstack("column")
    order = pd.MultiIndex.from_frame(named[keys].drop_duplicates())
    columns = pd.Index(named["column"].drop_duplicates())
    return wide.reindex(index=order, columns=columns).fillna("").rename_axis(columns=None)


def _labels(rows: pd.DataFrame) -> pd.Series:
    ranks = rows["k"].map(lambda k: "" if pd.isna(k) else f" (k = {k})")
    return rows["method"].replace(UNEDITED, "unedited") + ranks


def _columns(rows: pd.DataFrame) -> pd.Series:
    unit = rows["unit"].replace("share", "%")
    units = unit.where(unit == "", unit + ", ")
    return rows["prompts"] + ": " + rows["measure"] + " (" + units + "n = " + rows["n"].astype(str) + ")"


def _cells(rows: pd.DataFrame) -> pd.Series:
    share = rows["unit"] == "share"

    def text(column: str) -> pd.Series:
        return rows[column].map("{:.3g}".format).where(~share, (100 * rows[column]).map("{:.0f}".format))

    return text("value") + " (" + text("low") + " to " + text("high") + ")"
