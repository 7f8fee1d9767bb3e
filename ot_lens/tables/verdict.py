"""Which layers count as localized against their controls, and whether one direction carries refusal."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ot_lens.tables.schema import REMOVE, SINGLE
from ot_lens.tables.selection import (
    at_one_setting,
    controls_of,
    measured,
    not_controls,
    select,
    single_layers,
)

SHIFT = "refusal_score_shift"
KEYS = ["method", "k", "layer"]
COLUMNS = [*KEYS, "control", "value", "low", "high", "n", "draws", "unit"]
LEVEL = 0.05


def control_bands(sweep: pd.DataFrame) -> pd.DataFrame:
    """Shift of the refusal score of harmful prompts by method and layer, of real edits and of controls.

    Args:
        sweep: The table of `localize`.

    Returns:
        Columns method, k, layer, control ("" for the real edit), value, low, high, n, draws, unit. For a real
        edit low and high are its 95 % interval over prompts; for a control, the smallest and the largest
        draw, and value is their mean.
    """
    rows = select(single_shifts(sweep, "harmful"), transport=REMOVE)
    real = not_controls(rows).assign(draws=0)[COLUMNS]
    groups = controls_of(rows).groupby([*KEYS, "control"], dropna=False, sort=False)
    drawn = groups.agg(
        value=("value", "mean"),
        low=("value", "min"),
        high=("value", "max"),
        n=("n", "first"),
        draws=("value", "count"),
        unit=("unit", "first"),
    ).reset_index()
    parts = [part for part in (real, drawn[COLUMNS]) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else real


def single_shifts(sweep: pd.DataFrame, prompts: str) -> pd.DataFrame:
    """Rows of the refusal-score shift under edits of single layers, controls included."""
    return at_one_setting(select(measured(sweep, SHIFT, prompts), set=SINGLE))


def control_limits(controls: pd.DataFrame, sign: float, level: float) -> pd.DataFrame:
    """One-sided prediction limit of one more control draw, by method, rank and layer, never inside a draw.

    The kind of control that gets furthest counts. `sign` is -1 where the effect lowers the value.
    """
    signed = controls.assign(signed=sign * controls["value"])
    groups = signed.groupby([*KEYS, "control"], dropna=False)["signed"]
    kinds = groups.agg(["mean", "std", "max", "size"]).reset_index()
    # One draw has no spread and therefore no limit: the quantile of zero degrees of freedom is NaN.
    t = stats.t.ppf(1 - level, kinds["size"] - 1)
    limit = kinds["mean"] + t * kinds["std"] * np.sqrt(1 + 1 / kinds["size"])
    kinds = kinds.assign(limit=np.where(limit.isna(), np.nan, np.maximum(limit, kinds["max"])))
    by_layer = kinds.groupby(KEYS, dropna=False)
    limits = by_layer.agg(draws=("size", "sum"), limit=("limit", lambda x: x.max(skipna=False)))
    return limits.reset_index()


def verdict(table: pd.DataFrame, transport: str = REMOVE) -> pd.DataFrame:
    """Compare each single layer of each method with its controls.

    A layer counts as localized when the whole 95 % interval of its refusal-score shift lies beyond the
    control band of the same method and layer, and its Holm-corrected p-value is below 0.05. The band of one
    kind of control is the one-sided prediction limit for one more draw, mean + t sd sqrt(1 + 1/draws), at
    level 0.05 divided by the number of layers, and never inside a draw; the widest kind counts. It takes at
    least two draws. Where a layer is localized, refusal can be changed; it need not be where refusal is
    made, which only localizers tell (`locate`).

    Args:
        table: A sweep with controls (`localize`). Of several strengths the largest counts.
        transport: REMOVE ("harmful_to_harmless") reads harmful prompts, whose score must fall; INDUCE
            ("harmless_to_harmful") reads harmless ones, whose score must rise.

    Returns:
        One row per method and layer: method, k, layer, shift, low, high, n, band (NaN without controls),
        margin (distance of the interval's near end beyond the band, positive when beyond), draws, p_holm,
        localized.
    """
    sign = -1.0 if transport == REMOVE else 1.0
    rows = single_shifts(table, "harmful" if transport == REMOVE else "harmless")
    real = select(not_controls(rows), transport=transport)
    limits = control_limits(controls_of(rows), sign, LEVEL / max(1, real["layer"].nunique()))
    merged = real.merge(limits, on=KEYS, how="left")
    near = sign * merged["high" if sign < 0 else "low"]
    p_holm = merged.get("p_holm", pd.Series(float("nan"), merged.index))
    return pd.DataFrame(
        {
            **{name: merged[name] for name in KEYS},
            "shift": merged["value"],
            **{name: merged[name] for name in ("low", "high", "n")},
            "band": sign * merged["limit"],
            "margin": near - merged["limit"],
            "draws": merged["draws"].fillna(0).astype("int64"),
            "p_holm": p_holm,
            "localized": (near > merged["limit"].clip(lower=0)) & (p_holm < LEVEL),
        }
    )


@dataclass(frozen=True)
class OneDirection:
    """Whether one direction carries refusal: what is still refused when it is ablated everywhere."""

    layer: int  # whose direction leaves the fewest refusals
    refusal: float  # share of harmful prompts still refused
    low: float  # ends of its 95 % Wilson interval
    high: float
    n: int
    suffices: bool | None  # whether the share is below one half; None when undecided


def one_direction(table: pd.DataFrame) -> OneDirection | None:
    """Decide from a sweep with "rfa" whether ablating one direction is enough to remove refusal.

    The layer is the best of those swept on the same prompts, which favours a direction. For True the upper
    end of the Wilson interval must therefore lie below one half at a level divided by the number of layers
    (Bonferroni), and the unedited model must refuse more than half; for False, which the choice makes no
    easier, the plain interval above it. What else the ablation destroys is not considered; see the share
    answered correctly.

    Args:
        table: A sweep (`localize`) with method "rfa" and measure "refusal_rate".

    Returns:
        The verdict, or None when the sweep did not measure it.
    """
    rows = select(measured(not_controls(table), "refusal_rate", "harmful"), method="rfa")
    rows = single_layers(rows).drop_duplicates("layer")
    if rows.empty:
        return None
    best = rows.sort_values(["value", "layer"]).iloc[0]
    low, high = float(best["low"]), float(best["high"])
    n = int(best["n"])
    test = stats.binomtest(round(float(best["value"]) * n), n)
    corrected = float(test.proportion_ci(1 - LEVEL / len(rows), method="wilson").high)
    unedited = select(measured(table, "refusal_rate", "harmful"), set="none")
    refuses = unedited.empty or float(unedited.iloc[0]["low"]) > 0.5
    suffices = True if corrected < 0.5 and refuses else False if low > 0.5 else None
    return OneDirection(int(best["layer"]), float(best["value"]), low, high, n, suffices)
