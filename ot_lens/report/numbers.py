"""Tables of numbers for the page: every value with its interval, the refusal rate never without its cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ot_lens.errors import TableError
from ot_lens.plots.measures import (
    MEASURES,
    Contender,
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
    "coherent_success_rate/harmful",
    "exact_answer_rate/harmful",
    "exact_answer_rate/harmless",
    "refusal_rate/harmless",
    "kl/harmless",
    "perplexity/harmless",
)
PER_LAYER = (*GLANCE[:6], "refusal_score/harmful", "perplexity/harmless")


@dataclass(frozen=True)
class Cell:
    """A formatted number and its interval; `fill` is the width of the bar of a share, in per cent."""

    text: str
    interval: str = ""
    fill: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One row: its heading, the mark of its method if it has one, and its cells."""

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
    """A cell: per cent for shares, three significant digits otherwise, a dash for a missing value."""
    if not np.isfinite(value):
        return MISSING
    known = np.isfinite([low, high]).all() and low != high
    ends = f"{_digits(low, share=share)} to {_digits(high, share=share)}" if known else ""
    text = _digits(value, share=share) + (" %" if share else "")
    return Cell(text, ends, 100 * min(max(value, 0.0), 1.0) if share else None, note)


def _digits(value: float, *, share: bool) -> str:
    """Per cent with one decimal, else three significant digits, without e notation."""
    if share:
        text = f"{100 * value:.1f}".removesuffix(".0")
    elif 0 < abs(value) < 1e-3:
        number, power = f"{value:.1e}".split("e")
        return f"{number}\u00b710{str(int(power)).translate(SUPERSCRIPTS)}".replace("-", MINUS)
    else:
        text = f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", MINUS)


def at_a_glance(localization: pd.DataFrame | None) -> NumberTable | None:
    """Each method at its most effective layer and at all layers together: effect and cost side by side."""
    sweep, methods = _methods(localization)
    if not methods:
        return None
    measures = _measured(sweep, GLANCE)
    rows = [_row("no intervention", BASELINE, baseline(sweep), measures)]
    for method in methods:
        label = method.mark.label
        if method.layer is not None:
            rows.append(_row(f"{label}, layer {method.layer}", method.mark, method.best, measures))
        if method.together:
            rows.append(_row(f"{label}, all layers", method.mark, method.together, measures))
    title = "Methods at their most effective single layer and at all layers"
    return NumberTable(title, _columns(measures), tuple(rows), "method")


def per_layer(localization: pd.DataFrame | None) -> list[NumberTable]:
    """One table per method, one row per layer: effect and cost side by side."""
    sweep, methods = _methods(localization)
    measures = _measured(sweep, PER_LAYER)
    return [
        NumberTable(
            method.mark.label,
            _columns(measures),
            tuple(_row(str(n), method.mark, values, measures) for n, values in method.layers.items()),
            "layer",
        )
        for method in methods
        if method.layers
    ]


def _methods(localization: pd.DataFrame | None) -> tuple[pd.DataFrame, list[Contender]]:
    """The rows of the sweep that are shown, and its methods; empty where there is nothing to show."""
    if localization is None:
        return pd.DataFrame(), []
    try:
        sweep = sweep_rows(localization)
        return sweep, contenders(sweep)
    except TableError:
        return pd.DataFrame(), []


def _measured(sweep: pd.DataFrame, keys: Sequence[str]) -> list[Measure]:
    return [] if sweep.empty else [MEASURES[key] for key in keys if present(sweep, MEASURES[key])]


def _row(heading: str, mark: Mark, values: Values, measures: Sequence[Measure]) -> Row:
    cells = tuple(cell(*interval(values, measure), share=measure.scale == "share") for measure in measures)
    return Row(heading, mark, cells)


def _columns(measures: Sequence[Measure]) -> tuple[tuple[str, str], ...]:
    return tuple((measure.prompts, measure.label.removesuffix(" (%)")) for measure in measures)


def geometry_table(geometry: pd.DataFrame | None) -> NumberTable | None:
    """Diagnostics: one row per layer, one column per quantity, the null band under each value."""
    if geometry is None or geometry.empty or not {"layer", "quantity", "value"} <= set(geometry.columns):
        return None
    table = at_position(geometry, None)
    names = list(dict.fromkeys(table["quantity"]))
    units = dict(zip(table["quantity"], table["unit"], strict=True)) if "unit" in table else {}
    by_key = {(int(row["layer"]), row["quantity"]): row for row in table.to_dict("records")}
    rows = tuple(
        Row(str(layer), None, tuple(_diagnostic(by_key.get((layer, name))) for name in names))
        for layer in layers_of(table)
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
    """How many prompts each rate was measured on, in words."""
    if localization is None or "n" not in localization:
        return ""
    counts = {kind: measured(localization, "refusal_rate", kind)["n"].max() for kind in CLASSES}
    return ", ".join(f"{int(n)} {kind}" for kind, n in counts.items() if pd.notna(n))
