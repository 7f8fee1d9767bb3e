"""Distances between the classes under every draw, all squared, in squared activation units."""

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ot_lens.geometry.resampled_moments import DrawnClasses, DrawnShapes, Values
from ot_lens.linalg import monotone_coupling, nuclear_norm
from ot_lens.statistics.resampling import Resamples

MAX_ASSIGNMENT = 256


def wasserstein(classes: DrawnClasses, *, fast: bool) -> Values:
    """Both terms of W2^2 of the Gaussians with the classes' moments (Gelbrich 1990; not halved)."""
    location, shape = classes.location(), bures(classes, fast=fast)
    return {
        "w2_squared": location + shape,
        "w2_location": location,
        "w2_bures": shape,
        "direction_norm": location.sqrt(),
    }


def bures(classes: DrawnClasses | DrawnShapes, *, fast: bool) -> Float64[Tensor, " R"]:
    """The term of `wasserstein` that does not depend on means."""
    # The trace of (S_H^{1/2} S_S S_H^{1/2})^{1/2}.
    shared = nuclear_norm(classes.cross(), fast=fast)
    return (sum(classes.traces()) - 2 * shared).clamp_min(0.0)


def sliced(projected: Float64[Tensor, "p N"], draws: Resamples) -> Values:
    """Mean of the one-dimensional W2^2 over random unit directions (Rabin et al. 2012)."""
    X, Y = projected[:, draws.source], projected[:, draws.target]
    return {"sliced_w2": line_distance(X, Y).mean(0)}


def line_distance(X: Float64[Tensor, "*R n_H"], Y: Float64[Tensor, "*R n_S"]) -> Float64[Tensor, "*R"]:
    """Exact W2^2 of equally weighted points on a line."""
    i, j, mass = monotone_coupling(X.shape[-1], Y.shape[-1], X.device)
    X, Y = X.sort(-1).values, Y.sort(-1).values
    gap = X - Y if X.shape == Y.shape else X[..., i] - Y[..., j]
    return gap.square() @ mass


def empirical(gram: Float64[Tensor, "N N"], draws: Resamples) -> Values:
    """Exact W2^2 of the samples themselves, by assignment; NaN above MAX_ASSIGNMENT samples a class."""
    if max(draws.sizes) > MAX_ASSIGNMENT:
        return {"empirical_w2": torch.full((draws.count,), torch.nan, dtype=gram.dtype)}
    squares = gram.diagonal()
    cost = (squares.unsqueeze(1) + squares - 2 * gram).clamp_min(0.0).numpy()
    pairs = zip(draws.source.numpy(), draws.target.numpy(), strict=True)
    values = [_transport_cost(cost[np.ix_(source, target)]) for source, target in pairs]
    return {"empirical_w2": torch.tensor(values, dtype=gram.dtype)}


def _transport_cost(cost: Float64[np.ndarray, "n_H n_S"]) -> float:
    """Of equally weighted points: an assignment for classes of one size, a linear program otherwise."""
    n_H, n_S = cost.shape
    if n_H == n_S:
        rows, columns = linear_sum_assignment(cost)
        return float(cost[rows, columns].mean())
    import ot

    return float(ot.emd2(np.full(n_H, 1 / n_H), np.full(n_S, 1 / n_S), np.ascontiguousarray(cost)))
