"""Choosing among scored directions: filters, ranking, and the reason in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ot_lens.errors import NoDirectionLeftError, OtLensError
from ot_lens.io.untrusted import abbreviated

SCORES = ("refusal_score", "steering_score", "kl_div_score")


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
    kl_threshold: float | None = 0.1,
    induce_threshold: float | None = 0.0,
    prune_share: float | None = 0.2,
) -> Selection:
    """Choose the direction that bypasses refusal best among those that cause no other harm.

    Candidates are dropped if a score is NaN, if their layer is >= int((1 - prune_share) n_layers), if their
    KL is above `kl_threshold`, or if their induce score is below `induce_threshold`. The smallest bypass
    score wins; ties go to the earliest position, then to the lowest layer, as published.

    Args:
        scores: One row per candidate: position, layer, refusal_score (bypass), steering_score (induce),
            kl_div_score; from `score_directions`, or the `scores` of a published run.
        n_layers: Layers of the model.
        kl_threshold: In nats; None for no such filter.
        induce_threshold: In nats; None for no such filter.
        prune_share: Share of the layers, from the last, to drop; None for no such filter.

    Returns:
        The choice and the reason for it.

    Raises:
        NoDirectionLeftError: If every candidate is dropped; the message says by which filter.
        OtLensError: If the table lacks a column, is empty, repeats a candidate or has a layer that the model
            lacks.
    """
    table = _checked(scores, n_layers)
    # In the order of the published code.
    rules = {"a score is NaN": table[list(SCORES)].isna().any(axis=1)}
    if prune_share is not None:
        first = int(n_layers * (1.0 - prune_share))
        rules[f"layer >= {first} of {n_layers}"] = table["layer"] >= first
    if kl_threshold is not None:
        rules[f"KL > {kl_threshold:g}"] = table["kl_div_score"] > kl_threshold
    if induce_threshold is not None:
        rules[f"induce < {induce_threshold:g}"] = table["steering_score"] < induce_threshold
    table["dropped"] = ""
    filters: tuple[FilterCount, ...] = ()
    for rule, drops in rules.items():
        removed = drops & table["dropped"].eq("")
        table.loc[removed, "dropped"] = rule
        filters += (FilterCount(rule, int(removed.sum()), int(table["dropped"].eq("").sum())),)
    remaining = table[table["dropped"] == ""]
    if remaining.empty:
        raise NoDirectionLeftError(_nothing_left(table, filters), filters, table)
    order = remaining.sort_values(["refusal_score", "position", "layer"]).index
    table["rank"] = pd.Series(range(len(order)), index=order, dtype="Int64").reindex(table.index)
    position, layer = (int(table.loc[order[0], name]) for name in ("position", "layer"))
    return Selection(position, layer, _why(table.loc[order], len(table)), filters, table)


def _checked(scores: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    absent = [name for name in ("position", "layer", *SCORES) if name not in scores.columns]
    if absent:
        raise OtLensError(
            f"The scores have no column {', '.join(absent)}: pass what score_directions returns, or the "
            "scores of a published run."
        )
    if scores.empty:
        raise OtLensError("The scores have no rows: there is no candidate to choose from.")
    table = scores.reset_index(drop=True)
    try:
        numbers = table[["position", "layer", *SCORES]].astype(dict.fromkeys(SCORES, np.float64))
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


def _nothing_left(table: pd.DataFrame, filters: Sequence[FilterCount]) -> str:
    counts = "; ".join(f"{step.rule} dropped {step.removed}" for step in filters)
    message = f"No direction is left of {len(table)} candidates: {counts}."
    known = table.dropna(subset=list(SCORES))
    if known.empty:
        return f"{message} Every candidate has a NaN score: load the model in bfloat16 or float32."
    return (
        f"{message} The smallest KL is {known['kl_div_score'].min():.3g}, the highest induce score "
        f"{known['steering_score'].max():.3g}: see the table, and relax a threshold only with a reason."
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


def _candidate(row: pd.Series) -> str:
    return f"position {int(row['position'])}, layer {int(row['layer'])}"
