"""A stored table compared with the same table recomputed: columns, rows and their order, then every number.

The deviation of a number is |stored - recomputed| / max(|recomputed|, 0.001 M), where M is the largest number
of its column and quantity: relative, except for numbers that are rounding errors themselves, such as a
trailing eigenvalue or the mean of a centred coordinate. pandas.testing has no such scale, does not report the
deviation of tables that agree, and does not name a row by its columns.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

from ot_lens.study.verifying.check import Check, listed

# On the same machine with the same seed the bytes are equal. Other threads or another BLAS add in another
# order, which changes the 12th to 14th digit of float64.
EXACT = 1e-9
FLOOR = 1e-3
# Columns that say which numbers of a table are of one kind.
KINDS = ("quantity", "measure", "prompts", "unit")
NAMED = 4


def compare(
    item: str,
    how: str,
    stored: pd.DataFrame,
    expected: pd.DataFrame,
    tolerance: float = EXACT,
    *,
    of: int | None = None,
    without: Sequence[str] = (),
) -> Check:
    """Check a stored table, or some of its rows, against the rows expected; `without` columns are ignored."""
    check = Check(item, how, 0, len(stored) if of is None else of, tolerance=tolerance)
    if list(stored.columns) != list(expected.columns):
        different = sorted({*stored.columns} ^ {*expected.columns}) or ["their order"]
        return check.differing(f"columns differ: {listed(different)}")
    ours = _stored_form(expected).drop(columns=list(without))
    theirs = stored.drop(columns=list(without)).reset_index(drop=True)
    check = replace(check, compared=min(len(theirs), len(ours)))
    # A column without any number has no type of its own in parquet.
    numbers = [str(name) for name in ours if is_float_dtype(ours[name]) or is_float_dtype(theirs[name])]
    keys = [str(name) for name in ours if name not in numbers]
    rows = key_rows(ours[keys])
    trouble = different_rows(key_rows(theirs[keys]), rows, keys)
    if trouble:
        return check.differing(trouble)
    if not numbers or ours.empty:
        return replace(check, deviation=0.0)
    off = np.stack([_deviations(theirs[name], ours[name], _kinds(ours)) for name in numbers])
    check = replace(check, deviation=float(off.max()))
    if off.max() <= tolerance:
        return check
    column, row = map(int, np.unravel_index(int(off.argmax()), off.shape))
    name, count = numbers[column], int((off > tolerance).any(axis=0).sum())
    return check.differing(
        f"{count} of {len(ours)} rows; most in row {row} ({_described(keys, rows[row])}): "
        f"{name} is {theirs[name].iloc[row]:.10g}, recomputed {ours[name].iloc[row]:.10g}"
    )


def _stored_form(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it is read back from parquet."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return pd.read_parquet(buffer)


def key_rows(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    """The rows of a table, None for missing values."""
    return [tuple(row) for row in table.astype(object).where(table.notna(), None).to_numpy()]


def different_rows(
    stored: Sequence[tuple[Any, ...]], expected: Sequence[tuple[Any, ...]], keys: Sequence[str]
) -> str:
    """What is wrong with the rows and their order; "" if nothing."""
    if stored == expected:
        return ""
    lacking, extra = Counter(expected) - Counter(stored), Counter(stored) - Counter(expected)
    if not lacking and not extra:
        first = next(i for i, (a, b) in enumerate(zip(stored, expected, strict=True)) if a != b)
        return f"rows are in another order from row {first} on"
    return "; ".join(
        f"{rows.total()} rows {what}, such as ({_described(keys, next(iter(rows)))})"
        for rows, what in ((lacking, "missing"), (extra, "not of this run"))
        if rows
    )


def _described(keys: Sequence[str], row: tuple[Any, ...]) -> str:
    values = [(k, v) for k, v in zip(keys, row, strict=True) if v not in (None, "") and k != "unit"]
    return ", ".join(f"{k} {v}" for k, v in values[:NAMED])


def _kinds(table: pd.DataFrame) -> list[str]:
    kinds = [name for name in KINDS if name in table]
    return ["|".join(map(str, row)) for row in table[kinds].itertuples(index=False)]


def _deviations(stored: pd.Series, expected: pd.Series, kinds: list[str]) -> np.ndarray:
    a, b = (x.astype("float64").to_numpy() for x in (stored, expected))
    finite = pd.Series(np.where(np.isfinite(b), np.abs(b), 0.0))
    largest = finite.groupby(kinds).transform("max")
    scale = np.maximum(finite.to_numpy(), FLOOR * largest.to_numpy())
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(a - b) / scale
    return np.where(same, 0.0, np.where(np.isfinite(off), off, np.inf))
