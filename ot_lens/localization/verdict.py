"""Which layers count as localized: only those above the control band, after correction over layers."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ot_lens.localization.candidates import REMOVE

LEVEL = 0.05
MEASURE = "refusal_score_shift"
KEYS = ["method", "k", "layer"]


def verdict(table: pd.DataFrame, transport: str = REMOVE) -> pd.DataFrame:
    """Each single layer of each method against its controls.

    A layer counts as localized when the whole 95 % interval of its refusal-score shift lies beyond the
    control band of the same method and layer, and its Holm-corrected p-value is below 0.05. The band of one
    kind of control is the one-sided prediction limit for one more draw, mean + t sd sqrt(1 + 1/draws), at
    level 0.05 divided by the number of layers, and never inside a draw; the widest kind counts. Two draws are
    the least.

    Args:
        table: A sweep with controls (`localize`).
        transport: REMOVE ("harmful_to_harmless") reads harmful prompts, whose score must fall; INDUCE
            ("harmless_to_harmful") reads harmless ones, whose score must rise.

    Returns:
        One row a method and layer: method, k, layer, shift, low, high, n, band (NaN without controls), margin
        (distance of the interval's near end beyond the band, positive when beyond), draws, p_holm, localized.
    """
    sign = -1.0 if transport == REMOVE else 1.0
    label = "harmful" if transport == REMOVE else "harmless"
    rows = table[(table["set"] == "single") & (table["measure"] == MEASURE) & (table["prompts"] == label)]
    real = rows[(rows["control"] == "") & (rows["transport"] == transport)]
    n_layers = max(1, real["layer"].nunique())
    merged = real.merge(_bands(rows[rows["control"] != ""], sign, n_layers), on=KEYS, how="left")
    near = sign * merged["high" if sign < 0 else "low"]
    return pd.DataFrame(
        {
            **{name: merged[name] for name in KEYS},
            "shift": merged["value"],
            **{name: merged[name] for name in ("low", "high", "n")},
            "band": sign * merged["limit"],
            "margin": near - merged["limit"],
            "draws": merged["draws"].fillna(0).astype("int64"),
            "p_holm": merged["p_holm"],
            "localized": (near > merged["limit"].clip(lower=0)) & (merged["p_holm"] < LEVEL),
        }
    )


@dataclass(frozen=True)
class OneDirection:
    """Whether one direction carries refusal: what is still refused when it is ablated everywhere.

    Attributes:
        layer: The layer whose direction leaves the fewest refusals.
        refusal: Share of harmful prompts still refused.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end.
        n: Prompts.
        suffices: True when the share is below one half, False when above, None when that is not decided.
    """

    layer: int
    refusal: float
    low: float
    high: float
    n: int
    suffices: bool | None


def one_direction(table: pd.DataFrame) -> OneDirection | None:
    """Read off a sweep with "rfa" whether one direction suffices to take refusal away.

    The layer is the best of those swept on the same prompts, which favours a direction. For True the upper
    end of the Wilson interval must therefore lie below one half at a level divided by the number of layers
    (Bonferroni); for False, which the choice makes no easier, the plain interval above it. Nothing is said of
    what else the ablation destroys; see the share answered rightly.

    Args:
        table: A sweep (`localize`) with method "rfa" and measure "refusal_rate".

    Returns:
        The verdict, or None when the sweep did not measure it.
    """
    rows = table[
        (table["method"] == "rfa")
        & (table["set"] == "single")
        & (table["control"] == "")
        & (table["measure"] == "refusal_rate")
        & (table["prompts"] == "harmful")
    ]
    if rows.empty:
        return None
    best = rows.sort_values(["value", "layer"]).iloc[0]
    low, high = float(best["low"]), float(best["high"])
    n = int(best["n"])
    test = stats.binomtest(round(float(best["value"]) * n), n)
    corrected = float(test.proportion_ci(1 - LEVEL / len(rows), method="wilson").high)
    suffices = True if corrected < 0.5 else False if low > 0.5 else None
    return OneDirection(int(best["layer"]), float(best["value"]), low, high, n, suffices)


def _bands(controls: pd.DataFrame, sign: float, n_layers: int) -> pd.DataFrame:
    """Upper limit of what controls do, in the direction of the effect, by method, rank and layer."""
    sided = controls.assign(sided=sign * controls["value"])
    groups = sided.groupby([*KEYS, "control"], dropna=False)["sided"]
    kinds = groups.agg(["mean", "std", "max", "size"]).reset_index()
    # With one draw there is no spread, and so no limit: the quantile of zero degrees of freedom is NaN.
    t = stats.t.ppf(1 - LEVEL / n_layers, kinds["size"] - 1)
    limit = kinds["mean"] + t * kinds["std"] * np.sqrt(1 + 1 / kinds["size"])
    kinds = kinds.assign(limit=np.where(limit.isna(), np.nan, np.maximum(limit, kinds["max"])))
    by_layer = kinds.groupby(KEYS, dropna=False)
    found = by_layer.agg(draws=("size", "sum"), limit=("limit", lambda x: x.max(skipna=False)))
    return found.reset_index()
