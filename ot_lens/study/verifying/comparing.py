"""A stored table against the same table computed again: columns, rows and their order, then every number.

The deviation of a number is |stored - recomputed| / max(|recomputed|, 0.001 M), M being the largest number of
its column and quantity: relative, but not to numbers that are rounding themselves, such as a trailing
eigenvalue or the mean of a centred coordinate.
"""

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

from ot_lens.study.verifying.check import DIFFERS, OK, Check, listed

# Same machine, same seed: the bytes are equal. Another number of threads or another BLAS adds in another
# order, which float64 feels in its 12th to 14th digit.
EXACT = 1e-9
FLOOR = 1e-3
# Columns by which a table's numbers are of one kind.
KINDS = ("quantity", "measure", "prompts", "unit")
SHOWN = 4


@dataclass(frozen=True)
class Compared:
    """What a comparison found: rows compared, the largest deviation, and what differs, if anything."""

    rows: int
    deviation: float
    trouble: str

    def check(self, item: str, how: str, of: int, tolerance: float) -> Check:
        """The same as a check of an item."""
        return Check(
            item,
            how,
            self.rows,
            of,
            self.deviation,
            tolerance,
            DIFFERS if self.trouble else OK,
            self.trouble,
        )


def stored_form(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it comes back from parquet."""
    written = io.BytesIO()
    table.to_parquet(written, index=False)
    return pd.read_parquet(written)


def compare(
    found: pd.DataFrame, expected: pd.DataFrame, tolerance: float, *, without: tuple[str, ...] = ()
) -> Compared:
    """Compare a stored table with one computed again.

    Args:
        found: The stored table, or some of its rows.
        expected: The rows that should stand there, in their order.
        tolerance: The largest deviation that passes.
        without: Columns that are not compared.
    """
    if list(found.columns) != list(expected.columns):
        different = sorted({*found.columns} ^ {*expected.columns}) or ["their order"]
        return Compared(0, float("inf"), f"columns differ: {listed(different)}")
    ours = stored_form(expected).drop(columns=list(without))
    theirs = found.drop(columns=list(without)).reset_index(drop=True)
    # A column without any number has no type of its own in parquet.
    columns = [str(name) for name in ours]
    numbers = [c for c in columns if is_float_dtype(ours[c]) or is_float_dtype(theirs[c])]
    keys = [c for c in columns if c not in numbers]
    trouble = _rows_differ(theirs, ours, keys)
    if trouble:
        return Compared(min(len(theirs), len(ours)), float("inf"), trouble)
    if not numbers or ours.empty:
        return Compared(len(ours), 0.0, "")
    off = np.stack([_deviations(theirs[c], ours[c], _kinds(ours)) for c in numbers])
    worst = float(off.max())
    column, row = np.unravel_index(int(off.argmax()), off.shape)
    if worst <= tolerance:
        return Compared(len(ours), worst, "")
    name = numbers[int(column)]
    count = int((off > tolerance).any(axis=0).sum())
    numbers_there = f"{theirs[name].iloc[row]:.10g}, recomputed {ours[name].iloc[row]:.10g}"
    trouble = (
        f"{count} of {len(ours)} rows; most in {_named(ours, int(row), keys)}: {name} is {numbers_there}"
    )
    return Compared(len(ours), worst, trouble)


def _rows_differ(found: pd.DataFrame, expected: pd.DataFrame, keys: list[str]) -> str:
    """What is wrong with the rows' names and order, in words; "" if nothing."""
    theirs, ours = _tuples(found, keys), _tuples(expected, keys)
    if theirs == ours:
        return ""
    lacking, more = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    if not lacking and not more:
        first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        return f"rows stand in another order from row {first} on"
    parts = []
    for count, what in ((lacking, "missing"), (more, "not of this run")):
        if count:
            first_key = next(iter(count))
            parts.append(f"{sum(count.values())} rows {what}, such as ({_told(keys, first_key)})")
    return "; ".join(parts)


def _tuples(table: pd.DataFrame, keys: list[str]) -> list[tuple[Any, ...]]:
    columns = [[None if pd.isna(v) else v for v in table[key].tolist()] for key in keys]
    return list(zip(*columns, strict=True)) if keys else [()] * len(table)


def _named(table: pd.DataFrame, row: int, keys: list[str]) -> str:
    return f"row {row} ({_told(keys, _tuples(table.iloc[[row]], keys)[0])})"


def _told(keys: list[str], values: tuple[Any, ...]) -> str:
    given = [(k, v) for k, v in zip(keys, values, strict=True) if v not in (None, "") and k != "unit"]
    return ", ".join(f"{k} {v}" for k, v in given[:SHOWN])


def _kinds(table: pd.DataFrame) -> list[str]:
    kinds = [c for c in KINDS if c in table]
    return ["|".join(map(str, row)) for row in table[kinds].itertuples(index=False)]


def _deviations(found: pd.Series, expected: pd.Series, kinds: list[str]) -> np.ndarray:
    a, b = (x.astype("float64").to_numpy() for x in (found, expected))
    finite = pd.Series(np.where(np.isfinite(b), np.abs(b), 0.0))
    largest = finite.groupby(kinds).transform("max")
    scale = np.maximum(finite.to_numpy(), FLOOR * largest.to_numpy())
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(a - b) / scale
    return np.where(same, 0.0, np.where(np.isfinite(off), off, np.inf))
