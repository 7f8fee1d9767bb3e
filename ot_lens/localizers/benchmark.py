"""The localizers against a known truth: models that learnt to refuse in known layers only."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ot_lens.errors import ModelError, one_of
from ot_lens.localizers.bands import BAND, NOTHING, SPREAD
from ot_lens.localizers.locate import locate
from ot_lens.models import load_model
from ot_lens.models.named import ADAPTERS, DECLARATION, SMOLLM2, shipped_adapters
from ot_lens.progress import Stage, silent
from ot_lens.prompts import load_prompts
from ot_lens.statistics.estimates import rate


@dataclass(frozen=True)
class Truth:
    """Where refusal was planted: in a band of layers, in all of them, or, as a control, nowhere."""

    kind: str
    first: int
    last: int

    @classmethod
    def of(cls, name: str, n_layers: int) -> "Truth":
        """As an adapter of the package declares it."""
        declared = json.loads((ADAPTERS / name / DECLARATION).read_text("utf-8"))["planted"]
        first = 0 if declared["first"] is None else declared["first"]
        last = n_layers - 1 if declared["last"] is None else declared["last"]
        everywhere = last - first + 1 == n_layers
        return cls(NOTHING if declared["shuffled"] else SPREAD if everywhere else BAND, first, last)

    def judge(self, row: pd.Series) -> tuple[bool, float]:
        """Whether a localizer is right, and the distance in layers of its band from a planted one."""
        if self.kind != BAND:
            return row["verdict"] == self.kind, float("nan")
        if row["verdict"] != BAND:
            return False, float("nan")
        apart = max(0, self.first - row["last"], row["first"] - self.last)
        return apart == 0, float(apart)


def benchmark_localizers(
    names: Sequence[str] | None = None, *, n: int = 16, seed: int = 0, stage: Stage = silent
) -> pd.DataFrame:
    """Every localizer on the planted models of the package: what it says, and whether it is right.

    Args:
        names: Adapters of SmolLM2; default: all of the package.
        n: Held-out prompts per class.
        seed: Of the choice of prompts and of `locate`.
        stage: Shows progress.

    Returns:
        The rows of `locate` with model, planted ("band", "spread", "nothing"), planted_first, planted_last,
        right, and distance: layers between its band and the planted one.

    Raises:
        ModelError: If the package has no such adapter, or SmolLM2 is missing.
    """
    chosen = shipped_adapters() if names is None else tuple(names)
    for name in chosen:
        one_of("adapter of smollm2", name, shipped_adapters(), ModelError)
    base = load_model(SMOLLM2)
    tables = []
    for name in chosen:
        model = load_model(f"{SMOLLM2}:{name}")
        prompts = load_prompts(SMOLLM2, sample=(64, 1, n), seed=seed)
        table = locate(model, prompts, base, seed=seed, stage=stage)
        truth = Truth.of(name, model.cfg.n_layers)
        judged = [truth.judge(row) for _, row in table.iterrows()]
        table.insert(0, "model", f"{SMOLLM2}:{name}")
        table["planted"], table["planted_first"], table["planted_last"] = truth.kind, truth.first, truth.last
        table["right"], table["distance"] = zip(*judged, strict=True)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How often each localizer is right, by what was planted: value, low, high (95 % Wilson) and n."""
    rows: list[dict[str, Any]] = []
    for (localizer, planted), group in table.groupby(["localizer", "planted"], sort=False):
        rows.append({"localizer": localizer, "planted": planted, **vars(rate(group["right"].tolist()))})
    return pd.DataFrame(rows).drop(columns="interval")
