"""The distribution that a map was fitted on, and what lies outside it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from scipy import stats
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.gaussian import Gaussian

FOLDS = 5
QUANTILE = 0.999
# The same quantile of one standard normal coordinate: no limit is tighter, whatever the folds say.
LEAST = 3.29


@dataclass(frozen=True, eq=False)
class Domain:
    """The source of a fit at one layer, and the distance from its mean within which almost all of it lies."""

    gaussian: Gaussian
    limit: float

    @classmethod
    def of(cls, samples: Float64[Tensor, "n d"]) -> "Domain":
        """From the samples of the fit; the limit is the 99.9 % quantile of their own held-out distances."""
        held_out = []
        for fold in range(min(FOLDS, len(samples))):
            rest = torch.ones(len(samples), dtype=torch.bool)
            rest[fold::FOLDS] = False
            if rest.sum() > 1:
                held_out.append(_gaussian(samples[rest]).mahalanobis(samples[~rest]))
        distances = torch.cat(held_out).numpy() if held_out else np.array([])
        return cls(_gaussian(samples), _limit(distances))

    def outside(self, x: Float64[Tensor, "n d"]) -> Bool[Tensor, " n"]:
        """Whether each of some activations lies outside."""
        return self.gaussian.mahalanobis(x) > self.limit


def _limit(distances: Float64[np.ndarray, " n"]) -> float:
    """Their 99.9 % quantile; of a few, the prediction limit of one more if their logarithms are normal."""
    if len(distances) < 2:
        return float("inf")
    logs = np.log(np.maximum(distances, np.finfo(float).tiny))
    spread = float(logs.std(ddof=1)) * math.sqrt(1 + 1 / len(logs))
    predicted = math.exp(float(logs.mean()) + float(stats.t.ppf(QUANTILE, len(logs) - 1)) * spread)
    return max(float(np.quantile(distances, QUANTILE)), predicted, LEAST)


def _gaussian(samples: Float64[Tensor, "n d"]) -> Gaussian:
    """Shrunk covariance; a small ridge where samples do not vary, as where all prompts end in one token."""
    fitted = Gaussian.fit(samples, shrinkage="ledoit_wolf")
    try:
        fitted.mahalanobis(samples[:1])
    except FitError:
        ridge = 1e-9 * float(samples.square().mean()) + 1e-30
        return Gaussian.fit(samples, shrinkage="ledoit_wolf", ridge=ridge)
    return fitted
