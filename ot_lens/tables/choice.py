"""Which edit of each method is reported: chosen on validation prompts, measured on others."""

from collections.abc import Collection

import pandas as pd

from ot_lens.tables.schema import ALL, SEQUENTIAL
from ot_lens.tables.selection import edits_of, measured, real_edits

# What a chosen edit is: one layer, two of them, or all layers, fitted apart or from the bottom up.
ONE, TWO, WHOLE, UPWARD = ROLES = ("single", "pair", "all", "sequential")
# What is best: the first of these that was measured on harmful prompts, and whether more of it is better.
EFFECT = (("coherent_success_rate", True), ("refusal_rate", False), ("refusal_score", False))


def label_of(key: str) -> str:
    """Name and parameters of the method of an edit, from its key."""
    return key.split("|")[2] if "|" in key else key


def edits_with_roles(table: pd.DataFrame) -> pd.DataFrame:
    """One row per edit of a sweep that may be chosen: key, label, role, set, layers, method, k, tokens."""
    columns = ["key", "set", "layers", "method", "k", "strength", "tokens", "fitting"]
    edits = edits_of(real_edits(table))[columns].drop_duplicates("key").reset_index(drop=True)
    roles = [_role(*row) for row in edits[["set", "layers", "fitting"]].itertuples(index=False)]
    labelled = edits.assign(label=edits["key"].map(label_of), role=roles)
    return labelled[(labelled["role"] != "") & (labelled["strength"] == 1)].reset_index(drop=True)


def _role(layer_set: str, layers: str, fitting: str) -> str:
    """The role of an edit; "" if it can have none."""
    if layer_set == ALL:
        return UPWARD if fitting == SEQUENTIAL else WHOLE
    size = 0 if "-" in layers else layers.count(",") + 1
    return {1: ONE, 2: TWO}.get(size, "")


def chosen_edits(validation: pd.DataFrame, layers: Collection[int] | None = None) -> pd.DataFrame:
    """The best edit of each method and role on the validation prompts.

    That is the one with which most harmful prompts are answered coherently, or else fewest refused; ties go
    to the smaller KL on harmless prompts, then to the earlier row. Edits without that measure are left out,
    such as those at which only the next token was read.

    Args:
        validation: A sweep, measured on validation prompts.
        layers: Choose among single layers of these alone; other roles are then left out.

    Returns:
        Rows of `edits_with_roles`, in the order of methods and roles.
    """
    edits = edits_with_roles(validation)
    if layers is not None:
        names = {str(layer) for layer in layers}
        edits = edits[(edits["role"] == ONE) & edits["layers"].isin(names)]
    for measure, more_is_better in EFFECT:
        effect = measured(validation, measure, "harmful").set_index("key")["value"]
        tried = edits[edits["key"].isin(effect.index)]
        if len(tried):
            loss = tried["key"].map(-effect if more_is_better else effect)
            kl = tried["key"].map(measured(validation, "kl", "harmless").set_index("key")["value"])
            ranked = tried.assign(loss=loss, cost=kl).sort_values(["loss", "cost"], kind="stable")
            best = ranked.groupby(["label", "role"], sort=False).head(1).drop(columns=["loss", "cost"])
            return _in_order(best, list(dict.fromkeys(edits["label"])))
    return edits.iloc[:0]


def _in_order(edits: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    rank = edits["label"].map(labels.index) * len(ROLES) + edits["role"].map(ROLES.index)
    return edits.iloc[rank.argsort(kind="stable")].reset_index(drop=True)
