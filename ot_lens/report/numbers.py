"""Tables of numbers for the page: every value with its interval, harmless cost beside the refusal rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ot_lens.errors import TableError
from ot_lens.plots.measures import (
    MEASURES,
    Measure,
    Values,
    baseline,
    contenders,
    interval,
    present,
    sweep_rows,
)
from ot_lens.plots.rows import at_position, layers_of, numbers
from ot_lens.plots.style import BASELINE, CLASSES, Mark
from ot_lens.tables import measured

GLANCE = (
    "refusal_rate/harmful",
    "exact_answer_rate/harmful",
    "exact_answer_rate/harmless",
    "refusal_rate/harmless",
    "kl/harmless",
    "perplexity/harmless",
)
PER_LAYER = (*GLANCE[:5], "refusal_score/harmful", "perplexity/harmless")


@dataclass(frozen=True)
class Cell:
    """A number for people and its interval; `fill` is the width of a bar for shares, in per cent."""

    text: str
    interval: str = ""
    fill: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One row: its heading, the mark of a method if it is one, and its cells."""

    heading: str
    mark: Mark | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class NumberTable:
    """A table: its title, column heads (group, name) and rows."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    corner: str = ""


MINUS = "\u2212"
SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)
MISSING = Cell("\u2013", note="not measured")


def cell(
    value: float, low: float = np.nan, high: float = np.nan, *, share: bool = False, note: str = ""
) -> Cell:
    """A cell: per cent for shares, three significant digits otherwise, a dash for what was not measured."""
    if not np.isfinite(value):
        return MISSING
    known = np.isfinite([low, high]).all() and low != high
    ends = f"{_digits(low, share=share)} to {_digits(high, share=share)}" if known else ""
    text = _digits(value, share=share) + (" %" if share else "")
    return Cell(text, ends, 100 * min(max(value, 0.0), 1.0) if share else None, note)


def _digits(value: float, *, share: bool) -> str:
    """Per cent with one decimal, else three significant digits, without the programmer's exponent."""
    if share:
        text = f"{100 * value:.1f}".removesuffix(".0")
    elif 0 < abs(value) < 1e-3:
        number, power = f"{value:.1e}".split("e")
        return f"{number}\u00b710{str(int(power)).translate(SUPERSCRIPTS)}".replace("-", MINUS)
    else:
        text = f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", MINUS)


def at_a_glance(localization: pd.DataFrame | None) -> NumberTable | None:
    """Each method at its best single layer and at all layers together: gain and cost side by side."""
    if localization is None:
        return None
    try:
        sweep = sweep_rows(localization)
        methods = contenders(sweep)
    except TableError:
        return None
    shown = [MEASURES[key] for key in GLANCE if present(sweep, MEASURES[key])]
    rows = [_measures("no intervention", BASELINE, baseline(sweep), shown)]
    for method in methods:
        if method.layer is not None:
            rows.append(
                _measures(f"{method.mark.label}, layer {method.layer}", method.mark, method.best, shown)
            )
        if method.together:
            rows.append(_measures(f"{method.mark.label}, all layers", method.mark, method.together, shown))
    columns = tuple((measure.prompts, _name(measure)) for measure in shown)
    return NumberTable("Methods at their best single layer and at all layers", columns, tuple(rows), "method")


def _measures(heading: str, mark: Mark, found: Values, shown: Sequence[Measure]) -> Row:
    cells = tuple(cell(*interval(found, measure), share=measure.scale == "share") for measure in shown)
    return Row(heading, mark, cells)


def _name(measure: Measure) -> str:
    return measure.label.removesuffix(" (%)")


def per_layer(localization: pd.DataFrame | None) -> list[NumberTable]:
    """One table a method: rows are layers, columns are measures, so that cost stands beside gain."""
    if localization is None:
        return []
    try:
        sweep = sweep_rows(localization)
        methods = contenders(sweep)
    except TableError:
        return []
    shown = [MEASURES[key] for key in PER_LAYER if present(sweep, MEASURES[key])]
    columns = tuple((measure.prompts, _name(measure)) for measure in shown)
    tables = []
    for method in methods:
        rows = tuple(_measures(str(n), method.mark, found, shown) for n, found in method.layers.items())
        if rows:
            tables.append(NumberTable(method.mark.label, columns, rows, "layer"))
    return tables


def geometry_table(geometry: pd.DataFrame | None) -> NumberTable | None:
    """Diagnostics: rows are layers, columns quantities; the null band under each value."""
    if geometry is None or geometry.empty or not {"layer", "quantity", "value"} <= set(geometry.columns):
        return None
    here = at_position(geometry, None)
    names = list(dict.fromkeys(here["quantity"]))
    units = dict(zip(here["quantity"], here["unit"], strict=True)) if "unit" in here else {}
    by_key = {(int(row["layer"]), row["quantity"]): row for row in here.to_dict("records")}
    rows = tuple(
        Row(str(layer), None, tuple(_diagnostic(by_key.get((layer, name))) for name in names))
        for layer in layers_of(here)
    )
    columns = tuple((str(units.get(name, "")), str(name).replace("_", " ")) for name in names)
    return NumberTable("Geometry by layer", columns, rows, "layer")


def _diagnostic(row: dict[object, object] | None) -> Cell:
    if row is None:
        return MISSING
    ends = numbers(pd.Series([row.get(name) for name in ("value", "low", "high", "null_low", "null_high")]))
    null = f"null {_digits(ends[3], share=False)} to {_digits(ends[4], share=False)}"
    return cell(*ends[:3], note=null if np.isfinite(ends[3:]).all() else "")


def prompts_measured(localization: pd.DataFrame | None) -> str:
    """How many prompts each rate stands on, in words."""
    if localization is None or "n" not in localization:
        return ""
    counts = {kind: measured(localization, "refusal_rate", kind)["n"].max() for kind in CLASSES}
    return ", ".join(f"{int(n)} {kind}" for kind, n in counts.items() if pd.notna(n))
