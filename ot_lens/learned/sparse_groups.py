"""The sparse group lasso: parameters in groups, of which it sets single ones and whole groups to zero.

R(q) = sum_l weight_l ((1 - share) ||q_l||_2 + share ||q_l||_1 / sqrt(p)), with p parameters in each group
(Simon, Friedman, Hastie & Tibshirani 2013).
"""

import torch
from jaxtyping import Float64
from torch import Tensor

BISECTIONS = 60


def soft_threshold(x: Float64[Tensor, "L p"], by: Float64[Tensor, " L"]) -> Float64[Tensor, "L p"]:
    """Each number moved towards zero, at most to it."""
    return x.sign() * (x.abs() - by.unsqueeze(1)).clamp_min(0)


def penalty_of(
    q: Float64[Tensor, "L p"], weights: Float64[Tensor, " L"], share: float
) -> Float64[Tensor, ""]:
    """R(q)."""
    groups, single = q.norm(dim=1), q.abs().sum(1) / q.shape[1] ** 0.5
    return (weights * ((1 - share) * groups + share * single)).sum()


def proximal(
    q: Float64[Tensor, "L p"], weights: Float64[Tensor, " L"], share: float
) -> Float64[Tensor, "L p"]:
    """The minimizer of ||x - q||^2 / 2 + R(x): single parameters first, then the groups."""
    kept = soft_threshold(q, share * weights / q.shape[1] ** 0.5)
    norms = kept.norm(dim=1)
    shrunk = (norms - (1 - share) * weights).clamp_min(0)
    return kept * torch.where(shrunk > 0, shrunk / norms, 0.0).unsqueeze(1)


def critical_weights(gradient: Float64[Tensor, "L p"], share: float) -> Float64[Tensor, " L"]:
    """The smallest weight of each group at which it stays at zero, given the gradient of the loss there."""
    low, high = gradient.new_zeros(len(gradient)), gradient.norm(dim=1) * gradient.shape[1] ** 0.5
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        moves = proximal(gradient, middle, share).any(dim=1)
        low, high = torch.where(moves, middle, low), torch.where(moves, high, middle)
    return high
