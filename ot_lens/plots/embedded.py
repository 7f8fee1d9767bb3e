"""What is known of an embedded model by construction, beside what the tools measured."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.curve_panels import curve_figure
from ot_lens.plots.panels import CurvePanel, Reference, Series, null_of, without_empty
from ot_lens.plots.rows import checked, counts, curve, layers_of, numbers, some
from ot_lens.plots.style import CLASSES, Mark, method_mark
from ot_lens.tables import select

COLUMNS = ("part", "quantity", "method", "k", "layer", "known", "value", "low", "high")
KNOWN = Mark("the rule", "#2B2F36", "diamond", "dot")
MEASURED = Mark("measured", "#7B5AA6", "circle", "solid")
RIGHT = Mark("answered correctly, PCA-OT", "#7B5AA6", "star", "dash")
SHORT = {
    "harmful refused": "harmful\nrefused",
    "harmless refused": "harmless\nrefused",
    "harmless answered correctly": "harmless\ncorrect",
}


def truth_panels(ground_truth: pd.DataFrame) -> list[CurvePanel]:
    """Behaviour, success by rank, and number of refusal directions by layer, each beside what is known.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = some(checked(ground_truth, "ground_truth", COLUMNS), "measured value")
    known = known_counts(rows)
    panels = [_behaviour(rows[rows["part"] == "behaviour"])]
    if (rows["part"] == "rank").any():
        panels.append(_ranks(rows[rows["part"] == "rank"], known))
    if (rows["part"] == "directions").any():
        panels.append(_directions(rows[rows["part"] == "directions"], known))
    kept = without_empty([panel for panel in panels if panel.series])
    if not kept:
        raise NothingToDrawError("no finite value in the ground_truth table")
    return kept


def known_counts(rows: pd.DataFrame) -> dict[str, int]:
    """What was built in: categories, sentences and first words of refusal."""
    part = rows[(rows["part"] == "counts") & rows["known"].notna()]
    return {str(name): int(count) for name, count in zip(part["quantity"], part["known"], strict=True)}


def _behaviour(rows: pd.DataFrame) -> CurvePanel:
    at = rows.assign(place=np.arange(len(rows), dtype=float))
    rule = curve(at.assign(low=np.nan, high=np.nan), x="place", value="known")
    series = (
        Series("known", KNOWN, rule),
        Series("behaviour", MEASURED, curve(at.assign(place=at["place"] + 0.25), x="place")),
    )
    ticks = tuple((float(i), SHORT.get(str(name), str(name))) for i, name in enumerate(rows["quantity"]))
    title, y = "behaviour", "share of prompts"
    return CurvePanel(title, y, series, x="", limits=(0.0, 1.0), ticks=ticks, joined=False)


def _ranks(rows: pd.DataFrame, known: dict[str, int]) -> CurvePanel:
    """One position a rank: PCA-OT by k, and the ablation of one direction at rank 1."""
    ranks = sorted({int(k) for k in rows["k"].dropna()})
    place = {rank: float(i) for i, rank in enumerate(ranks)}
    at = rows[rows["k"].notna()]
    at = at.assign(place=[place[int(k)] for k in at["k"]])
    refused, right = (at[at["quantity"] == name] for name in ("refusal_rate", "exact_answer_rate"))
    series = []
    for method in dict.fromkeys(at["method"]):
        mark = method_mark(method)
        own = select(refused, method=method)
        one = method != "pca_ot"
        mark = replace(mark, label=f"refused, {mark.label}")
        line = curve(own.assign(place=own["place"] - 0.12 * one), x="place")
        series.append(Series(f"rank/{method}", mark, line))
    own = select(right, method="pca_ot")
    series.append(Series("rank/right", RIGHT, curve(own.assign(place=own["place"] + 0.12), x="place")))
    references = tuple(
        Reference(place[count], "number of refusal sentences", vertical=True)
        for name, count in known.items()
        if name == "sentences" and count in place
    )
    ticks = tuple((at, str(rank)) for rank, at in place.items())
    y = "share of harmful"
    return CurvePanel(
        "edit of rank $k$", y, tuple(series), (), references, x="rank $k$", limits=(0.0, 1.0), ticks=ticks
    )


def _directions(rows: pd.DataFrame, known: dict[str, int]) -> CurvePanel:
    mark = Mark("directions of refusal", CLASSES["harmful"].color, "circle", "solid")
    references = tuple(
        Reference(float(count), "number of refusal sentences")
        for name, count in known.items()
        if name == "sentences"
    )
    top = max(float(np.nanmax(numbers(rows["high"].fillna(rows["value"])))), *known.values(), 1.0)
    bands = null_of(rows, "directions", ONE)
    series = (Series("directions", mark, curve(rows)),)
    limits = (1.0, float(top))
    return CurvePanel("refusal directions", "effective number", series, bands, references, limits=limits)


ONE = Mark("permuted categories", "#8A8F98", "circle", "dot")


def ground_truth(
    ground_truth: pd.DataFrame, *, style: str = "icml", axes: Sequence[Axes] | np.ndarray | None = None
) -> Figure:
    """What the embedded model was built to do and to hold, beside what was measured.

    Args:
        ground_truth: the table of a study on an embedded model.
        style: "icml", "neurips" or "wide".
        axes: one axes for each of the three parts in the table, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    return curve_figure(truth_panels(ground_truth), style=style, axes=axes, columns=3, height=1.35)


def caption(ground_truth: pd.DataFrame, **_: Any) -> str:
    """What `ground_truth` shows."""
    truth_panels(ground_truth)
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
