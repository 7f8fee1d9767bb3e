"""Refusal restored after an edit has removed it: harmful prompts refused again, harmless ones refused wrongly."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots import measures
from ot_lens.plots.description import Axis, Curve, Description, Key, Panel, Points, described
from ot_lens.plots.figures.method_comparison import GREY, OTHERS
from ot_lens.plots.measures import REFUSES, REFUSES_HARMLESS, Values
from ot_lens.plots.rows import counts, layers_of, marked_methods, rows_of, settings
from ot_lens.plots.style import BASELINE, Mark, method_mark
from ot_lens.tables import ATTACK, ATTACK_AND_DEFENCE, DEFENCE, UNEDITED, measured, methods_of, select

TITLES = {ATTACK_AND_DEFENCE: "under the attack", DEFENCE: "without an attack"}
# mark of each kind of edits without a defence, and what it is
REFERENCES = {
    UNEDITED: (BASELINE, "the unedited model"),
    ATTACK: (replace(BASELINE, label="attack alone", marker="diamond"), "no defence"),
}
KEYS = (Key("best layer", GREY, "circle"), replace(OTHERS, label="other layers"))
X, Y = REFUSES_HARMLESS, REFUSES
Rates = Mapping[int, Values]  # by layer


def restored_refusals(defence: pd.DataFrame) -> Description:
    """Refusal rates on harmless (x) and harmful prompts (y) of each defence, under the attack and without it.

    Args:
        defence: The table of `restore_refusal`.
    """
    rows = rows_of(defence, "defence")
    defences, best = _defences(rows), best_layers(rows)
    if not best:
        raise NothingToDrawError("The defence table holds no defence with refusal rates on both classes.")
    x, y = (measures.axis_of(m, rows, f"{m.prompts}: {m.label}", 0.25) for m in (X, Y))
    references = _references(rows)
    panels = [
        Panel(TITLES[edits], x, y, (*references, *_points(by_mark, best)))
        for edits, by_mark in defences.items()
        if by_mark
    ]
    return described(panels, "defence", columns=2, keys=KEYS, height=2.4, share="xy")


def best_layers(rows: pd.DataFrame) -> dict[str, int]:
    """The layer of each method, by label, at which the two refusal rates differ most; ties: the earlier one.

    That is under the attack, where it was measured, else without one.
    """
    best: dict[str, int] = {}
    for by_mark in _defences(rows).values():
        for mark, rates in by_mark.items():
            gains = {layer: values[Y.key][0] - values[X.key][0] for layer, values in rates.items()}
            best.setdefault(mark.label, max(gains, key=lambda layer: gains[layer]))
    return best


def _defences(rows: pd.DataFrame) -> dict[str, dict[Mark, Rates]]:
    """Of each kind of edits, the methods and layers at which both rates were measured."""
    found: dict[str, dict[Mark, Rates]] = {}
    for edits in TITLES:
        every = {mark: _rates(own) for mark, own in marked_methods(select(rows, edits=edits))}
        found[edits] = {mark: rates for mark, rates in every.items() if rates}
    return found


def _rates(rows: pd.DataFrame) -> Rates:
    by_layer = {layer: measures.values(select(rows, layer=layer)) for layer in layers_of(rows)}
    return {layer: values for layer, values in by_layer.items() if _complete(values)}


def _complete(values: Values) -> bool:
    return bool(np.isfinite([measures.interval(values, measure)[0] for measure in (X, Y)]).all())


def _points(by_mark: Mapping[Mark, Rates], best: Mapping[str, int]) -> list[Points]:
    """Each method at its best layer, and at the others, small and faint."""
    points: list[Points] = []
    for mark, rates in by_mark.items():
        others = [layer for layer in rates if layer != best[mark.label]]
        notes = tuple(f"layer {layer}" for layer in others)
        curve = _curve([rates[layer] for layer in others], intervals=False)
        look: dict[str, Any] = {"faint": True, "size": OTHERS.size, "notes": notes, "legend": False}
        points += [Points(f"others:{mark.label}", mark, curve, **look)] if others else []
    for mark, rates in by_mark.items():
        layer = best[mark.label]
        note = f"layer {layer}, its best"
        at = _curve([rates[layer]]) if layer in rates else None
        points += [Points(f"best:{mark.label}", mark, at, size=4.6, notes=(note,))] if at else []
    return points


def _references(rows: pd.DataFrame) -> list[Points]:
    """The unedited model and the attack alone, large enough to be seen behind a defence that does the same."""
    return [
        Points(f"reference:{mark.label}", mark, _curve([values]), size=7.5, notes=(note,))
        for edits, (mark, note) in REFERENCES.items()
        if _complete(values := measures.values(select(rows, edits=edits)))
    ]


def _curve(edits: list[Values], *, intervals: bool = True) -> Curve:
    (x, x_low, x_high), (y, low, high) = (
        np.array([measures.interval(values, measure) for values in edits]).reshape(-1, 3).T for measure in (X, Y)
    )
    if intervals:
        return Curve(x, y, low, high, None, x_low, x_high)
    return Curve(x, y, np.full(len(x), np.nan), np.full(len(x), np.nan))


def caption(defence: pd.DataFrame, **_: object) -> str:
    """What `restored_refusals` shows."""
    rates = pd.concat([measured(defence, measure.name, measure.prompts) for measure in (X, Y)])
    layers = "; ".join(f"{label}: layer {layer}" for label, layer in best_layers(defence).items())
    return (
        "Share of harmful prompts refused against the share of harmless prompts refused (over-refusal), when "
        f"{_attack(defence)} has removed refusal and a defence at a layer above restores it (left), and under "
        "the defence alone (right). The ideal is the top left corner: every harmful prompt refused, no harmless "
        "one. Large: the layer at which the two shares differ most under the attack, chosen on the prompts shown "
        f"({layers}); faint: the other layers. Grey: no intervention, and the attack alone, in both "
        f"panels. Bars: 95 % intervals (Wilson). n = {counts(rates)} prompts; {settings(defence)}."
    )


def _attack(defence: pd.DataFrame) -> str:
    """The method and layer of the attack: "Mean shift at layer 3"."""
    rows = select(defence, edits=ATTACK)
    methods = [method_mark(*method).label for method, _ in methods_of(rows)]
    layers = layers_of(rows)
    return f"{methods[0]} at layer {layers[0]}" if methods and layers else "an edit"

