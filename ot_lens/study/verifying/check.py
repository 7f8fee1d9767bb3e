"""One line of a verification: what was compared, the largest deviation, and the verdict."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pandas as pd

from ot_lens.errors import EvidenceError, OtLensError

OK, DIFFERS, MISSING, UNCHECKED = "ok", "differs", "missing", "not checked"

# Raised when a table or manifest is well formed but cannot come from a run: rows of the unedited model or a
# column are missing, or a count is impossible.
UNSOUND = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


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

    def differing(self, note: str) -> "Check":
        """This check with what differs; without a deviation that says how much, nothing matches."""
        deviation = float("inf") if self.deviation is None and self.tolerance is not None else self.deviation
        return replace(self, deviation=deviation, verdict=DIFFERS, note=note)


def exact(item: str, how: str, wrong: Sequence[str], compared: int, of: int | None = None) -> Check:
    """A check by equality; `wrong` says what is unequal."""
    check = Check(item, how, compared, compared if of is None else of)
    return check.differing(listed(wrong)) if wrong else check


def missing(item: str, how: str, note: str, of: int = 1) -> Check:
    """A check of something that does not exist."""
    return Check(item, how, 0, of, verdict=MISSING, note=note)


def unchecked(item: str, how: str, note: str) -> Check:
    """A check that cannot be made, and why."""
    return Check(item, how, verdict=UNCHECKED, note=note)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class Checks(list[Check]):
    """The checks of a run in the order in which they were made."""

    @contextmanager
    def of(self, item: str, how: str) -> Iterator[None]:
        """Make a check inside; if it cannot be made, record the reason."""
        try:
            yield
        except EvidenceError as error:
            self.append(unchecked(item, how, str(error)))
        except OtLensError as error:
            self.append(exact(item, how, [str(error)], 0))
        except UNSOUND as error:
            self.append(exact(item, how, [f"cannot be recomputed ({type(error).__name__}: {error})"], 0))

    def table(self) -> pd.DataFrame:
        """One row per check."""
        rows = [vars(replace(check, note=" ".join(check.note.split()))) for check in self]
        return pd.DataFrame(rows, columns=list(Check.__dataclass_fields__)).astype(
            {"deviation": "float64", "tolerance": "float64"}
        )
