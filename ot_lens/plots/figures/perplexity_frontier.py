"""Success against cost along the strengths of the chosen edits."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots import measures
from ot_lens.plots.description import Curve, Description, Key, Panel, Path, Points, described
from ot_lens.plots.measures import COHERENT, COHERENT_MEANS, KL, PERPLEXITY, SUCCESS, Measure, Values
from ot_lens.plots.rows import checked, counts
from ot_lens.plots.style import BASELINE, Mark, method_mark
from ot_lens.tables import UNEDITED, measured, select

GREY = "#555555"
SHAPES = {"one": (4.2, False), "two": (4.2, True), "all": (2.4, False)}
MEANINGS = {COHERENT: f"answered coherently ({COHERENT_MEANS})", SUCCESS: "not refused"}
KEYS = (
    Key("one layer", GREY, "circle", size=SHAPES["one"][0]),
    Key("two layers", GREY, "circle", hollow=True, size=SHAPES["two"][0]),
    Key("all layers", GREY, "circle", size=SHAPES["all"][0]),
)


def perplexity_frontier(localization: pd.DataFrame, variants: pd.DataFrame) -> Description:
    """Success on harmful prompts (y) against cost on harmless ones (x), from strength 0 to 1, edit by edit.

    Args:
        localization: The table of `localize`.
        variants: Weaker forms of its edits, with the columns of, axis and level.
    """
    cost, found = _cost(localization), list(_curves(localization, variants))
    if not found:
        raise NothingToDrawError("The variants table has no edit at several strengths.")
    panels = []
    for measure in _successes(localization):
        x, y = (measures.axis_of(m, localization, f"{m.prompts}: {m.label}", 0.25) for m in (cost, measure))
        elements = [element for edit in found for element in _elements(*edit, cost, measure)]
        panels.append(Panel("", x, y, tuple(elements)))
    return described(panels, "variants", columns=2, height=2.4, keys=KEYS, letters=False)


def _successes(localization: pd.DataFrame) -> list[Measure]:
    return [measure for measure in MEANINGS if measures.present(localization, measure)]


def _cost(localization: pd.DataFrame) -> Measure:
    sweep = checked(localization, "localization")
    return PERPLEXITY if measures.present(sweep, PERPLEXITY) else KL


def _curves(
    localization: pd.DataFrame, variants: pd.DataFrame
) -> Iterator[tuple[str, Mark, str, list[Values]]]:
    """Key, mark and size of each chosen edit, and its values from strength 0 to 1."""
    weaker = select(checked(variants, "variants"), axis="strength")
    unedited = {KL.key: (0.0, 0.0, 0.0)} | dict(measures.values(select(localization, method=UNEDITED)))
    for key in dict.fromkeys(weaker["of"]):
        whole = select(localization, key=key)
        if whole.empty:
            continue
        own = select(weaker, of=key)
        levels = sorted(dict.fromkeys(own["level"]), key=float)
        first = whole.iloc[0]
        layers = str(first["layers"])
        size = "all" if first["set"] == "all" else "two" if "," in layers else "one"
        values = [unedited, *(measures.values(select(own, level=level)) for level in levels)]
        yield str(key), method_mark(str(first["method"]), first["k"]), size, [*values, measures.values(whole)]


def _elements(
    key: str, mark: Mark, size: str, edits: list[Values], cost: Measure, measure: Measure
) -> list[Path | Points]:
    x, x_low, x_high = np.array([measures.interval(values, cost) for values in edits]).T
    y, low, high = np.array([measures.interval(values, measure) for values in edits]).T
    if not (np.isfinite(x) & np.isfinite(y)).any():
        return []
    diameter, hollow = SHAPES[size]
    last = slice(len(x) - 1, len(x))
    end = Curve(x[last], y[last], low[last], high[last], None, x_low[last], x_high[last])
    missing = np.full(len(x) - 2, np.nan)
    way = Curve(x[1:-1], y[1:-1], missing, missing)
    start = Curve(x[:1], y[:1], low[:1], high[:1])
    points = [Points(f"{key}:end", mark, end, hollow, size=diameter, notes=("strength 1",), legend=size == "one")]
    if len(x) > 2:
        points.append(Points(f"{key}:way", mark, way, hollow, faint=True, size=2.0, legend=False))
    points.append(Points(f"{key}:start", BASELINE, start, size=3.2, notes=("unedited",), legend=False))
    return [Path(f"{key}:path", x, y, mark.color), *points]


def caption(localization: pd.DataFrame, variants: pd.DataFrame, **_: object) -> str:
    """What `perplexity_frontier` shows."""
    rows = pd.concat([measured(localization, m.name, m.prompts) for m in (COHERENT, SUCCESS)])
    levels = ", ".join(sorted(dict.fromkeys(select(variants, axis="strength")["level"]), key=float))
    cost = "perplexity of the known answers to harmless prompts"
    if _cost(localization) is KL:
        cost = "KL(original || edited) of the next token on harmless prompts"
    return (
        f"Share of harmful prompts {' and '.join(MEANINGS[m] for m in _successes(localization))} against the "
        f"{cost}, for each edit that was chosen on validation prompts, from the unedited model (grey) over "
        f"the strengths {levels} (faint) to 1. Bars: 95 % intervals. n = {counts(rows)} prompts."
    )
