"""What edits at one layer do to the refusal score, and how far their controls get."""

import numpy as np
import pandas as pd
from scipy import stats

from ot_lens.tables.schema import REMOVE, SINGLE
from ot_lens.tables.selection import at_one_setting, controls_of, measured, not_controls, select

SHIFT = "refusal_score_shift"
KEYS = ["method", "k", "layer"]
COLUMNS = [*KEYS, "control", "value", "low", "high", "n", "draws", "unit"]


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
