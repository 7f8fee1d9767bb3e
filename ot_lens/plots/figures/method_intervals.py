"""Methods side by side, with their intervals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.description import Axis, Curve, Description, Key, Panel, Points, Reference, described
from ot_lens.plots.figures.method_comparison import KINDS, how_chosen
from ot_lens.plots.measures import (
    KL,
    PERPLEXITY,
    REFUSES,
    RIGHT,
    RIGHT_HARMLESS,
    Contender,
    Measure,
    axis_of,
    baseline,
    contenders,
    extent,
    interval,
    present,
    sweep_rows,
)
from ot_lens.plots.style import BASELINE

COLUMNS = (REFUSES, RIGHT, RIGHT_HARMLESS, KL, PERPLEXITY)
OFFSET = 0.16


def method_intervals(localization: pd.DataFrame) -> Description:
    """One row per method, one column per measure: best single layer (filled), all layers together (hollow).

    Args:
        localization: The table of `localize`.

    Raises:
        TableError: If a column is missing or there is nothing to draw.
    """
    sweep = sweep_rows(localization)
    methods = contenders(sweep)
    measures = drawable_columns(sweep)
    names = [m.mark.label if m.layer is None else f"{m.mark.label}, layer {m.layer}" for m in methods]
    y = Axis(limits=(len(methods) - 0.4, -0.6), ticks=tuple((float(i), name) for i, name in enumerate(names)))
    return described(
        [_panel(sweep, methods, measure, y) for measure in measures],
        "localization",
        columns=len(measures),
        height=0.2 + 0.21 * len(methods),
        share="y",
        keys=(*KINDS, Key(BASELINE.label, BASELINE.color, dash="dash")),
        collect=False,
        letters=False,
    )


def drawable_columns(sweep: pd.DataFrame) -> list[Measure]:
    """The measures of `COLUMNS` that the sweep holds.

    Raises:
        NothingToDrawError: it holds none.
    """
    shown = [measure for measure in COLUMNS if present(sweep, measure)]
    if not shown:
        raise NothingToDrawError("the localization table holds no finite rate or cost")
    return shown


def _panel(sweep: pd.DataFrame, methods: list[Contender], measure: Measure, y: Axis) -> Panel:
    x = axis_of(measure, extent(sweep, measure), measure.label.replace("answered ", "answered\n"))
    level = interval(baseline(sweep), measure)[0]
    elements: list[Any] = []
    if np.isfinite(level):
        elements.append(Reference(level, BASELINE.label, vertical=True, mark=replace(BASELINE, label="")))
    for row, method in enumerate(methods):
        best = "all layers" if method.layer is None else f"layer {method.layer}"
        for kind, values, at, note in (
            ("best", method.best, row - OFFSET, best),
            ("all", method.together, row + OFFSET, "all layers"),
        ):
            value, low, high = (np.array([end]) for end in interval(values, measure))
            if np.isfinite(value).all():
                y_at = np.array([at])
                curve = Curve(value, y_at, y_at, y_at, None, low, high)
                name = f"{kind}:{measure.key}/{method.mark.label}"
                look: dict[str, Any] = {"size": 3.8, "notes": (note,), "legend": False}
                elements.append(Points(name, method.mark, curve, kind == "all", **look))
    return Panel(measure.prompts, x, y, tuple(elements))


def caption(localization: pd.DataFrame, **_: Any) -> str:
    """What `method_intervals` shows."""
    sweep = sweep_rows(localization)
    return "Every method at its best single layer and at all layers together. " + how_chosen(sweep)
