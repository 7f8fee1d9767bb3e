"""Tests of normality of the projections, which the closed forms of transport assume."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ot_lens.geometry.resampled_moments import LABELS, Values
from ot_lens.linalg import gram_spectrum, principal_axes
from ot_lens.statistics.resampling import Resamples

COMPONENTS = 2
STATISTICS = ("mardia_skewness", "mardia_kurtosis", "henze_zirkler")


def gaussianity(scores: Float64[Tensor, "N k"], draws: Resamples, rounding: Tensor | float = 0.0) -> Values:
    """Mardia's skewness and kurtosis and the Henze-Zirkler statistic of each class's leading components."""
    return _named(normality(scores[rows], rounding) for rows in (draws.source, draws.target))


@lru_cache(maxsize=4)  # the same for every layer
def gaussian_null(sizes: tuple[int, int], k: int, count: int, seed: int) -> Values:
    """The statistics of Gaussian samples: they are affine invariant, so N(0, I) covers all."""
    samples = (
        torch.randn(count, n, k, generator=torch.Generator().manual_seed(seed + 4), dtype=torch.float64)
        for n in sizes
    )
    return _named(map(normality, samples))


def _named(statistics: Iterable[tuple[Float64[Tensor, " R"], ...]]) -> Values:
    return {
        f"{name}_{label}": value
        for label, values in zip(LABELS, statistics, strict=True)
        for name, value in zip(STATISTICS, values, strict=True)
    }


def normality(
    Y: Float64[Tensor, "R n k"], rounding: Tensor | float = 0.0
) -> tuple[Float64[Tensor, " R"], ...]:
    """Mardia (1970) b_1k and b_2k, and Henze & Zirkler (1990) T; NaN for a singular sample."""
    n, k = Y.shape[1:]
    Y = Y - Y.mean(1, keepdim=True)
    whitened, singular = _whitened(Y, rounding)
    # The Mahalanobis products y_i^T S^-1 y_j, S with the 1 / n convention of those papers.
    products = whitened @ whitened.mT
    own = products.diagonal(dim1=1, dim2=2)
    skewness, kurtosis = products.pow(3).mean((1, 2)), own.square().mean(1)
    apart = (own.unsqueeze(1) + own.unsqueeze(2) - 2 * products).clamp_min(0.0)
    # Henze & Zirkler 1990, eq. (2.2) with the smoothing parameter of eq. (1.5).
    beta = ((n * (2 * k + 1) / 4) ** (1 / (k + 4))) ** 2 / 2
    within = torch.exp(-beta / 2 * apart).mean((1, 2))
    against = 2 * (1 + beta) ** (-k / 2) * torch.exp(-beta / (2 * (1 + beta)) * own).mean(1)
    zirkler = n * (within - against + (1 + 2 * beta) ** (-k / 2))
    return tuple(value.masked_fill(singular, torch.nan) for value in (skewness, kurtosis, zirkler))


def _whitened(
    Y: Float64[Tensor, "R n k"], rounding: Tensor | float
) -> tuple[Float64[Tensor, "R n k"], Bool[Tensor, " R"]]:
    left, s, _ = torch.linalg.svd(Y, full_matrices=False)
    singular = (s[:, -1] <= 1e-10 * s[:, 0]) | (s[:, -1] <= Y.shape[1] ** 0.5 * rounding)
    if Y.shape[1] <= Y.shape[2]:
        singular = torch.ones_like(singular)
    return left * Y.shape[1] ** 0.5, singular


def leading_scores(Z: Float64[Tensor, "N d"]) -> Float64[Tensor, "N k"]:
    """Coordinates of the centred samples on their leading components."""
    return Z @ principal_axes(Z, gram_spectrum(Z)[1], COMPONENTS)
