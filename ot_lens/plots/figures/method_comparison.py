"""What each method does to harmful prompts, and what it costs on harmless ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.errors import NothingToDrawError
from ot_lens.plots import measures
from ot_lens.plots.description import Area, Curve, Description, Key, Panel, Path, Points, described
from ot_lens.plots.measures import (
    COHERENT,
    COHERENT_MEANS,
    KL,
    PERPLEXITY,
    REFUSES,
    RIGHT,
    SUCCESS,
    Contender,
    Measure,
    Values,
)
from ot_lens.plots.rows import counts, settings
from ot_lens.plots.style import BASELINE, Mark
from ot_lens.tables import measured

TITLES = {KL.key: "price on harmless prompts", PERPLEXITY.key: "price in perplexity"}
FRONT, GREY = "#555B65", "#555555"
KINDS = (Key("best single layer", GREY, "circle"), Key("all layers together", GREY, "circle", hollow=True))
OTHERS = Key("other single layers", GREY, "circle", size=1.8)
Pairs = Float[np.ndarray, "points 2"]


def method_comparison(localization: pd.DataFrame) -> Description:
    """Attack success against each cost, and correct answers against success, with intervals both ways.

    Args:
        localization: The table of `localize`.
    """
    sweep = measures.sweep_rows(localization)
    methods, pairs = measures.contenders(sweep), _drawable_pairs(sweep)
    panels = [_panel(sweep, methods, x, y) for x, y in pairs]
    return described(panels, "localization", columns=len(pairs), keys=(*KINDS, OTHERS), height=2.15)


def _drawable_pairs(sweep: pd.DataFrame) -> list[tuple[Measure, Measure]]:
    """The pairs (x, y) of measures that were both measured: with success rates, else with refusal rates."""
    known = {m.key for m in (KL, PERPLEXITY, SUCCESS, REFUSES, RIGHT, COHERENT) if measures.present(sweep, m)}
    answered = COHERENT if COHERENT.key in known and RIGHT.key not in known else RIGHT
    reached = COHERENT if answered is COHERENT else SUCCESS
    for pairs in (
        ((KL, reached), (PERPLEXITY, reached), (SUCCESS, answered)),
        ((KL, REFUSES), (REFUSES, RIGHT)),
    ):
        drawable = [(x, y) for x, y in pairs if {x.key, y.key} <= known]
        if drawable:
            return drawable
    raise NothingToDrawError("The localization table lacks refusal rates with a cost or with right answers.")


def _panel(sweep: pd.DataFrame, methods: list[Contender], x: Measure, y: Measure) -> Panel:
    x_axis, y_axis = (measures.axis_of(measure, sweep, f"{measure.prompts}: {measure.label}", 0.25) for measure in (x, y))
    elements: list[Any] = _background(methods, x, y)
    elements += [_others(method, x, y) for method in methods if set(method.layers) - {method.layer}]
    for method in methods:
        elements += _edit(method.together, method.mark, x, y, "all layers")
        elements += _edit(method.best, method.mark, x, y, f"layer {method.layer}, its best")
    elements += _edit(measures.baseline(sweep), BASELINE, x, y, "the unedited model")
    answered = "is the answer an answer?" if y is COHERENT else "is the answer correct?"
    return Panel(TITLES.get(x.key, answered), x_axis, y_axis, tuple(elements))


def _background(methods: list[Contender], x: Measure, y: Measure) -> list[Any]:
    """The diagonal below which answers are wrong, or the points that no other beats."""
    if x in (SUCCESS, REFUSES):
        ends = np.array([0.0, 1.0] if x is SUCCESS else [1.0, 0.0])
        across = np.array([0.0, 1.0])
        wrong = Area("wrong", across, 0 * across, ends, "#808080", opacity=0.07)
        return [wrong, Path("diagonal", across, ends, "#BBBBBB")]
    if y in (SUCCESS, COHERENT):
        everything = [values for method in methods for values in (method.together, *method.layers.values())]
        cost, reached = front(_pairs(everything, x, y)).T
        return [Path("front", cost, reached, FRONT, "Pareto front", "dot", steps=True)]
    return []


def _pairs(edits: Sequence[Values], x: Measure, y: Measure) -> Pairs:
    """Values (x, y) of some edits, NaN where one was not measured."""
    return np.array([[measures.interval(one, x)[0], measures.interval(one, y)[0]] for one in edits]).reshape(-1, 2)


def front(points: Pairs) -> Float[np.ndarray, "kept 2"]:
    """The points that no other beats: none costs less (x) and reaches as much (y). Ordered by x."""
    known = points[np.isfinite(points).all(axis=1)]
    ordered = known[np.lexsort((-known[:, 1], known[:, 0]))]
    best = np.maximum.accumulate(np.concatenate([[-np.inf], ordered[:, 1]]))[:-1]
    return ordered[ordered[:, 1] > best]


def _others(method: Contender, x: Measure, y: Measure) -> Points:
    """The single layers that are not the best one, small and faint."""
    others = {layer: values for layer, values in method.layers.items() if layer != method.layer}
    at, missing = _pairs(list(others.values()), x, y), np.full(len(others), np.nan)
    look: dict[str, Any] = {"faint": True, "size": 2.2, "legend": False}
    notes = tuple(f"layer {layer}" for layer in others)
    curve = Curve(at[:, 0], at[:, 1], missing, missing)
    return Points(f"others:{method.mark.label}", method.mark, curve, notes=notes, **look)


def _edit(values: Values, mark: Mark, x: Measure, y: Measure, note: str) -> list[Points]:
    """One edit as a point with its intervals along both measures, if both were measured."""
    (at, start, end), (value, low, high) = (np.reshape(measures.interval(values, m), (3, 1)) for m in (x, y))
    if not np.isfinite([at, value]).all():
        return []
    together = note == "all layers"
    name = f"{'all' if together else 'best'}:{mark.label}"
    curve = Curve(at, value, low, high, None, start, end)
    return [Points(name, mark, curve, together, size=4.6, notes=(note,), legend=not together)]


def caption(localization: pd.DataFrame, **_: object) -> str:
    """What `method_comparison` shows."""
    sweep = measures.sweep_rows(localization)
    last = _drawable_pairs(sweep)[-1][1]
    answered = f"coherently ({COHERENT_MEANS})" if last is COHERENT else "correctly"
    reached = (
        f"Share of harmful prompts answered {answered}"
        if last is COHERENT
        else "Attack success rate (share of harmful prompts not refused)"
    )
    return (
        f"{reached} against the cost on harmless prompts: "
        "KL(original || edited) of the next-token distribution (asinh scale), and perplexity of the "
        "reference answers. Dotted: Pareto front of all points shown, each chosen on the prompts shown. "
        f"Last panel: share of harmful prompts answered {answered}; on the diagonal everything not refused "
        "is, in the grey below it answers are no success. " + how_chosen(sweep)
    )


def how_chosen(sweep: pd.DataFrame) -> str:
    """What the points of every method are, for a caption."""
    rows = pd.concat([measured(sweep, m.name, m.prompts) for m in (REFUSES, SUCCESS, RIGHT, KL)])
    return (
        "Filled: the single layer at which most harmful prompts are answered correctly (or coherently, "
        "without reference answers; ties: smaller KL), "
        "chosen on the prompts shown; hollow: all layers together; faint: the other single layers. Dashed "
        f"or grey: no intervention. Bars: 95 % intervals. n = {counts(rows)} prompts; {settings(sweep)}."
    )
