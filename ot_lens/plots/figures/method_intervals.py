"""Methods side by side, with their intervals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots import measures
from ot_lens.plots.description import Axis, Curve, Description, Key, Panel, Points, Reference, described
from ot_lens.plots.figures.method_comparison import KINDS, how_chosen
from ot_lens.plots.measures import (
    COHERENT,
    KL,
    PERPLEXITY,
    REFUSES,
    RIGHT,
    RIGHT_HARMLESS,
    Contender,
    Measure,
    Values,
)
from ot_lens.plots.style import BASELINE, Mark

COLUMNS = (REFUSES, COHERENT, RIGHT, RIGHT_HARMLESS, KL, PERPLEXITY)
OFFSET = 0.16


def method_intervals(localization: pd.DataFrame) -> Description:
    """One row per method, one column per measure: best single layer (filled), all layers together (hollow).

    Args:
        localization: The table of `localize`.
    """
    sweep = measures.sweep_rows(localization)
    methods, unedited = measures.contenders(sweep), measures.baseline(sweep)
    shown = [measure for measure in COLUMNS if measures.present(sweep, measure)]
    if not shown:
        raise NothingToDrawError("The localization table holds no finite rate or cost.")
    names = [m.mark.label if m.layer is None else f"{m.mark.label}, layer {m.layer}" for m in methods]
    y = Axis(limits=(len(methods) - 0.4, -0.6), ticks=tuple((float(i), name) for i, name in enumerate(names)))
    keys = (*KINDS, Key(BASELINE.label, BASELINE.color, dash="dash"))
    return described(
        [_panel(sweep, unedited, methods, measure, y) for measure in shown], "localization", columns=len(shown),
        height=0.2 + 0.21 * len(methods), share="y", keys=keys, collect=False, letters=False,
    )  # fmt: skip


def _panel(
    sweep: pd.DataFrame, unedited: Values, methods: list[Contender], measure: Measure, y: Axis
) -> Panel:
    x = measures.axis_of(measure, sweep, measure.label.replace("answered ", "answered\n"), narrow=True)
    level = measures.interval(unedited, measure)[0]
    elements: list[Any] = []
    if np.isfinite(level):
        elements.append(Reference(level, BASELINE.label, vertical=True, mark=replace(BASELINE, label="")))
    for row, method in enumerate(methods):
        best = "all layers" if method.layer is None else f"layer {method.layer}"
        elements += _edit("best", method.best, method.mark, measure, row - OFFSET, best)
        elements += _edit("all", method.together, method.mark, measure, row + OFFSET, "all layers")
    return Panel(measure.prompts, x, y, tuple(elements))


def _edit(kind: str, values: Values, mark: Mark, measure: Measure, at: float, note: str) -> list[Points]:
    value, low, high = np.reshape(measures.interval(values, measure), (3, 1))
    if not np.isfinite(value).all():
        return []
    y = np.array([at])
    curve, name = Curve(value, y, y, y, None, low, high), f"{kind}:{measure.key}/{mark.label}"
    return [Points(name, mark, curve, kind == "all", size=3.8, notes=(note,), legend=False)]


def caption(localization: pd.DataFrame, **_: object) -> str:
    """What `method_intervals` shows."""
    sweep = measures.sweep_rows(localization)
    return "Every method at its best single layer and at all layers together. " + how_chosen(sweep)
