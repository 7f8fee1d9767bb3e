"""A stored table compared with the same table recomputed: columns, rows and their order, then every number.

The deviation of a number is |stored - recomputed| / max(|recomputed|, 0.001 M), where M is the largest number
of its column and quantity: relative, except for numbers that are rounding errors themselves, such as a
trailing eigenvalue or the mean of a centred coordinate. pandas.testing has no such scale, does not report the
deviation of tables that agree, and does not name a row by its columns.
"""

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

from ot_lens.study.verifying.check import DIFFERS, OK, Check, listed

# On the same machine with the same seed the bytes are equal. Other threads or another BLAS add in another
# order, which changes the 12th to 14th digit of float64.
EXACT = 1e-9
FLOOR = 1e-3
# Columns that say which numbers of a table are of one kind.
KINDS = ("quantity", "measure", "prompts", "unit")
NAMED = 4


@dataclass(frozen=True)
class Compared:
    """The result of a comparison: rows compared, the largest deviation, and what differs, if anything."""

    rows: int
    deviation: float
    trouble: str

    def check(self, item: str, how: str, of: int, tolerance: float) -> Check:
        """The result as a check of an item."""
        verdict = DIFFERS if self.trouble else OK
        return Check(item, how, self.rows, of, self.deviation, tolerance, verdict, self.trouble)


def stored_form(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it is read back from parquet."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return pd.read_parquet(buffer)


def compare(
    stored: pd.DataFrame, expected: pd.DataFrame, tolerance: float, *, without: tuple[str, ...] = ()
) -> Compared:
    """Compare a stored table, or some of its rows, with the rows expected; `without` columns are ignored."""
    if list(stored.columns) != list(expected.columns):
        different = sorted({*stored.columns} ^ {*expected.columns}) or ["their order"]
        return Compared(0, float("inf"), f"columns differ: {listed(different)}")
    ours = stored_form(expected).drop(columns=list(without))
    theirs = stored.drop(columns=list(without)).reset_index(drop=True)
    # A column without any number has no type of its own in parquet.
    columns = [str(name) for name in ours]
    numbers = [c for c in columns if is_float_dtype(ours[c]) or is_float_dtype(theirs[c])]
    keys = [c for c in columns if c not in numbers]
    trouble = _different_rows(theirs, ours, keys)
    if trouble:
        return Compared(min(len(theirs), len(ours)), float("inf"), trouble)
    if not numbers or ours.empty:
        return Compared(len(ours), 0.0, "")
    off = np.stack([_deviations(theirs[c], ours[c], _kinds(ours)) for c in numbers])
    worst = float(off.max())
    if worst > tolerance:
        column, row = map(int, np.unravel_index(int(off.argmax()), off.shape))
        name, count = numbers[column], int((off > tolerance).any(axis=0).sum())
        trouble = (
            f"{count} of {len(ours)} rows; most in row {row} ({_described(keys, _rows(ours, keys)[row])}): "
            f"{name} is {theirs[name].iloc[row]:.10g}, recomputed {ours[name].iloc[row]:.10g}"
        )
    return Compared(len(ours), worst, trouble)


def _different_rows(stored: pd.DataFrame, expected: pd.DataFrame, keys: list[str]) -> str:
    """What is wrong with the keys of the rows and their order; "" if nothing."""
    theirs, ours = _rows(stored, keys), _rows(expected, keys)
    if theirs == ours:
        return ""
    lacking, extra = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    if not lacking and not extra:
        first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        return f"rows are in another order from row {first} on"
    return "; ".join(
        f"{rows.total()} rows {what}, such as ({_described(keys, next(iter(rows)))})"
        for rows, what in ((lacking, "missing"), (extra, "not of this run"))
        if rows
    )


def _rows(table: pd.DataFrame, keys: list[str]) -> list[tuple[Any, ...]]:
    columns = [[None if pd.isna(v) else v for v in table[key].tolist()] for key in keys]
    return list(zip(*columns, strict=True)) if keys else [()] * len(table)


def _described(keys: list[str], row: tuple[Any, ...]) -> str:
    values = [(k, v) for k, v in zip(keys, row, strict=True) if v not in (None, "") and k != "unit"]
    return ", ".join(f"{k} {v}" for k, v in values[:NAMED])


def _kinds(table: pd.DataFrame) -> list[str]:
    kinds = [c for c in KINDS if c in table]
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
