"""The null-space constraint: an affine map that leaves the harmless activations' subspace alone."""

import dataclasses

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import check_pair, gram_spectrum, principal_axes
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.maps import ActivationMap, check_width

VARIANCE = 0.99
RELATIVE_RIDGE = 1e-2


def null_space(
    map: ActivationMap,  # noqa: A002
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    *,
    variance: float = VARIANCE,
    ridge: float = RELATIVE_RIDGE,
) -> AffineMap:
    """Move the source as a map does, but nothing within the subspace of the target samples.

    With Q the top eigenvectors of the uncentred second moment of S that hold the given share of it,
    R = H (I - Q Q^T) and D = T(H) - H, it is T'(x) = x + D^T (R R^T + a I)^{-1} R x: the ridge regression of
    the displacement on what of x lies outside Q. This is the constraint of AlphaSteer (arXiv 2506.07022,
    section 4), for the displacement of any map. T' is affine, of rank at most n_H, and T'(x) = x for x in Q.

    Args:
        map: The map whose displacement of the source is imitated; any kind.
        H: Source samples `[n_H, d]`.
        S: Target samples `[n_S, d]`.
        variance: Share of the target's second moment in Q, in (0, 1].
        ridge: a, relative to the mean of the diagonal of R R^T.

    Returns:
        The constrained map; `info.null_space_rank` is the rank of Q.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: If the map has another width, an option is out of range, or the source lies within Q.
    """
    source, target = check_pair(H, S)
    check_width(map, source)
    if not 0.0 < variance <= 1.0:
        raise FitError(f"variance = {variance} is outside (0, 1].")
    if not ridge > 0.0:
        raise FitError(f"ridge = {ridge} must be positive.")
    Q = _subspace(target, variance)
    R = source - (source @ Q) @ Q.T
    gram = R @ R.T
    size = float(gram.diagonal().mean())
    if size <= torch.finfo(R.dtype).eps ** 1.5 * float(source.square().sum(1).mean()):
        raise FitError(
            f"The source lies within the {Q.shape[1]} dimensions that hold {variance:.1%} of the target: "
            "choose a smaller variance."
        )
    gram.diagonal().add_(ridge * size)
    displacement = map.map(source) - source
    # A shift and k components displace within k + 1 dimensions, and so does what imitates them.
    values, vectors = torch.linalg.eigh(displacement @ displacement.T)
    E = vectors[:, values > len(source) * torch.finfo(values.dtype).eps * values[-1]]
    V = R.T @ torch.linalg.solve(gram, E)
    V = V - Q @ (Q.T @ V)  # once more, so that Q is left alone to rounding
    info = dataclasses.replace(map.info, null_space_rank=Q.shape[1], null_space_variance=variance)
    return AffineMap(displacement.T @ E, V, torch.zeros_like(source[0]), info=info)


def _subspace(S: Float64[Tensor, "n d"], variance: float) -> Float64[Tensor, "d r"]:
    """Top right singular vectors of S that hold a share of its squared norm."""
    squares, vectors = gram_spectrum(S)
    held = squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(S.dtype).tiny)
    return principal_axes(S, vectors, int((held < variance * (1 - 1e-12)).sum()) + 1)
