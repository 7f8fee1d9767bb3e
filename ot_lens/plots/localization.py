"""Where refusal lives: what an edit at one layer does to the behaviour, layer by layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.canvas import canvas, style_named
from ot_lens.plots.lines import draw_context, draw_curve, draw_points, layer_axis, scale_axis
from ot_lens.plots.measures import Measure, extent, measure_named, sweep_rows
from ot_lens.plots.rows import (
    Curve,
    counts,
    curve,
    layers_of,
    marked_methods,
    numbers,
    settings,
)
from ot_lens.plots.style import BASELINE, BASELINE_LINE, FAMILIES, Mark
from ot_lens.tables import baseline_of, edits_of, every_layer, measured, single_layers

# inches of figure from which a legend above a panel has room for two columns
TWO_COLUMNS = 6.0
SHOWN = ("refusal_rate/harmful", "exact_answer_rate/harmful", "refusal_score/harmful", "kl/harmless")


def available(sweep: pd.DataFrame, wanted: Sequence[str] = SHOWN) -> list[Measure]:
    """The wanted measures that the table holds for some method at single layers.

    Raises:
        NothingToDrawError: none of them.
    """
    acting = single_layers(edits_of(sweep))
    rows = [(measure_named(key), measured(acting, *key.split("/"))) for key in wanted]
    found = [measure for measure, part in rows if np.isfinite(numbers(part["value"])).any()]
    if not found:
        raise NothingToDrawError(f"the localization table has no single-layer value of {', '.join(wanted)}")
    return found


def families(sweep: pd.DataFrame) -> dict[str, list[tuple[Mark, pd.DataFrame]]]:
    """Methods by family, in the fixed order."""
    groups: dict[str, list[tuple[Mark, pd.DataFrame]]] = {}
    for mark, rows in marked_methods(sweep):
        groups.setdefault(mark.family, []).append((mark, rows))
    return {name: groups[name] for name in (*FAMILIES, *groups) if name in groups}


def localization_curve(
    localization: pd.DataFrame,
    measure: str = "refusal_rate/harmful",
    *,
    style: str = "icml",
    ax: Axes | None = None,
) -> Figure:
    """One measure by layer, one line a method, in one panel.

    Args:
        localization: the table of `localize`; pass only the rows of the methods to show.
        measure: one of `MEASURES`.
        style: "icml", "neurips" or "wide".
        ax: an axes to draw into.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    sweep = sweep_rows(localization)
    shown = available(sweep, [measure])[0]
    width = style_named(style).column
    with canvas(style, None if ax is None else [ax], (1, 1), (width, 0.85 * width)) as (figure, grid):
        target = grid[0, 0]
        _panel(target, sweep, shown, list(marked_methods(sweep)))
        target.set_ylabel(f"{shown.prompts}: {shown.label}")
        target.set_xlabel("layer")
        target.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return figure


def localization_curves(
    localization: pd.DataFrame,
    *,
    measures: Sequence[str] = SHOWN,
    style: str = "icml",
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Measures (rows) by layer for each family of methods (columns), the other families in grey behind.

    Args:
        localization: the table of `localize`.
        measures: keys of `MEASURES`; those the table lacks are left out.
        style: "icml", "neurips" or "wide".
        axes: measures x families axes, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    sweep = sweep_rows(localization)
    shown, groups = available(sweep, measures), families(sweep)
    shape, width = (len(shown), len(groups)), style_named(style).text
    heading = 0.55 if width > TWO_COLUMNS else 0.85
    height = (heading + 1.02 * len(shown)) * max(1.0, width / 6.75)
    size = (width if len(groups) > 1 else style_named(style).column, height)
    with canvas(style, axes, shape, size, sharex=True, sharey="row") as (figure, grid):
        for row, measure in enumerate(shown):
            for column, members in enumerate(groups.values()):
                _panel(grid[row, column], sweep, measure, members)
            grid[row, 0].set_ylabel(f"{measure.prompts}:\n{measure.label}")
        for column, name in enumerate(groups):
            grid[-1, column].set_xlabel("layer")
            _heading(grid[0, column], f"({'abcdefgh'[column]}) {name}", max(map(len, groups.values())), width)
        if axes is None:
            figure.align_ylabels(grid[:, 0])
    return figure


def _heading(ax: Axes, title: str, entries: int, width: float) -> None:
    """A column's title and legend above it, as high as the largest family needs."""
    handles, labels = ax.get_legend_handles_labels()
    columns = 2 if width > TWO_COLUMNS else 1
    blank = columns * -(-entries // columns) - len(handles)
    handles += [Line2D([], [], linestyle="none")] * blank
    look = {"ncols": columns, "alignment": "left", "bbox_to_anchor": (0.0, 1.02)}
    ax.legend(handles, labels + [""] * blank, loc="lower left", title=title, **look)


def side_position(layers: list[int]) -> float:
    """Where the values for all layers together stand, right of the last layer."""
    return layers[-1] + max(1.2, 0.11 * (layers[-1] - layers[0] + 1))


def _panel(ax: Axes, sweep: pd.DataFrame, measure: Measure, members: list[tuple[Mark, pd.DataFrame]]) -> None:
    rows = measured(sweep, measure.name, measure.prompts)
    acting = edits_of(rows)
    layers = layers_of(single_layers(acting))
    chosen = {mark.label for mark, _ in members}
    for mark, part in marked_methods(single_layers(acting)):
        if mark.label not in chosen:
            draw_context(ax, curve(part))
    _baseline(ax, baseline_of(rows), measure)
    for mark, part in members:
        single = single_layers(measured(part, measure.name, measure.prompts))
        draw_curve(ax, curve(single), mark, name=f"{measure.key}/{mark.label}")
    _all_layers(ax, measure, members, layers)
    scale_axis(ax, "y", measure, extent(rows, measure))
    _layers_and_side(ax, layers, side=len(every_layer(acting)) > 0)


def _baseline(ax: Axes, rows: pd.DataFrame, measure: Measure) -> None:
    for value, low, high in zip(*(numbers(rows[name]) for name in ("value", "low", "high")), strict=True):
        ax.axhline(value, **BASELINE_LINE, zorder=1, gid=f"baseline:{measure.key}")
        if np.isfinite([low, high]).all():
            ax.axhspan(low, high, color=BASELINE.color, alpha=0.12, linewidth=0, zorder=0)


def _all_layers(
    ax: Axes, measure: Measure, members: list[tuple[Mark, pd.DataFrame]], layers: list[int]
) -> None:
    """Values for all layers together at the side, methods next to each other."""
    step = 0.28 * (side_position(layers) - layers[-1]) / 1.2
    for index, (mark, part) in enumerate(members):
        rows = every_layer(measured(part, measure.name, measure.prompts))
        if len(rows):
            x = side_position(layers) + step * (index - (len(members) - 1) / 2)
            value, low, high = (numbers(rows[name]) for name in ("value", "low", "high"))
            draw_points(ax, Curve(np.full(len(rows), x), value, low, high), mark)


def _layers_and_side(ax: Axes, layers: list[int], *, side: bool) -> None:
    layer_axis(ax, layers, label=False)
    if not side:
        return
    at, left = side_position(layers), ax.get_xlim()[0]
    ax.set_xlim(left, at + (at - layers[-1]) * 0.6)
    ax.axvline(layers[-1] + 0.38 * (at - layers[-1]), color="#BBBBBB", linewidth=0.6, zorder=0)
    located = MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1).tick_values(
        layers[0], layers[-1]
    )
    ticks = [round(tick) for tick in located if layers[0] <= tick <= layers[-1]]
    ax.set_xticks([*ticks, at], [*(f"{tick}" for tick in ticks), "all"])


def caption(localization: pd.DataFrame, *, screen: bool = False, **_: Any) -> str:
    """What `localization_curves` shows, on paper or on a screen."""
    sweep = sweep_rows(localization)
    rows = pd.concat([measured(sweep, m.name, m.prompts) for m in available(sweep)])
    context = "" if screen else " The other families are in grey behind."
    return (
        "What an edit at one layer does, by layer and method; at the right edge ('all') the same edit at "
        "all layers together. Shown are the share of harmful prompts refused (by phrase, from generated "
        "answers); the share of harmful prompts answered correctly (refusal gone and the model intact); the "
        "refusal score of harmful prompts at the last prompt token; and, as the cost, KL(original || "
        f"edited) of the next-token distribution on harmless prompts (asinh scale).{context} Bands and "
        "bars: 95 % intervals (Wilson for shares, bootstrap over prompts otherwise). Dashed grey: no "
        "intervention. For RFA the layer is the one the direction is taken from; it is ablated at every "
        f"block. n = {counts(rows)} prompts; {settings(sweep)}."
    )
