"""Heat maps of a sweep: pairs of layers, rank by layer, strength by layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.heat_panels import heat_figure
from ot_lens.plots.measures import COLUMNS, KL, REFUSES, RIGHT, Measure
from ot_lens.plots.panels import HeatPanel, Scale, matrix_of
from ot_lens.plots.rows import (
    checked,
    counts,
    layers_of,
    marked_methods,
    numbers,
    settings,
)
from ot_lens.plots.style import BASELINE
from ot_lens.tables import (
    PAIR,
    SINGLE,
    at_one_setting,
    baseline_of,
    by_depth,
    measured,
    real_edits,
    select,
    single_layers,
)

SHOWN = (REFUSES, RIGHT, KL)
SCORE = "refusal_score"
MOST_METHODS, MOST_PANELS = 4, 9


# ---------------------------------------------------------------- rank by layer


def rank_panels(localization: pd.DataFrame) -> list[HeatPanel]:
    """Refused, answered correctly and cost of PCA-OT by layer (x) and rank (y).

    Raises:
        TableError: a column is missing, or the sweep holds one rank only.
    """
    sweep = single_layers(by_depth(checked(localization, "localization", COLUMNS)))
    rows = sweep[sweep["k"].notna()]
    ranks = sorted({int(k) for k in rows["k"]})
    if len(ranks) < 2:
        raise NothingToDrawError("the localization table holds fewer than two ranks of PCA-OT")
    return _some([_grid(rows, measure, "k", ranks, "rank $k$") for measure in SHOWN])


def rank_by_layer(
    localization: pd.DataFrame, *, style: str = "icml", axes: Sequence[Axes] | np.ndarray | None = None
) -> Figure:
    """What PCA-OT at one layer does, by layer and rank: one panel a measure.

    Args:
        localization: the table of `localize`, with at least two ranks.
        style: "icml", "neurips" or "wide".
        axes: one axes for each of the three measures in the table, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    panels = rank_panels(localization)
    return heat_figure(panels, style=style, axes=axes, columns=3, height=0.3 + 0.2 * panels[0].shape[0])


def caption_ranks(localization: pd.DataFrame, **_: Any) -> str:
    """What `rank_by_layer` shows."""
    sweep = by_depth(checked(localization, "localization", COLUMNS))
    rows = sweep[sweep["k"].notna()]
    return (
        "PCA-OT at one layer, by layer and rank k: share of harmful prompts refused, share of them "
        "answered correctly, and KL(original || edited) on harmless prompts as the cost. Intervals are in "
        f"the table. n = {counts(rows)} prompts; {settings(rows)}."
    )


# ---------------------------------------------------------------- strength by layer


def strength_panels(localization: pd.DataFrame) -> list[HeatPanel]:
    """Share of harmful prompts refused, by layer (x) and strength (y), one panel a method.

    Raises:
        TableError: a column is missing, or the sweep holds one strength only.
    """
    table = checked(localization, "localization", (*COLUMNS, "strength"))
    sweep = single_layers(real_edits(table))
    sweep = at_one_setting(sweep.assign(level=sweep["strength"], strength=np.nan))
    strengths = sorted({float(t) for t in sweep["level"]})
    if len(strengths) < 2:
        raise NothingToDrawError("the localization table holds fewer than two strengths")
    methods = [(mark, part) for mark, part in marked_methods(sweep) if part["level"].nunique() > 1][
        :MOST_PANELS
    ]
    return _some(
        [_grid(part, REFUSES, "level", strengths, "strength $t$", title=mark.label) for mark, part in methods]
    )


def strength_by_layer(
    localization: pd.DataFrame, *, style: str = "icml", axes: Sequence[Axes] | np.ndarray | None = None
) -> Figure:
    """Share of harmful prompts refused by layer and strength of the edit, one panel a method.

    Args:
        localization: the table of `localize`, with at least two strengths.
        style: "icml", "neurips" or "wide".
        axes: one axes a method, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    panels = strength_panels(localization)
    return heat_figure(panels, style=style, axes=axes, columns=3, height=0.25 + 0.17 * panels[0].shape[0])


def caption_strengths(localization: pd.DataFrame, **_: Any) -> str:
    """What `strength_by_layer` shows."""
    strength_panels(localization)
    rows = measured(single_layers(real_edits(localization)), REFUSES.name, REFUSES.prompts)
    return (
        "Share of harmful prompts refused under x + t (T(x) - x) at one layer, by layer and strength t, a "
        "panel a method: t = 0 leaves the model as it is, t = 1 applies the whole map. Intervals are in the "
        f"table. n = {counts(rows)} prompts."
    )


# ---------------------------------------------------------------- pairs of layers


def pair_panels(localization: pd.DataFrame) -> list[HeatPanel]:
    """Refusal score under edits at two layers together, one panel a method, single layers on the diagonal.

    The methods shown are those whose best pair brings the score lowest, four at most.

    Raises:
        TableError: a column is missing, or the sweep holds no pairs.
    """
    table = checked(localization, "localization", (*COLUMNS, "layers"))
    rows = measured(at_one_setting(real_edits(table)), SCORE, "harmful")
    pairs = select(rows, set=PAIR).dropna(subset="value")
    if pairs.empty:
        raise NothingToDrawError(
            "the localization table holds no pairs of layers: sweep them with sets: [single, pair, all]"
        )
    low, high = float(numbers(rows["value"]).min()), float(np.nanmax(numbers(rows["value"])))
    scale = Scale("refusal score (nats)", low, high)
    ranked = sorted(marked_methods(pairs), key=lambda item: float(item[1]["value"].min()))[:MOST_METHODS]
    shown = {mark.label for mark, _ in ranked}
    both = select(rows, set=(PAIR, SINGLE))
    layers = sorted({*_ends(pairs)[0], *_ends(pairs)[1], *layers_of(single_layers(both))})
    return [
        _pair_panel(part, mark.label, layers, scale)
        for mark, part in marked_methods(both)
        if mark.label in shown
    ]


def _ends(pairs: pd.DataFrame) -> tuple[list[int], list[int]]:
    split = [str(layers).split(",") for layers in pairs["layers"]]
    return [int(ends[0]) for ends in split], [int(ends[-1]) for ends in split]


def _pair_panel(rows: pd.DataFrame, title: str, layers: list[int], scale: Scale) -> HeatPanel:
    rows = rows[rows["value"].notna()]
    first, second = _ends(rows)
    cells = rows.assign(first=first, second=second)
    matrix = matrix_of(cells, "second", "first", "value", (layers, layers))
    pairs = np.where(np.eye(len(layers), dtype=bool), np.nan, matrix)
    best = None
    if np.isfinite(pairs).any():
        row, column = np.unravel_index(np.nanargmin(pairs), pairs.shape)
        best = (int(row), int(column))
    names = [str(layer) for layer in layers]
    return HeatPanel(title, matrix, names, names, "first layer", "second layer", scale, best=best)


def pair_matrix(
    localization: pd.DataFrame, *, style: str = "icml", axes: Sequence[Axes] | np.ndarray | None = None
) -> Figure:
    """Refusal score under edits at every two layers, one panel a method, the best pair marked.

    Args:
        localization: the table of `localize` with sets "pair" and "single".
        style: "icml", "neurips" or "wide".
        axes: one axes a method (four at most), to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    return heat_figure(pair_panels(localization), style=style, axes=axes, columns=2)


def caption_pairs(localization: pd.DataFrame, **_: Any) -> str:
    """What `pair_matrix` shows."""
    panels = pair_panels(localization)
    rows = measured(select(localization, set=PAIR), SCORE, "harmful")
    base = measured(baseline_of(localization), SCORE, "harmful")
    before = numbers(base["value"])
    level = f" ({BASELINE.label}: {before[0]:.1f} nats)" if np.isfinite(before).any() else ""
    which = "the four methods with the lowest score" if len(panels) == MOST_METHODS else "each method"
    return (
        f"Refusal score of harmful prompts at the last prompt token under edits at two layers{level}, "
        f"{which}; single layers on the diagonal. Outlined: the best of the pairs, chosen on the prompts "
        f"shown. Grey: not measured. Intervals are in the table. n = {counts(rows)} prompts."
    )


# ---------------------------------------------------------------- in common


def _grid(
    rows: pd.DataFrame, measure: Measure, row: str, levels: Sequence[int | float], y: str, title: str = ""
) -> HeatPanel:
    part = measured(rows, measure.name, measure.prompts)
    layers = layers_of(rows)
    matrix = matrix_of(part, row, "layer", "value", (levels, layers))
    names = [str(layer) for layer in layers], [f"{level:g}" for level in levels]
    text = title or f"{measure.prompts}: {measure.label.partition(' (')[0]}"
    return HeatPanel(text, matrix, *names, "layer", y, _scale(measure, matrix), square=False)


def _scale(measure: Measure, matrix: np.ndarray) -> Scale:
    if measure.scale == "share":
        return Scale(f"{measure.prompts} (%)", 0.0, 1.0, (0.0, 0.5, 1.0), percent=True)
    largest = float(np.nanmax(matrix)) if np.isfinite(matrix).any() else 1.0
    return Scale(measure.label, 0.0, max(largest, 1e-6), numbered=False)


def _some(panels: list[HeatPanel]) -> list[HeatPanel]:
    found = [panel for panel in panels if np.isfinite(panel.matrix).any()]
    if not found:
        raise NothingToDrawError("no finite value of what the heat map shows")
    return found
