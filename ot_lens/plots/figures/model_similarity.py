"""Similarity of representations before and after an edit, and of a base model and the one tuned from it."""

from dataclasses import replace

import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, Reference, described
from ot_lens.plots.rows import counts, curve, finite, null_of, rows_of
from ot_lens.plots.style import CLASSES, NULL, method_mark
from ot_lens.tables import select

CHANCE = replace(NULL, label="by chance")
TITLES = {"linear_cka": "CKA", "projection_kernel": "projection kernel"}


def model_similarity(model_similarity: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Both similarities by layer, one column of panels per comparison, with their nulls.

    Args:
        model_similarity: The table of a study: rows of `geometry.similarity` of two captures, with the columns
            comparison ("edit" or "base"), method and edited_layer.
    """
    rows = rows_of(model_similarity, "model_similarity", position)
    compared = rows.drop_duplicates(["comparison", "method"])
    panels = [
        _panel(select(rows, comparison=one["comparison"], method=one["method"], quantity=quantity), title, one)
        for quantity, title in TITLES.items()
        for _, one in compared.iterrows()
    ]
    return described(panels, "model_similarity", columns=len(compared), share="y")


def _panel(rows: pd.DataFrame, title: str, one: pd.Series) -> Panel:
    name = "base model" if one["comparison"] == "base" else method_mark(str(one["method"])).label
    by_class = [(label, mark, select(rows, **{"class": label})) for label, mark in CLASSES.items()]
    nulls = [band for label, _, own in by_class for band in null_of(own, f"{title}/{name}/{label}", CHANCE)]
    lines = [Line(f"{title}/{name}/{label}", mark, curve(own)) for label, mark, own in by_class]
    edited = [] if pd.isna(one["edited_layer"]) else [Reference(float(one["edited_layer"]), "edited", vertical=True)]
    limits = (min([0.0, *finite(rows, "value", "null_low")]), 1.0)
    return Panel(name, LAYER, Axis(title, limits=limits), (*nulls, *edited, *lines))


def caption(table: pd.DataFrame, **_: object) -> str:
    """What `model_similarity` shows."""
    edits = select(table, comparison="edit")
    layers = ", ".join(str(layer) for layer in sorted(edits["edited_layer"].dropna().unique()))
    base = select(table, comparison="base")["method"].unique()
    others = [f"under an edit at layer {layers}"] if layers else []
    others += [f"in its base model {base[0]}"] if len(base) else []
    return (
        f"Similarity of the test prompts' activations in the model and {', and '.join(others)}, by layer. Debiased "
        "linear CKA: whether the prompts lie in the same pattern. Projection kernel: whether they vary along the "
        "same leading principal components. Tints: 95 % intervals over prompts. Grey: mean (dotted) and 95 % band "
        f"of permuted prompts (CKA) or of two random subspaces (kernel). n = {counts(table)} prompts per class."
    )
