"""One line of a verification; and a stored table compared with the same table recomputed.

Columns, rows and their order are compared first, then every number. The deviation of a number is |stored -
recomputed| / max(|recomputed|, 0.001 M), where M is the largest number of its column and quantity: relative,
except for numbers that are rounding errors themselves, such as a trailing eigenvalue. Where the model is run
again in float32, 0.01 takes the place of 0.001; M takes in the values for an interval and a null, which may
be a mean of many changes that cancel; and a hundredth of a difference of p-values counts, since they count
resamples and rounding decides their ties. pandas.testing has no such scale, does not report the deviation of
tables that agree, and does not name a row by its columns.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype

from ot_lens.errors import EvidenceError, OtLensError

OK, DIFFERS, MISSING, UNCHECKED = "ok", "differs", "missing", "not checked"

# Raised when a table or manifest is well formed but cannot come from a run: rows of the unedited model or a
# column are missing, or a count is impossible.
UNSOUND = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
# On the same machine with the same seed the bytes are equal. Other threads or another BLAS add in another
# order, which changes the 12th to 14th digit of float64.
EXACT = 1e-9
# Below this share of the largest number of its kind, a number is rounding: recomputed, and measured again.
FLOOR, FLOOR_AGAIN = 1e-3, 1e-2
# Columns whose rounding errors are those of the values, and the part of a difference of p-values that counts.
OF_VALUES, VALUES = ("low", "high", "null_"), "value"
P_VALUES, OF_TIES = "p_", 1e-2
# Columns that say which numbers of a table are of one kind.
KINDS = ("quantity", "measure", "prompts", "unit")
NAMED = 4


@dataclass(frozen=True)
class Check:
    """A row of the table that `verify_run` returns; `deviation` is None where only equality counts."""

    item: str
    how: str
    compared: int = 0
    of: int = 0
    deviation: float | None = None
    tolerance: float | None = None
    verdict: str = OK
    note: str = ""

    @classmethod
    def exact(
        cls, item: str, how: str, wrong: Sequence[str], compared: int, of: int | None = None
    ) -> "Check":
        """A check by equality; `wrong` says what is unequal."""
        check = cls(item, how, compared, compared if of is None else of)
        return check.differing(listed(wrong)) if wrong else check

    @classmethod
    def entries(cls, item: str, how: str, expected: Mapping[str, Any], stored: Mapping[str, Any]) -> "Check":
        """A check of a mapping; names the entries that are not as expected."""
        wrong = [name for name, value in expected.items() if name not in stored or stored[name] != value]
        return cls.exact(item, how, wrong, len(expected))

    @classmethod
    def missing(cls, item: str, how: str, note: str = "no such table", of: int = 1) -> "Check":
        """A check of something that does not exist."""
        return cls(item, how, 0, of, verdict=MISSING, note=note)

    @classmethod
    def unchecked(cls, item: str, how: str, note: str) -> "Check":
        """A check that cannot be made, and why."""
        return cls(item, how, verdict=UNCHECKED, note=note)

    def differing(self, note: str) -> "Check":
        """This check with what differs; without a deviation that says how much, nothing matches."""
        deviation = float("inf") if self.deviation is None and self.tolerance is not None else self.deviation
        return replace(self, deviation=deviation, verdict=DIFFERS, note=note)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class Checks(list[Check]):
    """The checks of a run in the order in which they were made."""

    def make(
        self, item: str, how: str, function: Callable[..., Check | Iterable[Check]], *given: Any
    ) -> None:
        """Add what function(*given) returns; if it cannot be made, record the reason."""
        try:
            made = function(*given)
            self.extend([made] if isinstance(made, Check) else made)
        except EvidenceError as error:
            self.append(Check.unchecked(item, how, str(error)))
        except OtLensError as error:
            self.append(Check.exact(item, how, [str(error)], 0))
        except UNSOUND as error:
            self.append(
                Check.exact(item, how, [f"cannot be recomputed ({type(error).__name__}: {error})"], 0)
            )

    def table(self) -> pd.DataFrame:
        """One row per check."""
        rows = [vars(replace(check, note=" ".join(check.note.split()))) for check in self]
        return pd.DataFrame(rows, columns=list(Check.__dataclass_fields__)).astype(
            {"deviation": "float64", "tolerance": "float64"}
        )


def compare(
    item: str,
    how: str,
    stored: pd.DataFrame,
    expected: pd.DataFrame,
    tolerance: float = EXACT,
    *,
    of: int | None = None,
    without: Sequence[str] = (),
    again: bool = False,
) -> Check:
    """Check a stored table, or some of its rows, against the rows expected; `without` columns are ignored.

    `again` if the model was run for the rows expected, in float32.
    """
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
    kinds = _kinds(ours)
    off = np.stack(
        [_deviations(theirs[name], ours[name], _scale(name, ours, kinds, again=again)) for name in numbers]
    )
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


def _deviations(stored: pd.Series, expected: pd.Series, scale: np.ndarray) -> np.ndarray:
    a, b = (x.astype("float64").to_numpy() for x in (stored, expected))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(a - b) / scale
    return np.where(same, 0.0, np.where(np.isfinite(off), off, np.inf))


def _scale(name: str, table: pd.DataFrame, kinds: list[str], *, again: bool) -> np.ndarray:
    """Each number's own size, or a share of the largest of its kind."""
    if again and name.startswith(P_VALUES):
        return np.full(len(table), 1 / OF_TIES)
    own = sizes = _sizes(table[name])
    if again and name.startswith(OF_VALUES) and VALUES in table:
        sizes = np.maximum(own, _sizes(table[VALUES]))
    largest = pd.Series(sizes).groupby(kinds).transform("max").to_numpy()
    return np.maximum(own, (FLOOR_AGAIN if again else FLOOR) * largest)


def _sizes(column: pd.Series) -> np.ndarray:
    numbers = column.astype("float64").to_numpy()
    return np.where(np.isfinite(numbers), np.abs(numbers), 0.0)
