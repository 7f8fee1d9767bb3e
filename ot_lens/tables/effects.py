"""What each edit does and costs, and the layer at which edits have the largest effect."""

import pandas as pd

from ot_lens.tables.schema import UNEDITED
from ot_lens.tables.selection import measured, methods_of, real_edits, reported, select, single_layers

# Column -> measure, class of prompts, and which number of the row.
NUMBERS = {
    "refusal": ("refusal_rate", "harmful", "value"),
    "low": ("refusal_rate", "harmful", "low"),
    "high": ("refusal_rate", "harmful", "high"),
    "n": ("refusal_rate", "harmful", "n"),
    "coherent": ("coherent_success_rate", "harmful", "value"),
    "coherent_low": ("coherent_success_rate", "harmful", "low"),
    "coherent_high": ("coherent_success_rate", "harmful", "high"),
    "degenerate": ("degenerate_rate", "harmful", "value"),
    "answer_nll": ("answer_nll", "harmful", "value"),
    "correct": ("exact_answer_rate", "harmful", "value"),
    "correct_low": ("exact_answer_rate", "harmful", "low"),
    "correct_high": ("exact_answer_rate", "harmful", "high"),
    "kl": ("kl", "harmless", "value"),
    "harmless_correct": ("exact_answer_rate", "harmless", "value"),
    "harmless_refusal": ("refusal_rate", "harmless", "value"),
    "perplexity": ("perplexity", "harmless", "value"),
}
# What "most effective" means: the first of these that was measured, and whether more of it is better.
EFFECT = (
    ("exact_answer_rate", True), ("coherent_success_rate", True), ("refusal_rate", False),
    ("refusal_score", False),
)  # fmt: skip


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Effect and cost of every edit whose refusal rate was measured, and of the unedited model.

    Args:
        table: A sweep (`localize`).

    Returns:
        One row per edit (see `selection.reported`): key, set, layers, layer, method, k; refusal, low, high, n
        (rate on harmful prompts with its interval); coherent, coherent_low, coherent_high (harmful prompts
        answered coherently), degenerate, answer_nll; correct, correct_low, correct_high (harmful prompts
        answered correctly); kl, harmless_correct, harmless_refusal, perplexity (costs on harmless prompts);
        lowers (whether the interval of the refusal rate lies below the unedited model's). NaN where a measure
        is missing.

    Raises:
        ValueError: If a measure of an edit occurs twice.
    """
    rows = reported(table)
    twice = rows.loc[rows.duplicated(["key", "measure", "prompts"]), "key"]
    if len(twice):
        raise ValueError(f"The table measures {twice.iloc[0]!r} twice: remove the repeated rows.")
    edits = measured(rows, "refusal_rate", "harmful")[["key", "set", "layers", "layer", "method", "k"]]
    columns = edits.reset_index(drop=True)
    for column, (measure, prompts, number) in NUMBERS.items():
        by_key = measured(rows, measure, prompts).set_index("key")
        columns[column] = columns["key"].map(by_key[number])
    floor = float(select(columns, set=UNEDITED)["low"].min())
    return columns.assign(lowers=columns["high"] < floor)


def single_effects(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `effects` of single layers; a layer that was both swept and listed occurs once."""
    return single_layers(effects(table)).drop_duplicates(["method", "k", "layer"])


def best_singles(table: pd.DataFrame) -> pd.DataFrame:
    """The row of `effects` at each method's most effective single layer, in the order of the sweep."""
    edits = single_effects(table)
    layers = {method: most_effective_layer(rows) for method, rows in methods_of(reported(table))}
    best = [
        select(edits, method=method, k=k, layer=layer).head(1)
        for (method, k), layer in layers.items()
        if layer is not None
    ]
    return pd.concat(best, ignore_index=True) if best else edits


def most_effective_layer(table: pd.DataFrame) -> int | None:
    """The single layer whose edits have the largest effect.

    That is where most harmful prompts are answered correctly, because a low refusal rate alone hides a
    destroyed model; without reference answers, where most are answered coherently; without that measure,
    where fewest are refused; without any answers, where the refusal score is lowest. Ties go to the smaller
    KL on harmless prompts, then to the earlier layer.

    Args:
        table: Rows of a sweep. Several methods are averaged.

    Returns:
        The layer, or None when no edit of a single layer was measured.
    """
    # Without the other columns, which each selection would copy.
    singles = single_layers(real_edits(table))[["layer", "measure", "prompts", "value"]]
    for measure, more_is_better in EFFECT:
        effect = measured(singles, measure, "harmful").groupby("layer")["value"].mean().dropna()
        if len(effect):
            kl = measured(singles, "kl", "harmless").groupby("layer")["value"].mean()
            loss = -effect if more_is_better else effect
            ranked = pd.DataFrame({"loss": loss, "kl": kl.reindex(loss.index)})
            return int(ranked.sort_values(["loss", "kl"], kind="stable").index[0])
    return None
