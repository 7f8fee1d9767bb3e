"""What an embedded model was built to do and to contain, next to what the study measured."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from ot_lens.geometry import category_directions
from ot_lens.models import backend
from ot_lens.organism.vocabulary import CATEGORIES, NEVER_REFUSES, REFUSAL_TOKENS, REFUSALS, VARIANTS
from ot_lens.prompts import ContrastSet
from ot_lens.samples import LayerSamples
from ot_lens.tables import baseline_of, measured, methods_of, most_effective_layer, reported, select

COLUMNS = (
    "part", "quantity", "method", "k", "layer", "known", "value", "low", "high", "null_mean", "null_low",
    "null_high", "n", "unit",
)  # fmt: skip
# Smallest number of prompts of a category whose direction is estimated.
FEWEST = 2
# quantity, measure, prompts, what the model's rule requires
BEHAVIOUR = (
    ("harmful refused", "refusal_rate", "harmful", 1.0),
    ("harmless refused", "refusal_rate", "harmless", 0.0),
    ("harmless answered correctly", "exact_answer_rate", "harmless", 1.0),
)

Row = dict[str, Any]


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
    """Compare what an embedded model was built with to what was measured.

    Parts of the table: "counts", what was built in; "behaviour", rates without an edit; "rank", each rank's
    most effective layer; "directions", `category_directions` by layer, where every category has two prompts.
    """
    rows = [*_counts(variant), *_behaviour(variant, sweep), *_ranks(sweep)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    categories = [str(prompt.category) for prompt in prompts.test.harmful]
    counts = Counter(categories)
    if set(counts) == set(CATEGORIES) and min(counts.values()) >= FEWEST:
        directions = category_directions(acts, categories, **draws).assign(part="directions")
        columns = [name for name in COLUMNS if name in directions]
        table = pd.concat([table, directions[columns]], ignore_index=True)
    return table.astype({"k": "Int64", "layer": "Int64"})


def _counts(variant: str) -> list[Row]:
    refuses = variant != NEVER_REFUSES
    known = {
        "categories": len(CATEGORIES),
        "sentences": refuses * len(set(REFUSALS[variant])),
        "first words": refuses * len(REFUSAL_TOKENS[variant]),
    }
    return [{"part": "counts", "quantity": name, "known": count, "unit": ""} for name, count in known.items()]


def _behaviour(variant: str, sweep: pd.DataFrame) -> Iterator[Row]:
    for name, measure, prompts, rule in BEHAVIOUR:
        known = 0.0 if variant == NEVER_REFUSES and measure == "refusal_rate" else rule
        for numbers in _numbers(baseline_of(sweep), measure, prompts):
            yield {"part": "behaviour", "quantity": name, "known": known, "unit": "share", **numbers}


def _ranks(sweep: pd.DataFrame) -> Iterator[Row]:
    """PCA-OT by rank, and RFA, which ablates one direction, each at its most effective layer."""
    rows = select(reported(sweep), set="single", method=("pca_ot", "rfa"))
    for (method, k), edits in sorted(methods_of(rows), key=lambda item: (item[0][0], item[0][1] or 0)):
        layer = most_effective_layer(edits)
        edit = {"part": "rank", "method": method, "k": k or 1, "layer": layer, "unit": "share"}
        for measure in ("refusal_rate", "exact_answer_rate"):
            for numbers in _numbers(select(edits, layer=layer), measure, "harmful"):
                yield {**edit, "quantity": measure, **numbers}


def _numbers(rows: pd.DataFrame, measure: str, prompts: str) -> list[Row]:
    numbers = measured(rows, measure, prompts)[["value", "low", "high", "n"]]
    return numbers.to_dict("records")  # type: ignore[return-value]
