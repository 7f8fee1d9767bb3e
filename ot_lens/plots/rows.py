"""Choosing rows of the tidy tables for a figure: selected, ordered and checked; nothing is measured here."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ot_lens.errors import AlteredTableError, NothingToDrawError, OtLensError, TableError
from ot_lens.io.untrusted import quoted
from ot_lens.plots.style import Mark, method_mark, method_order
from ot_lens.tables import edits_of, methods_of


@contextmanager
def going_together(figure: str) -> Iterator[None]:
    """Turn what rows without sense do to a figure into one error that names it.

    Raises:
        AlteredTableError: If the block raises anything but an error of ours.
    """
    try:
        yield
    except OtLensError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise AlteredTableError(
            f"{figure}: the rows of its tables do not go together ({type(error).__name__}: "
            f"{quoted(str(error))}): restore the tables."
        ) from error


@dataclass(frozen=True)
class Curve:
    """One line with its band, ordered by x; NaN where nothing was measured."""

    x: Float[np.ndarray, " points"]
    value: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]

    @property
    def isolated(self) -> Bool[np.ndarray, " points"]:
        """Points without a measured neighbour: a line and a band through them would be invisible."""
        known = np.isfinite(self.value)
        before = np.concatenate([[False], known[:-1]])
        after = np.concatenate([known[1:], [False]])
        return known & ~before & ~after

    @property
    def errors(self) -> Float[np.ndarray, "2 points"]:
        """Distances from the value to both ends of the interval, zero where there is none."""
        return np.nan_to_num(np.clip([self.value - self.low, self.high - self.value], 0.0, None))


def numbers(column: pd.Series) -> Float[np.ndarray, " rows"]:
    """A column as float64, missing values as NaN."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def checked(table: pd.DataFrame, name: str, columns: Collection[str]) -> pd.DataFrame:
    """The table, if it can be drawn.

    Raises:
        NothingToDrawError: the table has no row.
        TableError: a column is missing.
    """
    if table.empty:
        raise NothingToDrawError(f"the {name} table is empty")
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise TableError(
            f"the {name} table has no column {', '.join(absent)}: it has {', '.join(table.columns)}"
        )
    return table


def some(rows: pd.DataFrame, what: str, column: str = "value") -> pd.DataFrame:
    """The rows, if at least one of them is finite.

    Raises:
        NothingToDrawError: none is.
    """
    if not np.isfinite(numbers(rows[column])).any():
        raise NothingToDrawError(f"no finite {what} in the table")
    return rows


def at_position(table: pd.DataFrame, position: int | str | None) -> pd.DataFrame:
    """Rows of one token position: the asked one, or the last listed.

    Raises:
        TableError: that position was not captured.
    """
    if "position" not in table.columns:
        return table
    known = list(dict.fromkeys(table["position"]))
    if position is not None and position not in known:
        raise TableError(f"position {position!r} is not in the table: it has {', '.join(map(str, known))}")
    return table[table["position"] == (known[-1] if position is None else position)]


def curve(
    rows: pd.DataFrame, x: str = "layer", value: str = "value", band: tuple[str, str] = ("low", "high")
) -> Curve:
    """Rows as one line with its band, ordered by `x`."""
    ordered = rows.sort_values(x, kind="stable")
    empty = np.full(len(ordered), np.nan)
    low, high = (numbers(ordered[name]) if name in ordered else empty for name in band)
    return Curve(numbers(ordered[x]), numbers(ordered[value]), low, high)


def layers_of(table: pd.DataFrame) -> list[int]:
    """Layers in a table, ascending."""
    return sorted(int(layer) for layer in table["layer"].dropna().unique())


def spread_out(layers: list[int], most: int) -> list[int]:
    """At most `most` of the layers, evenly over the depth, both ends among them."""
    if len(layers) <= most:
        return layers
    return [layers[round(i)] for i in np.linspace(0, len(layers) - 1, most)]


def marked_methods(table: pd.DataFrame) -> list[tuple[Mark, pd.DataFrame]]:
    """Each method of a sweep with its mark and its rows, in the fixed order; the baseline is left out."""
    methods = sorted(methods_of(table), key=lambda item: method_order(*item[0]))
    return [(method_mark(*method), rows) for method, rows in methods]


def counts(rows: pd.DataFrame, column: str = "n") -> str:
    """The sample sizes in a caption: `"128"` or `"96-128"`."""
    known = numbers(rows[column]) if column in rows else np.empty(0)
    known = known[np.isfinite(known)]
    if not known.size:
        return "unknown"
    low, high = int(known.min()), int(known.max())
    return str(low) if low == high else f"{low}-{high}"


def settings(sweep: pd.DataFrame) -> str:
    """What a sweep was run with, for a caption: `"tokens all; hook resid_pre; strength 1; seed 0"`."""
    rows = edits_of(sweep)
    parts = []
    for name in ("tokens", "hook", "strength", "seed"):
        if name in rows:
            values = [
                f"{v:g}" if isinstance(v, float) else str(v)
                for v in dict.fromkeys(rows[name].dropna())
                if v != ""
            ]
            parts += [f"{name} {', '.join(values)}"] if values else []
    return "; ".join(parts)
