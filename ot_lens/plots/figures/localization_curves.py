"""Where refusal can be changed: what an edit at one layer does to the behaviour, layer by layer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.description import Axis, Description, Line, Panel, Path, Points, Reference, described
from ot_lens.plots.measures import (
    COHERENT,
    COHERENT_MEANS,
    RIGHT,
    Measure,
    axis_of,
    measure_named,
    present,
    sweep_rows,
)
from ot_lens.plots.rows import counts, curve, layers_of, marked_methods, numbers, settings
from ot_lens.plots.style import BASELINE, FAMILIES, Mark
from ot_lens.tables import ALL, baseline_of, edits_of, measured, select, single_layers

SHOWN = ("refusal_rate/harmful", "exact_answer_rate/harmful", "refusal_score/harmful", "kl/harmless")
CONTEXT, EDGE = "#D0D3D8", Mark("", "#BBBBBB", "circle")
Members = list[tuple[Mark, pd.DataFrame]]


def localization_curves(
    localization: pd.DataFrame, *, measures: Sequence[str] = SHOWN, by_family: bool = True
) -> Description:
    """Measures (rows) by layer for each family of methods (columns), the other families in grey behind.

    The same edit at all layers together is at the right edge.

    Args:
        localization: The table of `localize`.
        measures: Keys of `MEASURES`; those that the table lacks are left out.
        by_family: Whether families have panels of their own; if not, one panel per measure.
    """
    sweep = sweep_rows(localization)
    shown, methods = _available(sweep, measures), marked_methods(sweep)
    if not by_family:
        titles = [f"{m.prompts}: {m.label.partition(' (')[0]}" for m in shown]
        panels = [_panel(sweep, m, methods, title, m.label) for m, title in zip(shown, titles, strict=True)]
        return described(panels, "localization", columns=2)
    known = dict.fromkeys(mark.family for mark, _ in methods)
    families = [name for name in dict.fromkeys([*FAMILIES, *known]) if name in known]
    panels = [
        _panel(sweep, measure, own, name, f"{measure.prompts}:\n{measure.label}")
        for measure in shown
        for name in families
        if (own := [(mark, rows) for mark, rows in methods if mark.family == name])
    ]
    options: dict[str, Any] = {"columns": len(families), "height": 0.8, "share": "rows", "legend": "columns"}
    return described(panels, "localization", **options)


def localization_curve(localization: pd.DataFrame, measure: str = "refusal_rate/harmful") -> Description:
    """One measure by layer, one line per method, in one panel.

    Args:
        localization: The table of `localize`; pass only the rows of the methods to show.
        measure: One of `MEASURES`.
    """
    sweep = sweep_rows(localization)
    [known] = _available(sweep, [measure])
    panel = _panel(sweep, known, marked_methods(sweep), "", f"{known.prompts}: {known.label}")
    return described([panel], "localization", columns=1, height=2.2)


def _available(sweep: pd.DataFrame, wanted: Sequence[str] = SHOWN) -> list[Measure]:
    """The wanted measures that the table holds for some method at single layers."""
    acting = single_layers(edits_of(sweep))
    if not present(acting, RIGHT):  # without reference answers, whether the answers are answers
        wanted = [COHERENT.key if key == RIGHT.key else key for key in wanted]
    available = [measure for measure in map(measure_named, wanted) if present(acting, measure)]
    if not available:
        raise NothingToDrawError(f"The localization table has no single-layer value of {', '.join(wanted)}.")
    return available


def _panel(sweep: pd.DataFrame, measure: Measure, members: Members, title: str, y: str) -> Panel:
    rows = measured(sweep, measure.name, measure.prompts)
    acting = edits_of(rows)
    layers = layers_of(single_layers(edits_of(sweep)))
    labels = {mark.label for mark, _ in members}
    others = [own for mark, own in marked_methods(single_layers(acting)) if mark.label not in labels]
    elements: list[Any] = [Path("context", c.x, c.value, CONTEXT) for c in map(curve, others)]
    ends = zip(*(numbers(baseline_of(rows)[name]) for name in ("value", "low", "high")), strict=True)
    mark = replace(BASELINE, label=f"baseline:{measure.key}")
    elements += [Reference(v, BASELINE.label, mark=mark, low=low, high=high) for v, low, high in ends]
    for mark, own in members:
        drawn = curve(single_layers(measured(own, measure.name, measure.prompts)))
        elements.append(Line(f"{measure.key}/{mark.label}", mark, drawn))
    elements += _side(measure, members, layers)
    together = bool(len(select(acting, set=ALL)))
    if together:
        edge = layers[-1] + 0.38 * (_side_position(layers) - layers[-1])
        elements.insert(0, Reference(edge, "", vertical=True, mark=EDGE))
    return Panel(title, _layer_axis(layers, side=together), axis_of(measure, rows, y), tuple(elements))


def _side_position(layers: list[int]) -> float:
    """The position of the values for all layers together, right of the last layer."""
    return layers[-1] + max(1.2, 0.11 * (layers[-1] - layers[0] + 1))


def _side(measure: Measure, members: Members, layers: list[int]) -> list[Points]:
    """Values for all layers together, methods next to each other."""
    centre = _side_position(layers)
    step = min(0.28 / 1.2, 0.9 / max(len(members), 4)) * (centre - layers[-1])
    points = []
    for index, (mark, own) in enumerate(members):
        rows = select(measured(own, measure.name, measure.prompts), set=ALL)
        at = rows.assign(place=centre + step * (index - (len(members) - 1) / 2))
        name, notes = f"all:{measure.key}/{mark.label}", ("all layers",) * len(at)
        points.append(Points(name, mark, curve(at, x="place"), notes=notes, legend=False))
    return points


def _layer_axis(layers: list[int], *, side: bool) -> Axis:
    """Layers, and "all" at the right edge."""
    margin = max(0.3, 0.02 * (layers[-1] - layers[0]))
    if not side:
        return Axis("layer", whole=True, limits=(layers[0] - margin, layers[-1] + margin))
    at, span = _side_position(layers), layers[-1] - layers[0]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if span / step < 7.5)
    ticks = [(float(layer), str(layer)) for layer in range(layers[0], layers[-1] + 1) if layer % step == 0]
    limits = (layers[0] - margin, at + (at - layers[-1]) * 0.6)
    return Axis("layer", limits=limits, ticks=(*ticks, (at, "all")), whole=True)


def caption(localization: pd.DataFrame, *, screen: bool = False, **_: object) -> str:
    """What `localization_curves` shows, on paper or on a screen."""
    sweep = sweep_rows(localization)
    shown = _available(sweep)
    rows = pd.concat([measured(sweep, m.name, m.prompts) for m in shown])
    coherent = f"coherently ({COHERENT_MEANS}; refusal gone and the model intact)"
    answered = coherent if COHERENT in shown else "correctly (refusal gone and the model intact)"
    context = "" if screen else " The other families are in grey behind."
    return (
        "What an edit at one layer does, by layer and method; at the right edge ('all') the same edit at "
        "all layers together. Shown: the share of harmful prompts refused (by phrase, from generated "
        f"answers); the share of harmful prompts answered {answered}; the "
        "refusal score of harmful prompts at the last prompt token; and, as the cost, KL(original || "
        f"edited) of the next-token distribution on harmless prompts (asinh scale).{context} Bands and "
        "bars: 95 % intervals (Wilson for shares, bootstrap over prompts otherwise). Dashed grey: no "
        "intervention. For RFA the layer is the one the direction is taken from; it is ablated at every "
        f"block. n = {counts(rows)} prompts; {settings(sweep)}."
    )
