"""Choosing rows of the tidy tables for a figure: selected, ordered and checked; nothing is measured here."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.errors import AlteredTableError, NothingToDrawError, OtLensError, TableError
from ot_lens.io.untrusted import quoted
from ot_lens.plots.description import Band, Curve
from ot_lens.plots.style import NULL, Mark, method_mark, method_order, split_label
from ot_lens.tables import edits_of, methods_of, select

# The columns of each table that figures need, the measured one first.
COLUMNS = {
    "localization": ("value", "set", "layer", "method", "k", "measure", "prompts"),
    "defence": ("value", "edits", "layer", "method", "k", "measure", "prompts"),
    "languages": ("value", "fitted_in", "measured_in", "method", "k", "layer", "quantity"),
    "controls": ("value", "low", "high", "layer", "method", "k", "control"),
    "geometry": ("value", "layer", "quantity"),
    "localizers": (
        "value", "layer", "localizer", "label", "says", "unit", "verdict", "band_first", "band_last",
    ),
    "contributions": (
        "value", "prompts", "component", "layer", "head", "low", "high", "p_holm", "tokens", "at_layer",
    ),
    "ablated_heads": (
        "change", "change_low", "change_high", "null_mean", "null_low", "null_high", "p_value", "set",
        "heads", "n_heads", "mode", "measure", "prompts", "n", "random_sets",
    ),
    "readout": (
        "logit_change", "kind", "method", "layer", "number", "side", "rank", "token", "null_mean", "null_low",
        "null_high", "draws", "n_harmful",
    ),
    "harm": ("value", "part", "direction", "action", "method", "layer", "quantity", "prompts", "position"),
    "interchange": (
        "value", "low", "high", "null_low", "null_high", "p_adjusted", "n", "n_left_out", "layer", "position",
        "token", "kind", "module", "patched",
    ),
    "massive": ("value", "layer", "position", "robust", "class", "quantity"),
    "spectra": ("eigenvalue", "layer", "class", "component"),
    "cosines": ("cosine", "layer_a", "layer_b"),
    "run_cosines": ("cosine", "layer", "layer_other"),
    "class_angles": ("angle", "layer", "component"),
    "layer_angles": ("angle", "layer_a", "layer_b", "class", "component"),
    "layer_similarity": ("value", "layer_a", "layer_b", "class", "quantity"),
    "model_similarity": ("value", "layer", "class", "quantity", "comparison", "method", "edited_layer"),
    "map_quality": ("value", "layer", "method", "quantity"),
    "visibility": ("value", "layer", "edited_layer", "method", "quantity"),
    "plane": ("pc1", "pc2", "layer", "prompt", "class", "state"),
    "plane_ellipses": ("mean1", "mean2", "cov11", "cov12", "cov22", "layer", "class", "state"),
    "variants": ("value", "of", "axis", "level", "measure", "prompts"),
    "claims": (
        "value", "low", "high", "n", "claim", "comparison", "quantity", "edit", "reference", "method", "k",
        "margin", "verdict",
    ),
    "ground_truth": ("value", "low", "high", "known", "part", "quantity", "method", "k", "layer"),
}  # fmt: skip


@contextmanager
def going_together(figure: str) -> Iterator[None]:
    """Turn what rows without sense do to a figure into one AlteredTableError that names it."""
    try:
        yield
    except OtLensError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise AlteredTableError(
            f"{figure}: the rows of its tables do not go together ({type(error).__name__}: "
            f"{quoted(str(error))}): restore the tables."
        ) from error


def numbers(column: pd.Series) -> Float[np.ndarray, " rows"]:
    """A column as float64, missing values as NaN."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def finite(rows: pd.DataFrame, *columns: str) -> list[float]:
    """The finite numbers of some columns, as far as the table has them."""
    known = [value for name in columns if name in rows for value in numbers(rows[name]).tolist()]
    return [value for value in known if np.isfinite(value)]


def checked(table: pd.DataFrame, name: str, columns: Collection[str] = ()) -> pd.DataFrame:
    """The table, if it has rows and the columns (by default those of `COLUMNS`); else a TableError."""
    if table.empty:
        raise NothingToDrawError(f"The {name} table is empty.")
    absent = [column for column in columns or COLUMNS[name] if column not in table.columns]
    if absent:
        raise TableError(
            f"The {name} table has no column {', '.join(absent)}: it has {', '.join(table.columns)}."
        )
    return table


def some(rows: pd.DataFrame, what: str, column: str = "value") -> pd.DataFrame:
    """The rows, if at least one of them is finite; else a NothingToDrawError."""
    if not finite(rows, column):
        raise NothingToDrawError(f"The table holds no finite {what}.")
    return rows


def at_position(table: pd.DataFrame, position: int | str | None) -> pd.DataFrame:
    """Rows of one token position: the given one, which must have been captured, or the last listed."""
    if "position" not in table.columns:
        return table
    known = list(dict.fromkeys(table["position"]))
    if position is not None and position not in known:
        raise TableError(f"Position {position!r} is not in the table: it has {', '.join(map(str, known))}.")
    return table[table["position"] == (known[-1] if position is None else position)]


def rows_of(table: pd.DataFrame, name: str, position: int | str | None = None) -> pd.DataFrame:
    """Rows of a table at one token position, if they can be drawn; else a TableError."""
    rows, measured = at_position(checked(table, name), position), COLUMNS[name][0]
    return some(rows, f"{measured} in the {name} table", measured)


def curve(
    rows: pd.DataFrame, x: str = "layer", value: str = "value", band: tuple[str, str] = ("low", "high")
) -> Curve:
    """Rows as one line with its band, ordered by `x`."""
    ordered = rows.sort_values(x, kind="stable")
    empty = np.full(len(ordered), np.nan)
    low, high = (numbers(ordered[name]) if name in ordered else empty for name in band)
    n = numbers(ordered["n"]) if "n" in ordered else None
    return Curve(numbers(ordered[x]), numbers(ordered[value]), low, high, n)


def null_of(rows: pd.DataFrame, name: str, mark: Mark = NULL, x: str = "layer") -> tuple[Band, ...]:
    """The null band of rows that have one, else nothing."""
    if not finite(rows, "null_mean"):
        return ()
    return (Band(name, mark, curve(rows, x=x, value="null_mean", band=("null_low", "null_high"))),)


def matrix_of(
    rows: pd.DataFrame,
    row: str,
    column: str,
    value: str,
    names: tuple[Sequence[int | float], Sequence[int | float]],
) -> Float[np.ndarray, "rows columns"]:
    """Values of a tidy table as cells, in the given order; NaN where the table has no row."""
    table = rows.drop_duplicates([row, column], keep="last").pivot(index=row, columns=column, values=value)
    return table.reindex(index=list(names[0]), columns=list(names[1])).to_numpy(np.float64, na_value=np.nan)


def by_label(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each method label such as `"pca_ot (k = 2)"`, in the fixed order of the methods."""
    labels = sorted(rows["method"].dropna().unique(), key=lambda name: method_order(*split_label(name)))
    return {label: select(rows, method=label) for label in labels}


def unit_of(rows: pd.DataFrame, otherwise: str = "squared activation units") -> str:
    """The unit of a table's values."""
    return str(rows["unit"].iloc[0]) if "unit" in rows and len(rows) else otherwise


def layers_of(table: pd.DataFrame, *columns: str) -> list[int]:
    """Layers in a table, ascending."""
    return sorted({int(n) for name in columns or ("layer",) for n in table[name].dropna().unique()})


def spread_out(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of some numbers, such as layers, evenly, both ends among them."""
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, min(len(items), most))]


def marked_methods(table: pd.DataFrame) -> list[tuple[Mark, pd.DataFrame]]:
    """Each method of a sweep with its mark and its rows, in the fixed order; the baseline is left out."""
    methods = sorted(methods_of(table), key=lambda item: method_order(*item[0]))
    return [(method_mark(*method), rows) for method, rows in methods]


def counts(rows: pd.DataFrame, column: str = "n") -> str:
    """The sample sizes in a caption: `"128"` or `"96-128"`."""
    known = finite(rows, column)
    if not known:
        return "unknown"
    low, high = int(min(known)), int(max(known))
    return str(low) if low == high else f"{low}-{high}"


def settings(sweep: pd.DataFrame) -> str:
    """What a sweep was run with, for a caption: `"tokens all; hook resid_pre; strength 1; seed 0"`."""
    rows = edits_of(sweep)
    parts = []
    for name in ("tokens", "hook", "strength", "seed"):
        if name in rows:
            values = [v for v in dict.fromkeys(rows[name].dropna()) if v != ""]
            texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
            parts += [f"{name} {', '.join(texts)}"] if texts else []
    return "; ".join(parts)
