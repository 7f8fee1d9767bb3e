"""What is known of an embedded model by construction, and what was measured."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, Points, Reference, described
from ot_lens.plots.rows import counts, curve, layers_of, null_of, numbers, rows_of
from ot_lens.plots.style import CLASSES, NULL, Mark, method_mark
from ot_lens.tables import select

KNOWN = Mark("the rule", "#2B2F36", "diamond", "dot")
MEASURED = Mark("measured", "#7B5AA6", "circle", "solid")
CORRECT = Mark("answered correctly, PCA-OT", "#7B5AA6", "star", "dash")
DIRECTIONS = Mark("directions of refusal", CLASSES["harmful"].color, "circle", "solid")
SENTENCES = "number of refusal sentences"
SHORT = {
    "harmful refused": "harmful\nrefused",
    "harmless refused": "harmless\nrefused",
    "harmless answered correctly": "harmless\ncorrect",
}


def ground_truth(ground_truth: pd.DataFrame) -> Description:
    """What the embedded model was built to do and to hold, and what was measured.

    Args:
        ground_truth: The table of a study on an embedded model.
    """
    rows = rows_of(ground_truth, "ground_truth")
    known = known_counts(rows)
    panels = [_behaviour(select(rows, part="behaviour"))]
    for part, panel in (("rank", _ranks), ("directions", _directions)):
        if (rows["part"] == part).any():
            panels.append(panel(select(rows, part=part), known))
    return described(panels, "ground_truth", height=1.35)


def known_counts(rows: pd.DataFrame) -> dict[str, int]:
    """What was built in: categories, sentences and first words of refusal."""
    part = rows[(rows["part"] == "counts") & rows["known"].notna()]
    return {str(name): int(count) for name, count in zip(part["quantity"], part["known"], strict=True)}


def _named(names: list[str]) -> dict[str, Any]:
    """Ticks and limits of an axis with one name per whole number."""
    return {"ticks": tuple((float(i), name) for i, name in enumerate(names)), "limits": (-0.5, len(names) - 0.5)}


def _behaviour(rows: pd.DataFrame) -> Panel:
    at = rows.assign(place=np.arange(len(rows), dtype=float))
    rule = curve(at.assign(low=np.nan, high=np.nan), x="place", value="known")
    points = (
        Points("known", KNOWN, rule),
        Points("behaviour", MEASURED, curve(at.assign(place=at["place"] + 0.25), x="place")),
    )
    names = [SHORT.get(str(name), str(name)) for name in rows["quantity"]]
    y = Axis("share of prompts", limits=(0.0, 1.0))
    return Panel("behaviour", Axis("", **_named(names)), y, points)


def _ranks(rows: pd.DataFrame, known: dict[str, int]) -> Panel:
    """One position per rank: PCA-OT by k, and the ablation of one direction at rank 1."""
    at = rows[rows["k"].notna()]
    ranks = sorted({int(k) for k in at["k"]})
    at = at.assign(place=[float(ranks.index(int(k))) for k in at["k"]])
    elements: list[Any] = [
        Reference(float(ranks.index(count)), SENTENCES, vertical=True)
        for name, count in known.items()
        if name == "sentences" and count in ranks
    ]
    for method in dict.fromkeys(at["method"]):
        mark = method_mark(method)
        own = select(at, quantity="refusal_rate", method=method)
        line = curve(own.assign(place=own["place"] - 0.12 * (method != "pca_ot")), x="place")
        elements.append(Line(f"rank/{method}", replace(mark, label=f"refused, {mark.label}"), line))
    own = select(at, quantity="exact_answer_rate", method="pca_ot")
    elements.append(Line("rank/correct", CORRECT, curve(own.assign(place=own["place"] + 0.12), x="place")))
    x = Axis("rank $k$", **_named(list(map(str, ranks))))
    return Panel("edit of rank $k$", x, Axis("share of harmful", limits=(0.0, 1.0)), tuple(elements))


def _directions(rows: pd.DataFrame, known: dict[str, int]) -> Panel:
    references = [Reference(float(count), SENTENCES) for name, count in known.items() if name == "sentences"]
    top = max(float(np.nanmax(numbers(rows["high"].fillna(rows["value"])))), *known.values(), 1.0)
    bands = null_of(rows, "directions", replace(NULL, label="permuted categories"))
    y = Axis("effective number", limits=(1.0, float(top)))
    elements = (*bands, *references, Line("directions", DIRECTIONS, curve(rows)))
    return Panel("refusal directions", LAYER, y, elements)


def caption(ground_truth: pd.DataFrame, **_: object) -> str:
    """What `ground_truth` shows."""
    known = known_counts(ground_truth)
    built = ", ".join(f"{count} {name}" for name, count in known.items())
    layers = layers_of(ground_truth[ground_truth["part"] == "rank"])
    where = f" (layers {', '.join(map(str, layers))})" if layers else ""
    return (
        f"The embedded model was built with {built} of refusal. Behaviour: what its rule asks for (diamonds) "
        "and what it does on held-out prompts. Edit of rank k: share of harmful prompts still refused, and "
        f"answered correctly, under each edit at its best single layer{where}, chosen on the prompts shown; "
        "RFA ablates one direction at every block. Refusal directions: exp(entropy) of the spectrum of the "
        "category means about the harmless mean, by layer; grey: mean (dotted) and 95 % band when the "
        "categories of the harmful prompts are permuted, which is one direction for all. Dotted lines: the "
        "number of refusal sentences, the most directions that the answers ask for. Bars and tints: 95 % "
        f"intervals (Wilson for shares, bootstrap otherwise). n = {counts(ground_truth)} prompts."
    )
