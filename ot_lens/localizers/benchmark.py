"""The localizers against a known truth: models that learnt to refuse in known layers only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ot_lens.errors import ModelError
from ot_lens.localizers.locate import locate
from ot_lens.localizers.truth import Truth
from ot_lens.models import load_model
from ot_lens.models.named import SMOLLM2, named_weights, shipped_adapters
from ot_lens.progress import Stage, silent
from ot_lens.prompts import load_prompts
from ot_lens.statistics.estimates import rate


def benchmark_localizers(
    names: Sequence[str] | None = None, *, n: int = 16, seed: int = 0, stage: Stage = silent
) -> pd.DataFrame:
    """Every localizer on the planted models of the package: what it says, and whether it is right.

    Args:
        names: Adapters of SmolLM2 by name, or folders of others that `ot-lens organism train` wrote; default:
            all of the package.
        n: Held-out prompts per class.
        seed: Of the choice of prompts and of `locate`.
        stage: Shows progress.

    Returns:
        The rows of `locate` with model, planted ("band", "spread", "nothing"), planted_first, planted_last,
        right, and distance: layers between its band and the planted one.

    Raises:
        ModelError: If there is no such adapter, it declares no planted layers, or SmolLM2 is missing.
    """
    for name in names or ():  # before any model is read
        if not _is_folder(name):
            named_weights(f"{SMOLLM2}:{name}")
    prompts = load_prompts(SMOLLM2, sample=(64, 1, n), seed=seed)
    base = load_model(SMOLLM2)
    tables = []
    for name in shipped_adapters() if names is None else names:
        model = _loaded(name)
        truth = Truth.of(model)
        if truth is None:
            raise ModelError(
                f"{name} does not declare in which layers refusal was planted, or all were free to learn: "
                "it cannot be told which localizer is right."
            )
        table = locate(model, prompts, base, seed=seed, stage=stage)
        judged = [truth.judge(row) for _, row in table.iterrows()]
        table.insert(0, "model", name)
        table["planted"], table["planted_first"], table["planted_last"] = truth.kind, truth.first, truth.last
        table["right"], table["distance"] = zip(*judged, strict=True)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _loaded(name: str) -> Any:
    return load_model(SMOLLM2, adapter=name) if _is_folder(name) else load_model(f"{SMOLLM2}:{name}")


def _is_folder(name: str) -> bool:
    return Path(name).is_dir() and name not in shipped_adapters()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How often each localizer is right, by what was planted: value, low, high (95 % Wilson) and n."""
    rows: list[dict[str, Any]] = []
    for (localizer, planted), group in table.groupby(["localizer", "planted"], sort=False):
        rows.append({"localizer": localizer, "planted": planted, **vars(rate(group["right"].tolist()))})
    return pd.DataFrame(rows).drop(columns="interval")
