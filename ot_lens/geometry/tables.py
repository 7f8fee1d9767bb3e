"""Tidy tables: an estimate, the null it must be read against, and its interval."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats
from scipy.optimize import brentq
from torch import Tensor

TAIL = 0.025
COLUMNS = ("quantity", "value", "n", "null_mean", "null_low", "null_high", "low", "high", "unit")


def null_band(null: Float64[Tensor, " R"] | None) -> dict[str, float]:
    """Mean and 95 % band of the null draws; NaN without any.

    The ends are draws: of R the floor(0.025 (R + 1))-th from either side, so that under the null, where the
    value is one more draw, it lies outside with a probability of at most 5 % (Davison & Hinkley 1997, 4.2.5).
    That needs 39 draws; with fewer the band is their whole range, and the probability 2 / (R + 1).
    """
    mean, (low, high) = _mean_and_band(null)
    return {"null_mean": mean, "null_low": low, "null_high": high}


def interval(
    value: float,
    resampled: Float64[Tensor, " B"] | None,
    n: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    *,
    factor: bool = False,
) -> dict[str, float]:
    """95 % interval of the expected estimate at this n: the bootstrap's percentiles about the estimate.

    A resample repeats prompts, which biases distances upward and ranks downward by about as much again as the
    sample itself; a plain percentile interval would then miss its own estimate. The percentiles are therefore
    moved so that their mean sits on the estimate, and the interval says how much the estimate would scatter
    over other prompts at this n. It is no interval of the value of infinitely many prompts: the bias of the
    estimate is what the null shows. Percentiles are stretched by sqrt(n / (n - 2)), because resamples of n
    prompts about two means scatter too little, and by the quantile of Student's t over that of the normal
    distribution (Hesterberg 2015, The American Statistician 69, section 5.1).

    Args:
        value: the estimate.
        resampled: the same of resamples; None for none.
        n: prompts it rests on.
        bounds: what no estimate can lie beyond.
        factor: the error of a positive estimate is a factor, as that of a variance: the interval is made of
            logarithms, and pivotal, because such an error is long upward.
    """
    if factor and resampled is not None:
        if not value > 0:
            return {"low": np.nan, "high": np.nan}
        logs = interval(np.log(value), -resampled.log(), n)
        return {name: float(np.clip(np.exp(end), *bounds)) for name, end in logs.items()}
    mean, ends = _mean_and_band(resampled)
    freedom = max(n - 2, 1)
    stretch = np.sqrt(n / freedom) * stats.t.ppf(1 - TAIL, freedom) / stats.norm.ppf(1 - TAIL)
    low, high = (float(np.clip(value + stretch * (end - mean), *bounds)) for end in ends)
    return {"low": low, "high": high}


def _mean_and_band(draws: Float64[Tensor, " R"] | None) -> tuple[float, tuple[float, float]]:
    found = torch.empty(0) if draws is None else draws[torch.isfinite(draws)].sort().values
    if len(found) < 2:
        return np.nan, (np.nan, np.nan)
    # 1e-9: of 199 draws the fifth, whatever 0.025 * 200 rounds to.
    beyond = max(1, int(TAIL * (len(found) + 1) + 1e-9))
    return float(found.mean()), (float(found[beyond - 1]), float(found[-beyond]))


def row(
    labels: Mapping[str, Any],
    value: float,
    n: int,
    null: Float64[Tensor, " R"] | None,
    resampled: Float64[Tensor, " B"] | None,
    unit: str,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    *,
    factor: bool = False,
) -> dict[str, Any]:
    """One measured quantity with everything it must be read with."""
    return {
        **labels,
        "value": value,
        "n": n,
        **null_band(null),
        **interval(value, resampled, n, bounds, factor=factor),
        "unit": unit,
    }


def auc_row(
    labels: Mapping[str, Any],
    value: float,
    sizes: tuple[int, int],
    folds: int,
    null: Float64[Tensor, " R"] | None,
    resampled: Float64[Tensor, " B"] | None,
    *,
    retrained: bool = True,
) -> dict[str, Any]:
    """A cross-fitted AUC, whose interval is nowhere inside that of Newcombe.

    Resamples of classes that do not overlap never overlap, however few prompts there are. Nor do resamples of
    held-out scores show what was trained on overlapping prompts: unless every resample is trained anew, the
    variance is multiplied by 1 + folds / (folds - 1) (Nadeau & Bengio 2003, Machine Learning 52, 239-281).
    """
    found = row(labels, value, sum(sizes), null, resampled, "AUC", (0.0, 1.0))
    if resampled is None or np.isnan(value):
        return found
    low, high = newcombe(value, sizes, folds, 1.0 if retrained else 1 + folds / (folds - 1))
    return {**found, "low": float(np.fmin(found["low"], low)), "high": float(np.fmax(found["high"], high))}


def newcombe(value: float, sizes: tuple[int, int], folds: int, inflation: float = 1.0) -> tuple[float, float]:
    """95 % score interval of an AUC (Newcombe 2006, Statistics in Medicine 25, 559-573, method 5).

    The mean over folds of AUCs of n / folds and m / folds samples has the variance of one of them over folds.
    """
    n, m = (size / folds for size in sizes)
    more = max((n + m) / 2 - 1, 0.0)

    def variance(auc: float) -> float:
        pairs = n * m * folds / inflation
        return auc * (1 - auc) * (1 + more * ((1 - auc) / (2 - auc) + auc / (1 + auc))) / pairs

    def beyond(auc: float) -> float:
        return (auc - value) ** 2 - stats.norm.ppf(1 - TAIL) ** 2 * variance(auc)

    # 0 and 1 solve the equation too, but bound nothing.
    low = 0.0 if value <= 0 else brentq(beyond, 0.0, min(value, 1 - 1e-9))
    high = 1.0 if value >= 1 else brentq(beyond, max(value, 1e-9), 1.0)
    return float(low), float(high)
