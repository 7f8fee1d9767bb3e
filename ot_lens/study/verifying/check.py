"""One line of a self-check: what was compared, how far it lay off, and the verdict."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pandas as pd

from ot_lens.errors import EvidenceError, OtLensError

OK, DIFFERS, MISSING, UNCHECKED = "ok", "differs", "missing", "not checked"

# What a computation raises on tables and manifests that are well formed and yet of no run: rows of the
# unedited model that are gone, a column that is, a count that no rate can have.
UNSOUND = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        item: A file, a table, or a group of them.
        how: What it was compared with.
        compared: How many rows, files or values were.
        of: How many there are.
        deviation: The largest, see `comparing`; None where equality alone counts.
        tolerance: The largest deviation that passes.
        verdict: One of OK, DIFFERS, MISSING, UNCHECKED.
        note: What differs, or why nothing was compared.
    """

    item: str
    how: str
    compared: int = 0
    of: int = 0
    deviation: float | None = None
    tolerance: float | None = None
    verdict: str = OK
    note: str = ""


def exact(item: str, how: str, wrong: Sequence[str], compared: int, of: int | None = None) -> Check:
    """A check by equality; `wrong` says what is unequal."""
    verdict = DIFFERS if wrong else OK
    return Check(item, how, compared, compared if of is None else of, None, None, verdict, listed(wrong))


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class Checks:
    """The checks of a run, in the order in which they were made."""

    def __init__(self) -> None:
        self.found: list[Check] = []

    def add(self, *checks: Check) -> None:
        """Keep some checks."""
        self.found += checks

    @contextmanager
    def of(self, item: str, how: str) -> Iterator[None]:
        """Make a check inside: one that cannot be made is kept as that, with the reason."""
        try:
            yield
        except EvidenceError as error:
            self.add(Check(item, how, verdict=UNCHECKED, note=str(error)))
        except OtLensError as error:
            self.add(Check(item, how, verdict=DIFFERS, note=str(error)))
        except UNSOUND as error:
            note = f"what is stored cannot be computed with ({type(error).__name__}: {error})"
            self.add(Check(item, how, verdict=DIFFERS, note=note))

    def table(self) -> pd.DataFrame:
        """One row a check."""
        columns = list(Check.__dataclass_fields__)
        rows = [replace(check, note=" ".join(check.note.split())) for check in self.found]
        return pd.DataFrame([vars(check) for check in rows], columns=columns).astype(
            {"deviation": "float64", "tolerance": "float64"}
        )
