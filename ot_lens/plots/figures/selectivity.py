"""What a constraint or a gate does to a method: refusal removed against the cost on harmless prompts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.errors import NothingToDrawError
from ot_lens.plots import measures
from ot_lens.plots.description import (
    Axis,
    Curve,
    Description,
    Key,
    Panel,
    Path,
    Points,
    Reference,
    described,
)  # fmt: skip
from ot_lens.plots.figures.method_comparison import GREY, OTHERS, Pairs, front
from ot_lens.plots.measures import COHERENT, KL, REFUSES, RIGHT, SCORE, Measure
from ot_lens.plots.rows import checked, counts, finite, numbers, settings
from ot_lens.plots.style import BASELINE, Mark, method_order, variant_mark
from ot_lens.tables import (
    LISTED,
    SINGLE,
    at_one_setting,
    baseline_of,
    measured,
    methods_of,
    most_effective_layer,
    real_edits,
    select,
    single_layers,
)
from ot_lens.transport import find_method, method_label

MOST_PANELS = 6
KEYS = (
    Key("most effective single layer", GREY, "circle"),
    Key("other single layers and strengths", GREY, "circle", size=OTHERS.size),
    Key("Pareto front", GREY, dash="solid"),
)
# What the most effective layer is chosen by: the first of these that was measured.
CHOSEN_BY = {
    RIGHT: "most harmful prompts are answered correctly",
    COHERENT: "most harmful prompts are answered coherently",
    REFUSES: "fewest harmful prompts are refused",
    SCORE: "the score is lowest",
}
EDIT = ["layer", "strength"]
# rows of each variant of a method, by its modifiers
Variants = Mapping[tuple[str, ...], pd.DataFrame]


def selectivity(localization: pd.DataFrame) -> Description:
    """Refusal score against cost, for a method as it is and with each constraint or gate, one panel per method.

    Args:
        localization: The table of `localize`, with at least one modified method such as mean_shift_null_space.
    """
    groups = variants_by_method(localization)
    rows = pd.concat([own for variants in groups.values() for own in variants.values()])
    plain = measured(baseline_of(localization), SCORE.name, SCORE.prompts)
    x = measures.axis_of(KL, rows, f"{KL.prompts}: {KL.label}")
    y = _score_axis(pd.concat([measured(rows, SCORE.name, SCORE.prompts), plain]))
    panels = [_panel(name, variants, plain, x, y) for name, variants in _shown(groups).items()]
    columns = 2 if len(panels) == 4 else 3
    return described(panels, "localization", columns=columns, keys=KEYS, height=1.9, share="xy")


def variants_by_method(localization: pd.DataFrame) -> dict[str, Variants]:
    """Rows of single layers at every strength, of each method and rank that occurs with a modifier.

    Raises:
        NothingToDrawError: If no method does.
    """
    groups: dict[str, dict[tuple[str, ...], pd.DataFrame]] = {}
    methods = sorted(methods_of(_every_strength(localization)), key=lambda item: method_order(*item[0]))
    for (name, k), rows in methods:
        known = find_method(name)
        base, modifiers = (name, ()) if known is None else (known.base, known.modifiers)
        groups.setdefault(method_label(base, k), {})[modifiers] = rows
    modified: dict[str, Variants] = {name: variants for name, variants in groups.items() if any(variants)}
    if not modified:
        raise NothingToDrawError("The localization table holds no method with a constraint or a gate.")
    return modified


def _every_strength(localization: pd.DataFrame) -> pd.DataFrame:
    """Edits of single layers, at one setting of everything else each."""
    table = checked(localization, "localization")
    single = single_layers(select(real_edits(table), set=(SINGLE, LISTED)))
    strength = single["strength"].fillna(1.0) if "strength" in single else 1.0
    rows = at_one_setting(single.assign(strength=np.nan, level=strength))
    rows = rows.assign(strength=rows.pop("level"))
    return rows.drop_duplicates(["method", "k", *EDIT, "measure", "prompts"])


def _shown(groups: Mapping[str, Variants]) -> dict[str, Variants]:
    return dict(list(groups.items())[:MOST_PANELS])


def _score_axis(score: pd.DataFrame) -> Axis:
    ends = finite(score, *measures.ENDS)
    if not ends:
        raise NothingToDrawError("The localization table holds no refusal score of a method with a constraint.")
    return Axis(f"{SCORE.prompts}: {SCORE.label}", limits=(min(ends), max(ends)))


def _panel(name: str, variants: Variants, plain: pd.DataFrame, x: Axis, y: Axis) -> Panel:
    ends = zip(*(numbers(plain[end]) for end in measures.ENDS), strict=True)
    elements: list[Any] = [Reference(v, BASELINE.label, mark=BASELINE, low=lo, high=hi) for v, lo, hi in ends]
    for modifiers, rows in variants.items():
        mark = variant_mark(modifiers)
        edits = _edits(rows)
        elements += [*_best(rows, mark), *_all(edits, mark)]
    return Panel(name, x, y, tuple(elements))


def _edits(rows: pd.DataFrame) -> pd.DataFrame:
    """Cost and score of every edit of which both were measured, by layer and strength."""
    cost, score = (measured(rows, m.name, m.prompts).set_index(EDIT)["value"] for m in (KL, SCORE))
    return pd.concat({KL.key: cost, SCORE.key: score}, axis=1, join="inner").dropna().sort_index()


def _all(edits: pd.DataFrame, mark: Mark) -> list[Path | Points]:
    """The front of all edits of a variant, and the edits themselves, small and faint."""
    if edits.empty:
        return []
    at, missing = edits.to_numpy(dtype=np.float64), np.full(len(edits), np.nan)
    notes = tuple(f"layer {layer}, strength {strength:g}" for layer, strength in edits.index)
    curve = Curve(at[:, 0], at[:, 1], missing, missing)
    faint = Points(f"others:{mark.label}", mark, curve, faint=True, size=2.2, notes=notes, legend=False)
    cost, score = least_cost(at).T
    return [Path(f"front:{mark.label}", cost, score, mark.color, mark.label, steps=True), faint]


def least_cost(points: Pairs) -> Float[np.ndarray, "kept 2"]:
    """The points (cost, score) that no other beats: none costs less and has as low a score. Ordered by cost."""
    return front(points * [1.0, -1.0]) * [1.0, -1.0]


def _best(rows: pd.DataFrame, mark: Mark) -> list[Points]:
    """The most effective single layer at full strength, with its intervals."""
    strongest = at_one_setting(rows)
    layer = most_effective_layer(strongest)
    values = measures.values(select(strongest, layer=layer))
    (at, start, end), (value, low, high) = (
        np.reshape(measures.interval(values, measure), (3, 1)) for measure in (KL, SCORE)
    )
    if not np.isfinite([at, value]).all():
        return []
    curve, note = Curve(at, value, low, high, None, start, end), f"layer {layer}, its best"
    return [Points(f"best:{mark.label}", mark, curve, size=4.6, notes=(note,))]


def caption(localization: pd.DataFrame, **_: object) -> str:
    """What `selectivity` shows."""
    groups = variants_by_method(localization)
    rows = pd.concat([own for variants in _shown(groups).values() for own in variants.values()])
    more = f" (the first {MOST_PANELS} of {len(groups)})" if len(groups) > MOST_PANELS else ""
    return (
        "Refusal score on harmful prompts (log-odds of beginning a refusal; lower: more refusal removed) against "
        "KL(original || edited) of the next-token distribution on harmless prompts (asinh scale), for each method "
        f"as it is and with each constraint or gate{more}. Faint: edits of single layers, at every strength; "
        "lines: their Pareto fronts, the least KL at which the score is at most that. Large: the single layer "
        f"at which {_chosen_by(rows)}, at full strength, with 95 % intervals; fronts and layers are chosen on the "
        "prompts shown. Dashed, tinted: no intervention, with its 95 % interval. "
        f"{_scopes(_shown(groups))}n = {counts(_of_panels(rows))} prompts; {settings(rows)}."
    )


def _chosen_by(rows: pd.DataFrame) -> str:
    chosen = [text for measure, text in CHOSEN_BY.items() if measures.present(rows, measure)]
    return f"{chosen[0]} (ties: smaller KL)" if chosen else "the effect is largest"


def _of_panels(rows: pd.DataFrame) -> pd.DataFrame:
    shown: tuple[Measure, ...] = (KL, SCORE)
    return pd.concat([measured(rows, measure.name, measure.prompts) for measure in shown])


def _scopes(groups: Mapping[str, Variants]) -> str:
    """A sentence on the panels whose variants edit different tokens."""
    found = []
    for name, variants in groups.items():
        tokens = {
            variant_mark(modifiers).label: ", ".join(rows["tokens"].unique())
            for modifiers, rows in variants.items()
            if "tokens" in rows
        }
        if len(set(tokens.values())) > 1:
            found.append(f"{name}: " + ", ".join(f"{label} on {scope}" for label, scope in tokens.items()))
    return f"Edited tokens differ ({'; '.join(found)}). " if found else ""
