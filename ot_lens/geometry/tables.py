"""Rows of the tidy tables: an estimate, the null to compare it with, and its interval."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from ot_lens.geometry.quantities import Quantity
from ot_lens.statistics.intervals import auc_interval, bootstrap_interval, null_band

COLUMNS = ("quantity", "value", "n", "null_mean", "null_low", "null_high", "low", "high", "unit")


def row(
    keys: Mapping[str, Any],
    quantity: Quantity,
    value: float,
    n: int,
    null: Float64[Tensor, " R"] | None = None,
    resampled: Float64[Tensor, " B"] | None = None,
) -> dict[str, Any]:
    """One measured quantity at one layer and position."""
    return {
        **keys,
        "quantity": quantity.name,
        "value": value,
        "n": n,
        **null_band(null),
        **bootstrap_interval(value, resampled, n, quantity.bounds, scale=quantity.scale),
        "unit": quantity.unit,
    }


def auc_row(
    keys: Mapping[str, Any],
    quantity: Quantity,
    value: float,
    sizes: tuple[int, int],
    folds: int,
    null: Float64[Tensor, " R"] | None,
    resampled: Float64[Tensor, " B"] | None,
    *,
    retrained: bool = True,
) -> dict[str, Any]:
    """A cross-fitted AUC, whose interval contains that of Newcombe.

    Resamples of classes that do not overlap never overlap, however few prompts there are. Nor do resamples of
    held-out scores show the effect of training on overlapping prompts: unless every resample is trained
    anew, the variance is multiplied by 1 + folds / (folds - 1) (Nadeau & Bengio 2003, Machine Learning 52).
    """
    entry = row(keys, quantity, value, sum(sizes), null, resampled)
    if resampled is None or np.isnan(value):
        return entry
    low, high = auc_interval(value, sizes, folds, 1.0 if retrained else 1 + folds / (folds - 1))
    return {**entry, "low": float(np.fmin(entry["low"], low)), "high": float(np.fmax(entry["high"], high))}
