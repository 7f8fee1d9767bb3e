"""What an embedded model was built to do and to hold, beside what the study measured."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ot_lens.geometry import category_directions
from ot_lens.models import backend
from ot_lens.organism.vocabulary import CATEGORIES, REFUSAL_TOKENS, REFUSALS, VARIANTS
from ot_lens.prompts import ContrastSet
from ot_lens.samples import LayerSamples
from ot_lens.study.summary import main_rows

COLUMNS = (
    "part",
    "quantity",
    "method",
    "k",
    "layer",
    "known",
    "value",
    "low",
    "high",
    "null_mean",
    "null_low",
    "null_high",
    "n",
    "unit",
)
# Prompts of a category whose direction is estimated.
FEWEST = 2
# name, measure, prompts, what the rule asks for
BEHAVIOUR = (
    ("harmful refused", "refusal_rate", "harmful", 1.0),
    ("harmless refused", "refusal_rate", "harmless", 0.0),
    ("harmless answered rightly", "exact_answer_rate", "harmless", 1.0),
)


def variant_of(model: Any) -> str | None:
    """The variant of an embedded model, None for any other model."""
    settings = getattr(backend(model).tokenizer, "init_kwargs", {}).get("ot_lens", {})
    variant = settings.get("variant")
    return str(variant) if variant in VARIANTS else None


def ground_truth(
    variant: str,
    prompts: ContrastSet,
    acts: LayerSamples,
    sweep: pd.DataFrame,
    draws: Mapping[str, int],
) -> pd.DataFrame:
    """What an embedded model was built with and what was measured of it, side by side.

    Args:
        variant: of the embedded model, see `variant_of`.
        prompts: its prompts; those of the embedded language have categories.
        acts: activations of the test prompts.
        sweep: the table of `localize`.
        draws: permutations, bootstrap and seed.

    Returns:
        Columns part, quantity, method, k, layer, known, value, low, high, null_mean, null_low, null_high, n,
        unit. Parts: "counts", what was built in; "behaviour", rates without an edit; "rank", each rank's best
        single layer; "directions", `category_directions` by layer, where every category has two prompts.
    """
    rows = [*_counts(variant), *_behaviour(sweep), *_ranks(sweep)]
    categories = [prompt.category for prompt in prompts.test.harmful]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    counts = Counter(categories)
    if set(counts) == set(CATEGORIES) and min(counts.values()) >= FEWEST:
        directions = category_directions(acts, [str(name) for name in categories], **draws)
        table = pd.concat([table, directions.assign(part="directions")[[
            name for name in COLUMNS if name in directions or name == "part"
        ]]], ignore_index=True)  # fmt: skip
    return table.astype({"k": "Int64", "layer": "Int64"})


def _counts(variant: str) -> list[dict[str, Any]]:
    known = {
        "categories": len(CATEGORIES),
        "sentences": len(set(REFUSALS[variant])),
        "first words": len(REFUSAL_TOKENS[variant]),
    }
    return [{"part": "counts", "quantity": name, "known": count, "unit": ""} for name, count in known.items()]


def _behaviour(sweep: pd.DataFrame) -> list[dict[str, Any]]:
    plain = sweep[sweep["set"] == "none"]
    return [
        {"part": "behaviour", "quantity": name, "known": known, "unit": "share", **_read(row)}
        for name, measure, prompts, known in BEHAVIOUR
        for row in _rows(plain, measure, prompts)
    ]


def _ranks(sweep: pd.DataFrame) -> list[dict[str, Any]]:
    """PCA-OT by rank, and RFA, which ablates one direction, each at its best single layer."""
    singles = main_rows(sweep)
    singles = singles[(singles["set"] == "single") & singles["method"].isin(("pca_ot", "rfa"))]
    found = []
    for (method, _), part in singles.groupby(["method", "k"], dropna=False, sort=True):
        layer, rank = best_layer(part), int(part["k"].fillna(1).iloc[0])
        for measure in ("refusal_rate", "exact_answer_rate"):
            for row in _rows(part[part["layer"] == layer], measure, "harmful"):
                place = {"method": method, "k": rank, "layer": layer}
                found.append({"part": "rank", "quantity": measure, "unit": "share", **place, **_read(row)})
    return found


def best_layer(rows: pd.DataFrame) -> int | None:
    """The layer at which most harmful prompts are answered rightly, else fewest refused."""
    for measure, sign in (("exact_answer_rate", -1.0), ("refusal_rate", 1.0)):
        part = rows[(rows["measure"] == measure) & (rows["prompts"] == "harmful")].dropna(subset=["value"])
        if len(part):
            order = part.assign(order=sign * part["value"]).sort_values(["order", "layer"], kind="stable")
            return int(order["layer"].iloc[0])
    return None


def _rows(rows: pd.DataFrame, measure: str, prompts: str) -> list[dict[Any, Any]]:
    return rows[(rows["measure"] == measure) & (rows["prompts"] == prompts)].to_dict("records")


def _read(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("value", "low", "high", "n")}
