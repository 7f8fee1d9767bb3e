"""Choosing among scored directions: filters, ranking, and the reason in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ot_lens.errors import NoDirectionLeftError, OtLensError, one_of
from ot_lens.io.untrusted import abbreviated

# The scores that each rule reads.
RULES = {
    "arditi": ("refusal_score", "steering_score", "kl_div_score"),
    "cosmic": ("ablation_similarity", "addition_similarity", "kl_div_score"),
}


@dataclass(frozen=True)
class FilterCount:
    """One filter of the selection: which candidates it drops, how many it dropped, how many were left."""

    rule: str
    removed: int
    left: int

    def __str__(self) -> str:
        """The rule and its count."""
        return f"{self.rule}: {self.removed}"


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The chosen direction.

    Attributes:
        position: Its token position, counted from the prompt's end.
        layer: Its layer.
        why: The reason, in words.
        filters: How many candidates each filter removed, in order.
        table: All candidates with their scores, `dropped` (the first filter that dropped it, "" if none did)
            and `rank` (0 for the chosen one, missing for dropped ones).
    """

    position: int
    layer: int
    why: str
    filters: tuple[FilterCount, ...]
    table: pd.DataFrame

    def __repr__(self) -> str:
        """The choice, the reason and the filters."""
        dropped = "; ".join(str(step) for step in self.filters)
        return f"Selection({self.why} Dropped: {dropped}.)"


def select_direction(
    scores: pd.DataFrame,
    n_layers: int,
    *,
    rule: str = "arditi",
    kl_threshold: float | None = 0.1,
    induce_threshold: float | None = 0.0,
    prune_share: float | None = 0.2,
) -> Selection:
    """Choose the direction that bypasses refusal best among those that cause no other harm.

    Candidates are dropped if a score is NaN, if their layer is >= int((1 - prune_share) n_layers), if their
    KL is above `kl_threshold`, or if their induce score is below `induce_threshold`. The smallest bypass
    score wins; ties go to the earliest position, then to the lowest layer, as published.

    Rule "cosmic" (Siu et al. 2025, arXiv 2506.00085) needs no refusal tokens: the largest sum of the cosine
    similarities under ablation and under addition wins, among those that the filters of NaN, layer and KL
    leave. (The published code also drops late layers of the last position, by where its scores peak.)

    Args:
        scores: One row per candidate: position, layer, refusal_score (bypass), steering_score (induce),
            kl_div_score; from `score_directions`, or the `scores` of a published run. Rule "cosmic" reads
            ablation_similarity and addition_similarity instead of the first two, from `score_directions`.
        n_layers: Layers of the model.
        rule: "arditi" or "cosmic".
        kl_threshold: In nats; None for no such filter.
        induce_threshold: In nats, for rule "arditi"; None for no such filter.
        prune_share: Share of the layers, from the last, to drop; None for no such filter.

    Returns:
        The choice and the reason for it.

    Raises:
        NoDirectionLeftError: If every candidate is dropped; the message says by which filter.
        OtLensError: If the rule is unknown, or the table lacks a column, is empty, repeats a candidate or has
            a layer that the model lacks.
    """
    one_of("rule", rule, list(RULES), OtLensError)
    table = _checked(scores, n_layers, RULES[rule])
    # In the order of the published code.
    drops = {"a score is NaN": table[list(RULES[rule])].isna().any(axis=1)}
    if prune_share is not None:
        first = int(n_layers * (1.0 - prune_share))
        drops[f"layer >= {first} of {n_layers}"] = table["layer"] >= first
    if kl_threshold is not None:
        drops[f"KL > {kl_threshold:g}"] = table["kl_div_score"] > kl_threshold
    if induce_threshold is not None and rule == "arditi":
        drops[f"induce < {induce_threshold:g}"] = table["steering_score"] < induce_threshold
    filters = _filtered(table, drops)
    remaining = table[table["dropped"] == ""]
    if remaining.empty:
        raise NoDirectionLeftError(_nothing_left(table, filters, rule), filters, table)
    # The smallest first: a bypass score, or the similarity lacking.
    score = remaining["refusal_score"] if rule == "arditi" else -_similarity(remaining)
    order = remaining.assign(score=score).sort_values(["score", "position", "layer"]).index
    table["rank"] = pd.Series(range(len(order)), index=order, dtype="Int64").reindex(table.index)
    position, layer = (int(table.loc[order[0], name]) for name in ("position", "layer"))
    why = _why if rule == "arditi" else _why_similar
    return Selection(position, layer, why(table.loc[order], len(table)), filters, table)


def _filtered(table: pd.DataFrame, drops: Mapping[str, pd.Series]) -> tuple[FilterCount, ...]:
    """Note in the table which filter drops each candidate first, and count them."""
    table["dropped"] = ""
    filters: tuple[FilterCount, ...] = ()
    for name, dropped in drops.items():
        removed = dropped & table["dropped"].eq("")
        table.loc[removed, "dropped"] = name
        filters += (FilterCount(name, int(removed.sum()), int(table["dropped"].eq("").sum())),)
    return filters


def _similarity(table: pd.DataFrame) -> pd.Series:
    return table["ablation_similarity"] + table["addition_similarity"]


def _checked(scores: pd.DataFrame, n_layers: int, read: Sequence[str]) -> pd.DataFrame:
    absent = [name for name in ("position", "layer", *read) if name not in scores.columns]
    if absent:
        published = ", or the scores of a published run" if read == RULES["arditi"] else ""
        raise OtLensError(
            f"The scores have no column {', '.join(absent)}: pass what score_directions returns{published}."
        )
    if scores.empty:
        raise OtLensError("The scores have no rows: there is no candidate to choose from.")
    table = scores.reset_index(drop=True)
    try:
        numbers = table[["position", "layer", *read]].astype(dict.fromkeys(read, np.float64))
        table = table.assign(**numbers.astype({"position": np.int64, "layer": np.int64}))
    except (TypeError, ValueError) as error:
        raise OtLensError(f"The scores must be numbers: {abbreviated(error)}.") from error
    twice = table.duplicated(["position", "layer"])
    if twice.any():
        row = table[twice].iloc[0]
        raise OtLensError(f"{_candidate(row)} is scored twice: keep one row.")
    beyond = table[(table["layer"] < 0) | (table["layer"] >= n_layers)]
    if len(beyond):
        raise OtLensError(
            f"Layer {beyond['layer'].iloc[0]} is scored, but the model has {n_layers} layers: check n_layers."
        )
    return table


def _nothing_left(table: pd.DataFrame, filters: Sequence[FilterCount], rule: str) -> str:
    counts = "; ".join(f"{step.rule} dropped {step.removed}" for step in filters)
    message = f"No direction is left of {len(table)} candidates: {counts}."
    known = table.dropna(subset=list(RULES[rule]))
    if known.empty:
        return f"{message} Every candidate has a NaN score: load the model in bfloat16 or float32."
    induce = f", the highest induce score {known['steering_score'].max():.3g}" if rule == "arditi" else ""
    return (
        f"{message} The smallest KL is {known['kl_div_score'].min():.3g}{induce}: see the table, and relax a "
        "threshold only with a reason."
    )


def _why(ranked: pd.DataFrame, n_candidates: int) -> str:
    best = ranked.iloc[0]
    words = (
        f"{_candidate(best)}: the lowest bypass score ({best['refusal_score']:.2f} nats) of the "
        f"{len(ranked)} of {n_candidates} candidates left; KL {best['kl_div_score']:.3f}, induce "
        f"{best['steering_score']:.2f}."
    )
    if len(ranked) > 1:
        words += f" Next: {_candidate(ranked.iloc[1])} at {ranked.iloc[1]['refusal_score']:.2f}."
    if {"refusal_low", "refusal_high"} <= set(ranked.columns):
        close = int((ranked["refusal_low"].iloc[1:] <= best["refusal_high"]).sum())
        words += f" The 95 % intervals of {close} others overlap with it."
    return words


def _why_similar(ranked: pd.DataFrame, n_candidates: int) -> str:
    best, similarities = ranked.iloc[0], _similarity(ranked)
    words = (
        f"{_candidate(best)}: the highest cosine similarity ({best['ablation_similarity']:.3f} under "
        f"ablation + {best['addition_similarity']:.3f} under addition) of the {len(ranked)} of "
        f"{n_candidates} candidates left; KL {best['kl_div_score']:.3f}."
    )
    if len(ranked) > 1:
        words += f" Next: {_candidate(ranked.iloc[1])} at {similarities.iloc[1]:.3f}."
    return words


def _candidate(row: pd.Series) -> str:
    return f"position {int(row['position'])}, layer {int(row['layer'])}"
