"""Selecting rows of a sweep, and of the tables derived from it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from ot_lens.tables.schema import ALL, INDEPENDENT, INDUCE, LISTED, NOT_A_CONTROL, PAIR, SINGLE, UNEDITED

# The settings that must not be mixed in one curve, each with the value to use where the sweep has several.
# None stands for the largest strength, and for the first value of the other settings.
SETTINGS: Mapping[str, Any] = {
    "fitting": INDEPENDENT,
    "strength": None,
    "tokens": "all",
    "hook": None,
    "seed": None,
}


def select(table: pd.DataFrame, **criteria: Any) -> pd.DataFrame:
    """Rows whose columns have the given values.

    Args:
        table: Any table.
        criteria: Value by column: a tuple, list or set allows any of its values, None selects missing values.

    Raises:
        KeyError: If a column does not exist.
    """
    return _kept(table, _matches(table, criteria))


def _matches(table: pd.DataFrame, criteria: Mapping[str, Any]) -> Bool[np.ndarray, " rows"]:
    # An array, not a column: a view selects dozens of times, and columns align their indices each time.
    keep = np.ones(len(table), dtype=bool)
    for column, value in criteria.items():
        values = table[column]
        if value is None:
            own = values.isna()
        elif isinstance(value, (tuple, list, set, frozenset)):
            own = values.isin(list(value))
        else:
            own = values.eq(value)
        keep &= own.to_numpy(dtype=bool, na_value=False)
    return keep


def _kept(table: pd.DataFrame, keep: "pd.Series | Bool[np.ndarray, ' rows']") -> pd.DataFrame:
    """Rows by number, which takes less than half as long as by a mask where columns are text."""
    return table.take(np.flatnonzero(keep))


def with_baseline(
    table: pd.DataFrame, methods: Collection[tuple[str, int | None]] | None = None, **criteria: Any
) -> pd.DataFrame:
    """The unedited model and the edits that meet some criteria.

    Args:
        table: A sweep.
        methods: Names and ranks of the methods wanted; a rank of None allows any. All methods by default.
        criteria: Value by column, see `select`.
    """
    keep = _matches(table, criteria)
    if methods is not None:
        wanted = np.zeros(len(table), dtype=bool)
        for method, k in methods:
            wanted |= _matches(table, {"method": method} | ({} if k is None else {"k": k}))
        keep &= wanted
    return _kept(table, (table["method"] == UNEDITED) | keep)


def measured(table: pd.DataFrame, measure: str, prompts: str) -> pd.DataFrame:
    """Rows of one measure on one class of prompts."""
    return select(table, measure=measure, prompts=prompts)


def baseline_of(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the unedited model."""
    return select(table, method=UNEDITED)


def edits_of(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of edited models, controls included."""
    return _kept(table, table["method"] != UNEDITED)


def controls_of(table: pd.DataFrame, kind: str | None = None) -> pd.DataFrame:
    """Rows of the controls, or of one kind of control; none where the table has no such column."""
    if "control" not in table:
        return table.iloc[:0]
    return _kept(table, _control(table) != NOT_A_CONTROL) if kind is None else select(table, control=kind)


def not_controls(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that are not controls; the unedited model is among them."""
    return _kept(table, _control(table) == NOT_A_CONTROL) if "control" in table else table


def real_edits(table: pd.DataFrame) -> pd.DataFrame:
    """The unedited model and the edits from harmful to harmless, without controls."""
    real = not_controls(table)
    return _kept(real, real["transport"].fillna("") != INDUCE) if "transport" in real else real


def single_layers(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of edits at a single layer."""
    return _kept(table, table["layer"].notna())


def at_one_setting(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of one setting per method, rank and kind of layer set; see `SETTINGS`."""
    keep = np.ones(len(table), dtype=bool)
    edits = table.groupby(
        [c for c in ("method", "k", "set") if c in table], dropna=False, sort=False
    ).ngroup()
    edit = edits.to_numpy()
    for column, preferred in SETTINGS.items():
        if column not in table:
            continue
        codes, values = pd.factorize(table[column], sort=column == "strength")  # -1 where it is missing
        known = np.flatnonzero(keep & (codes >= 0))
        if len(np.unique(codes[known])) < 2:
            continue
        # Of the rows of an edit the last one counts: that of the largest strength, else the first.
        order = known[np.argsort(codes[known], kind="stable")] if column == "strength" else known[::-1]
        order = np.concatenate([order, known[values[codes[known]] == preferred]])
        chosen = np.full(len(table), -1)
        chosen[edit[order]] = codes[order]
        keep &= (codes < 0) | (codes == chosen[edit])
    return _kept(table, keep)


def by_depth(table: pd.DataFrame) -> pd.DataFrame:
    """What a curve over the layers shows: real edits of single layers and of all, at one setting each.

    Answers may have been generated under listed edits alone: what is known only of those is there too.
    """
    real = real_edits(table)
    swept = at_one_setting(select(real, set=(UNEDITED, SINGLE, ALL)))
    listed = single_layers(at_one_setting(select(real, set=LISTED)))
    if listed.empty:
        return swept
    both = pd.concat([swept, listed.assign(set=SINGLE)], ignore_index=True)
    return both.drop_duplicates(["set", "method", "k", "layer", "measure", "prompts"])


def reported(table: pd.DataFrame) -> pd.DataFrame:
    """What the findings are about: real edits at one setting each; pairs, which have no answers, left out."""
    real = real_edits(table)
    return at_one_setting(_kept(real, real["set"] != PAIR))


def methods_of(table: pd.DataFrame) -> Iterator[tuple[tuple[str, int | None], pd.DataFrame]]:
    """Each method and rank with its rows, in the order of the table; the unedited model is left out."""
    groups: Any = edits_of(table).groupby(["method", "k"], dropna=False, sort=False)
    for (method, k), rows in groups:
        yield (str(method), None if pd.isna(k) else int(k)), rows


def _control(table: pd.DataFrame) -> pd.Series:
    return table["control"].fillna(NOT_A_CONTROL)
