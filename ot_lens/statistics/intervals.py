"""Bands of null draws and intervals from bootstrap resamples."""

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats
from scipy.optimize import brentq
from torch import Tensor

TAIL = 0.025
NORMAL = float(stats.norm.ppf(1 - TAIL))
UNBOUNDED = (-np.inf, np.inf)


def null_band(null: Float64[Tensor, " R"]) -> dict[str, float]:
    """Mean and 95 % band of the null draws; NaN without any."""
    mean, (low, high) = _mean_and_band(null)
    return {"null_mean": mean, "null_low": low, "null_high": high}


def bootstrap_interval(
    value: float,
    resampled: Float64[Tensor, " B"],
    n: int,
    bounds: tuple[float, float] = UNBOUNDED,
    *,
    scale: str = "linear",
) -> dict[str, float]:
    """95 % interval of the expected estimate at this n: the bootstrap's percentiles about the estimate.

    A resample repeats prompts, which biases distances upward and ranks downward by about as much again as the
    sample itself, so the percentiles are moved until their mean is the estimate. They are stretched by
    sqrt(n / (n - 2)), because resamples about two means vary too little, and by the quantile of Student's t
    over that of the normal distribution (Hesterberg 2015, The American Statistician 69, section 5.1).
    On a "log" scale the interval is pivotal, because an error that is a factor has a long upper tail.
    """
    if scale == "log":
        if not value > 0:
            return {"low": np.nan, "high": np.nan}
        logs = bootstrap_interval(np.log(value), -resampled.log(), n)
        return {name: float(np.clip(np.exp(end), *bounds)) for name, end in logs.items()}
    mean, ends = _mean_and_band(resampled)
    freedom = max(n - 2, 1)
    stretch = np.sqrt(n / freedom) * stats.t.ppf(1 - TAIL, freedom) / NORMAL
    low, high = (float(np.clip(value + stretch * (end - mean), *bounds)) for end in ends)
    return {"low": low, "high": high}


def _mean_and_band(draws: Float64[Tensor, " R"]) -> tuple[float, tuple[float, float]]:
    ordered = draws[torch.isfinite(draws)].sort().values
    if len(ordered) < 2:
        return np.nan, (np.nan, np.nan)
    # The floor(0.025 (R + 1))-th of R draws from either side: under the null the value, one more draw, lies
    # outside with a probability of at most 5 % (Davison & Hinkley 1997, 4.2.5).
    # 1e-9: of 199 draws the fifth, whatever 0.025 * 200 rounds to.
    beyond = max(1, int(TAIL * (len(ordered) + 1) + 1e-9))
    return float(ordered.mean()), (float(ordered[beyond - 1]), float(ordered[-beyond]))


def auc_interval(
    value: float, sizes: tuple[int, int], folds: int, inflation: float = 1.0
) -> tuple[float, float]:
    """95 % score interval of an AUC (Newcombe 2006, Statistics in Medicine 25, 559-573, method 5)."""
    # The mean over folds of AUCs of n / folds and m / folds samples: the variance of one of them over folds.
    n, m = (size / folds for size in sizes)
    more = max((n + m) / 2 - 1, 0.0)

    def variance(auc: float) -> float:
        pairs = n * m * folds / inflation
        return auc * (1 - auc) * (1 + more * ((1 - auc) / (2 - auc) + auc / (1 + auc))) / pairs

    def beyond(auc: float) -> float:
        return (auc - value) ** 2 - NORMAL**2 * variance(auc)

    # 0 and 1 solve the equation too, but bound nothing.
    low = 0.0 if value <= 0 else brentq(beyond, 0.0, min(value, 1 - 1e-9))
    high = 1.0 if value >= 1 else brentq(beyond, max(value, 1e-9), 1.0)
    return float(low), float(high)
