"""Principal components from the n x n Gram matrix of n samples of width d >> n, batched over layers."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.linalg.centring import EPS, centring_rounding
from ot_lens.linalg.threads import one_thread


def gram_spectrum(
    Z: Float64[Tensor, "*L n d"],
) -> tuple[Float64[Tensor, "*L m"], Float64[Tensor, "*L n m"]]:
    """The m = min(n, d) leading eigenvalues of Z Z^T, largest first, not negative, and their eigenvectors.

    With more samples than coordinates the rows are first reduced to d by a QR: the side is min(n, d).
    """
    if Z.shape[-2] <= Z.shape[-1]:
        gram = Z @ Z.mT
        with one_thread():
            values, vectors = torch.linalg.eigh(gram)
    else:
        with one_thread():
            Q, R = torch.linalg.qr(Z)
            values, small = torch.linalg.eigh(R @ R.mT)
        vectors = Q @ small
    return values.flip(-1).clamp_min(0.0), vectors.flip(-1)


def numerical_rank(
    eigenvalues: Float64[Tensor, "*L m"], magnitude: Float64[Tensor, "*L"]
) -> Int64[Tensor, "*L"]:
    """Number of eigenvalues of a Gram matrix of centred rows that are above rounding.

    Two roundings count: that of the eigensolver, n * eps * the largest eigenvalue, and that of the centring,
    without which identical rows would have a rank.

    Args:
        eigenvalues: of Z Z^T, any order.
        magnitude: largest Euclidean norm of the rows before they were centred.
    """
    n = eigenvalues.shape[-1]
    solver = n * EPS * eigenvalues.amax(-1)
    centring = n * centring_rounding(magnitude, n) ** 2
    return (eigenvalues > torch.maximum(solver, centring).unsqueeze(-1)).sum(-1)


def principal_axes(
    Z: Float64[Tensor, "*L n d"],
    eigenvectors: Float64[Tensor, "*L n m"],
    k: int,
) -> Float64[Tensor, "*L d k"]:
    """Orthonormal top-k right singular vectors of Z, from the eigenvectors of Z Z^T.

    Z^T v / sqrt(lambda) loses orthogonality as lambda_1 / lambda_k grows, hence the QR, which also scales the
    columns; the sign of each axis is fixed by its largest coordinate, so that equal samples give equal axes
    on every machine.
    """
    # (v^T Z)^T rather than Z^T v: reading rows of Z in order is five times as fast.
    leading = eigenvectors[..., :k].mT @ Z
    with one_thread():
        Q = torch.linalg.qr(leading.mT).Q
    largest = Q.gather(-2, Q.abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -Q, Q)


def orthonormal_span(
    X: Float64[Tensor, "*L a d"], Y: Float64[Tensor, "*L b d"]
) -> tuple[Float64[Tensor, "*L d m"], Float64[Tensor, "*L a m"], Float64[Tensor, "*L b m"]]:
    """Q with orthonormal columns (m = min(a + b, d)) spanning the rows of X and Y; X Q and Y Q.

    Householder QR rather than the Gram matrix: it does not square the condition number.
    """
    rows = torch.cat([X, Y], dim=-2)
    with one_thread():
        Q, R = torch.linalg.qr(rows.mT)
    coordinates = R.mT
    return Q, coordinates[..., : X.shape[-2], :], coordinates[..., X.shape[-2] :, :]
