"""Methods side by side: what happens to harmful prompts, and beside it what it costs on harmless ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.canvas import canvas, style_named
from ot_lens.plots.lines import letter, scale_axis
from ot_lens.plots.measures import (
    KL,
    PERPLEXITY,
    REFUSES,
    RIGHT,
    RIGHT_HARMLESS,
    SUCCESS,
    Contender,
    Measure,
    Values,
    baseline,
    contenders,
    extent,
    front,
    interval,
    places,
    present,
    sweep_rows,
)
from ot_lens.plots.rows import counts, settings
from ot_lens.plots.style import BASELINE, BASELINE_LINE, Mark
from ot_lens.tables import measured

# with success rates, else with refusal rates
PAIRS = (((KL, SUCCESS), (PERPLEXITY, SUCCESS), (SUCCESS, RIGHT)), ((KL, REFUSES), (REFUSES, RIGHT)))
COLUMNS = (REFUSES, RIGHT, RIGHT_HARMLESS, KL, PERPLEXITY)

TITLES = {
    KL.key: "price on harmless prompts",
    PERPLEXITY.key: "price in perplexity",
    SUCCESS.key: "is the answer right?",
    REFUSES.key: "is the answer right?",
}
FRONT: dict[str, Any] = {
    "color": "#555B65",
    "linewidth": 0.9,
    "linestyle": (0, (1, 1)),
    "drawstyle": "steps-post",
    "zorder": 1,
    "gid": "front",
}
KINDS = tuple(
    Line2D(
        [],
        [],
        linestyle="none",
        marker="o",
        color="#555555",
        markerfacecolor=face,
        markersize=size,
        label=label,
    )
    for face, size, label in (
        ("#555555", 4.2, "best single layer"),
        ("white", 4.2, "all layers together"),
        ("#555555", 1.8, "other single layers"),
    )
)


def method_comparison(
    localization: pd.DataFrame, *, style: str = "icml", axes: Sequence[Axes] | np.ndarray | None = None
) -> Figure:
    """Attack success against each cost, and right answers against success, with intervals both ways.

    Args:
        localization: the table of `localize`.
        style: "icml", "neurips" or "wide".
        axes: one axes a pair of measures in the table (three at most), to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    sweep = sweep_rows(localization)
    methods, pairs = contenders(sweep), drawable_pairs(sweep)
    width = style_named(style).text * (1.0 if len(pairs) > 1 else 0.6)
    height = 0.36 * style_named(style).text + 0.13 * (3 + len(methods) / 3)
    with canvas(style, axes, (1, len(pairs)), (width, height)) as (figure, grid):
        for index, (ax, (x, y)) in enumerate(zip(grid.flat, pairs, strict=True)):
            _scatter(ax, sweep, methods, x, y)
            letter(ax, index, TITLES[x.key])
        if axes is None:
            _legend(figure, grid.flat[0], style)
    return figure


def drawable_pairs(sweep: pd.DataFrame) -> list[tuple[Measure, Measure]]:
    """The pairs (x, y) of measures that were both measured.

    Raises:
        NothingToDrawError: none was.
    """
    for pairs in PAIRS:
        found = [(x, y) for x, y in pairs if present(sweep, x) and present(sweep, y)]
        if found:
            return found
    raise NothingToDrawError("the localization table lacks refusal rates with a cost or with right answers")


def drawable_columns(sweep: pd.DataFrame) -> list[Measure]:
    """The measures of `COLUMNS` that the sweep holds.

    Raises:
        NothingToDrawError: it holds none.
    """
    shown = [measure for measure in COLUMNS if present(sweep, measure)]
    if not shown:
        raise NothingToDrawError("the localization table holds no finite rate or cost")
    return shown


def _scatter(ax: Axes, sweep: pd.DataFrame, methods: list[Contender], x: Measure, y: Measure) -> None:
    if y is RIGHT:
        ends = [0, 1] if x is SUCCESS else [1, 0]
        ax.plot([0, 1], ends, color="#BBBBBB", linewidth=0.7, zorder=0, gid="diagonal")
        ax.fill_between([0, 1], ends, color="#000000", alpha=0.035, linewidth=0, zorder=0)
    elif y is SUCCESS:
        ax.plot(*front(places(methods, x, y)).T, **FRONT)
    for method in methods:
        _cloud(ax, method, x, y)
    for method in methods:
        _cross(ax, method.together, method.mark, x, y, hollow=True)
        _cross(ax, method.best, method.mark, x, y, hollow=False)
    _cross(ax, baseline(sweep), BASELINE, x, y, hollow=False)
    _axes_of(ax, sweep, x, y)


def _cloud(ax: Axes, method: Contender, x: Measure, y: Measure) -> None:
    """The single layers that are not the best one, small and faint."""
    places = [(interval(found, x)[0], interval(found, y)[0]) for found in method.others.values()]
    look: dict[str, Any] = {"marker": method.mark.mpl_marker, "color": method.mark.color, "alpha": 0.4}
    look |= {"markersize": 2.2, "markeredgewidth": 0, "zorder": 1}
    ax.plot(*np.array(places).reshape(-1, 2).T, linestyle="none", gid=f"others:{method.mark.label}", **look)


def _cross(ax: Axes, found: Values, mark: Mark, x: Measure, y: Measure, *, hollow: bool) -> None:
    (vx, lx, hx), (vy, ly, hy) = interval(found, x), interval(found, y)
    if not np.isfinite([vx, vy]).all():
        return
    ax.errorbar(
        [vx], [vy], xerr=_arms(vx, lx, hx), yerr=_arms(vy, ly, hy), linestyle="none", marker=mark.mpl_marker,
        color=mark.color, markerfacecolor="white" if hollow else mark.color, markeredgecolor=mark.color,
        markersize=4.6, elinewidth=0.7, label=None if hollow else mark.label, zorder=3 if hollow else 4,
        gid=f"{'all' if hollow else 'best'}:{mark.label}",
    )  # fmt: skip


def _arms(value: float, low: float, high: float) -> np.ndarray:
    return np.nan_to_num(np.clip([[value - low], [high - value]], 0.0, None))


def _axes_of(ax: Axes, sweep: pd.DataFrame, x: Measure, y: Measure) -> None:
    for which, measure in (("x", x), ("y", y)):
        getattr(ax, f"set_{which}label")(f"{measure.prompts}: {measure.label}")
        scale_axis(ax, which, measure, extent(sweep, measure), 0.25)


def _legend(figure: Figure, ax: Axes, style: str) -> None:
    handles, labels = ax.get_legend_handles_labels()
    extra = [*KINDS, Line2D([], [], **FRONT | {"label": "Pareto front"})]
    look = style_named(style)
    figure.legend(
        handles=handles + extra,
        labels=labels + [str(kind.get_label()) for kind in extra],
        loc="outside lower center",
        ncols=int(look.text * 72 / (17.5 * look.small)) + 1,
    )


def method_intervals(
    localization: pd.DataFrame, *, style: str = "icml", axes: Sequence[Axes] | np.ndarray | None = None
) -> Figure:
    """One row a method, one column a measure: best single layer (filled) and all layers together (hollow).

    Args:
        localization: the table of `localize`.
        style: "icml", "neurips" or "wide".
        axes: one axes a measure in the table, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    sweep = sweep_rows(localization)
    methods = contenders(sweep)
    shown = drawable_columns(sweep)
    width = style_named(style).text
    with canvas(style, axes, (1, len(shown)), (width, 0.95 + 0.21 * len(methods)), sharey=True) as (
        figure,
        grid,
    ):
        for ax, measure in zip(grid.flat, shown, strict=True):
            _forest(ax, sweep, methods, measure)
        names = [f"{m.mark.label}, layer {m.layer}" if m.layer is not None else m.mark.label for m in methods]
        grid[0, 0].set_yticks(range(len(methods)), names)
        grid[0, 0].set_ylim(len(methods) - 0.4, -0.6)
        if axes is None:
            none = Line2D([], [], **BASELINE_LINE, label=BASELINE.label)
            figure.legend(handles=[*KINDS[:2], none], loc="outside upper right", ncols=3)
    return figure


def _forest(ax: Axes, sweep: pd.DataFrame, methods: list[Contender], measure: Measure) -> None:
    for row, method in enumerate(methods):
        for found, offset, hollow in ((method.best, -0.16, False), (method.together, 0.16, True)):
            value, low, high = interval(found, measure)
            if np.isfinite(value):
                ax.errorbar(
                    [value], [row + offset], xerr=_arms(value, low, high), linestyle="none", elinewidth=0.9,
                    marker=method.mark.mpl_marker, color=method.mark.color, markersize=3.8,
                    markeredgecolor=method.mark.color,
                    markerfacecolor="white" if hollow else method.mark.color,
                    gid=f"{'all' if hollow else 'best'}:{measure.key}/{method.mark.label}",
                )  # fmt: skip
    value = interval(baseline(sweep), measure)[0]
    if np.isfinite(value):
        ax.axvline(value, **BASELINE_LINE, zorder=1, gid=f"baseline:{measure.key}")
    _forest_axis(ax, sweep, measure)


def _forest_axis(ax: Axes, sweep: pd.DataFrame, measure: Measure) -> None:
    ax.margins(x=0.12)
    scale_axis(ax, "x", measure, extent(sweep, measure))
    ax.set_xlabel(measure.label.replace("answered correctly", "answered\ncorrectly"))
    ax.set_title(measure.prompts)
    ax.tick_params(axis="y", length=0)


def caption(localization: pd.DataFrame, **_: Any) -> str:
    """What `method_comparison` shows."""
    sweep = sweep_rows(localization)
    return (
        "Attack success rate (share of harmful prompts not refused) against the cost on harmless prompts: "
        "KL(original || edited) of the next-token distribution (asinh scale), and perplexity of the "
        "reference answers. Dotted: Pareto front of all points shown, each chosen on the prompts shown. "
        "Last panel: share of harmful prompts answered correctly; on the diagonal whatever is not refused is "
        "answered correctly, in the grey below it answers are wrong. " + _how_chosen(sweep)
    )


def caption_intervals(localization: pd.DataFrame, **_: Any) -> str:
    """What `method_intervals` shows."""
    sweep = sweep_rows(localization)
    return "Every method at its best single layer and at all layers together. " + _how_chosen(sweep)


def _how_chosen(sweep: pd.DataFrame) -> str:
    rows = pd.concat([measured(sweep, m.name, m.prompts) for m in (REFUSES, SUCCESS, RIGHT, KL)])
    return (
        "Filled: the single layer at which most harmful prompts are answered correctly (ties: smaller KL), "
        "chosen on the prompts shown; hollow: all layers together; faint: the other single layers. Dashed "
        f"or grey: no intervention. Bars: 95 % intervals. n = {counts(rows)} prompts; {settings(sweep)}."
    )
