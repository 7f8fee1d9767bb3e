"""The measured edits of a run, prompt by prompt, as its claims compare them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ot_lens.paper_study.frontier import Frontier
from ot_lens.tables import UNEDITED, edits_with_roles, select
from ot_lens.transport import find_method, method_label

# Column of the outcomes that says what success is, by its name.
COHERENT, ASR, DEGENERATE, JUDGED = (
    "coherent success",
    "attack success",
    "degenerate answers",
    "judged success",
)
FLAGS = {COHERENT: "coherent", ASR: "refused", DEGENERATE: "degenerate", JUDGED: "judged"}
STRENGTH = "strength"
PERPLEXITY, KL = "perplexity", "KL"
WINDOWS, HARMLESS, HARMFUL = "text", "harmless", "harmful"


@dataclass(frozen=True)
class Edit:
    """One edit of a run, or the unedited model, whose key is UNEDITED."""

    key: str
    name: str  # for people, with its layers
    method: str = UNEDITED
    k: int | None = None


@dataclass(frozen=True)
class Measured:
    """The tables of a run that its claims are tested on."""

    localization: pd.DataFrame
    validation: pd.DataFrame
    variants: pd.DataFrame
    outcomes: pd.DataFrame

    @cached_property
    def edits(self) -> pd.DataFrame:
        """The edits of the sweep that have a role, with their outcomes measured."""
        edits = edits_with_roles(self.localization)
        return edits[edits["key"].isin(self._by_key)].reset_index(drop=True)

    @cached_property
    def _by_key(self) -> dict[str, pd.DataFrame]:
        return {str(key): rows for key, rows in self.outcomes.groupby("key", sort=False)}

    def _rows(self, key: str, prompts: str) -> pd.DataFrame:
        if key not in self._by_key:
            return self.outcomes.iloc[:0]
        return select(self._by_key[key], prompts=prompts).sort_values("prompt")

    def flags(self, key: str, name: str) -> Float[np.ndarray, " n"]:
        """Whether each harmful prompt had that outcome, as 0 or 1; NaN where it is unknown."""
        column = self._rows(key, HARMFUL)[FLAGS[name]].astype("Float64").to_numpy(np.float64, na_value=np.nan)
        return 1 - column if name == ASR else column

    @cached_property
    def successes(self) -> tuple[str, str]:
        """What counts as success: a coherent answer, and what the judge says, or the phrases without one."""
        judged = self.outcomes["judged"].notna().any()
        return COHERENT, JUDGED if judged else ASR

    def pair(
        self, first: str, second: str, name: str
    ) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """The flags of two edits on the prompts at which both are known."""
        return both_known(self.flags(first, name), self.flags(second, name))

    def _known_costs(self) -> Iterator[tuple[str, str]]:
        unedited = self._by_key.get(UNEDITED, self.outcomes.iloc[:0])
        for prompts, column in ((WINDOWS, "nll"), (HARMLESS, "nll"), (HARMLESS, "kl")):
            if select(unedited, prompts=prompts)[column].notna().any():
                yield prompts, column

    @cached_property
    def cost(self) -> tuple[str, str] | None:
        """The prompts and the column of what an edit costs: of a text, else of harmless prompts; else KL."""
        return next(self._known_costs(), None)

    @property
    def cost_name(self) -> str:
        """What an edit costs, for people."""
        return KL if self.cost is None or self.cost[1] == "kl" else PERPLEXITY

    def frontier(self, key: str, name: str) -> Frontier | None:
        """Success and cost of an edit over its strengths; None where either was not measured."""
        if self.cost is None:
            return None
        weaker = select(self.variants, of=key, axis=STRENGTH).drop_duplicates("key")
        ordered = weaker.assign(at=weaker["level"].astype(float)).sort_values("at")["key"]
        keys = [UNEDITED, *ordered, key]
        success = np.array([self.flags(one, name) for one in keys])
        prompts, column = self.cost
        rows = [self._rows(one, prompts) for one in keys]
        cost = np.array([row[column].to_numpy(np.float64, na_value=np.nan) for row in rows])
        units = np.ones(cost.shape[1])
        if column == "nll":
            units = rows[0]["n_tokens"].to_numpy(np.float64, na_value=np.nan)
        if not (success.size and cost.size and np.isfinite(cost).all()):
            return None
        return Frontier(success, cost, units, log=column == "nll")


def both_known(
    first: Float[np.ndarray, " _"], second: Float[np.ndarray, " _"]
) -> tuple[Bool[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Two outcomes as flags, on the prompts at which both are known."""
    if len(first) != len(second):
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
    known = np.isfinite(first) & np.isfinite(second)
    return first[known] > 0, second[known] > 0


def named(row: Any) -> Edit:
    """An edit from its row of `edits_with_roles`."""
    k = None if pd.isna(row.k) else int(row.k)
    known = find_method(str(row.method))
    label = method_label(str(row.method), k)
    layers = str(row.layers)
    where = f"layers {layers}" if "," in layers else f"layer {layers}"
    if row.role in ("all", "sequential"):
        where = "all layers" if row.role == "all" else "all layers, sequential"
    elif known is not None and known.everywhere:
        where = f"direction of layer {layers}"
    return Edit(str(row.key), f"{label}, {where}", str(row.method), k)
