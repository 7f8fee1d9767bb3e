"""Decompositions batched over layers: components of n samples of width d >> n, and small PSD matrices."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.linalg.centring import EPS, Pooled, centring_rounding
from ot_lens.linalg.threads import one_thread


def gram_spectrum(Z: Float64[Tensor, "*L n d"]) -> tuple[Float64[Tensor, "*L m"], Float64[Tensor, "*L n m"]]:
    """The m = min(n, d) leading eigenvalues of Z Z^T, largest first, not negative, and their eigenvectors."""
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
    """Number of eigenvalues of Z Z^T above rounding; `magnitude` is the largest norm of an uncentred row."""
    n = eigenvalues.shape[-1]
    solver = n * EPS * eigenvalues.amax(-1)
    # Without the rounding of the centring, identical rows would have a rank.
    centring = n * centring_rounding(magnitude, n) ** 2
    return (eigenvalues > torch.maximum(solver, centring).unsqueeze(-1)).sum(-1)


def principal_axes(
    Z: Float64[Tensor, "*L n d"], eigenvectors: Float64[Tensor, "*L n m"], k: int
) -> Float64[Tensor, "*L d k"]:
    """Orthonormal top-k right singular vectors of Z, from the eigenvectors of Z Z^T."""
    # (v^T Z)^T rather than Z^T v: reading rows of Z in order is five times as fast.
    leading = eigenvectors[..., :k].mT @ Z
    # Z^T v / sqrt(lambda) loses orthogonality as lambda_1 / lambda_k grows, hence the QR.
    with one_thread():
        Q = torch.linalg.qr(leading.mT).Q
    # Equal samples give equal axes, signs included.
    largest = Q.gather(-2, Q.abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -Q, Q)


@dataclass(frozen=True)
class PooledPCA(Pooled):
    """Samples about their pooled mean, and their spectrum."""

    eigenvalues: Float64[Tensor, "*L m"]
    eigenvectors: Float64[Tensor, "*L N m"]
    rank: Int64[Tensor, "*L"]

    @classmethod
    def of(cls, H: Float64[Tensor, "*L n_H d"], S: Float64[Tensor, "*L n_S d"]) -> "PooledPCA":
        """From the Gram matrix of the centred samples."""
        pooled = Pooled.of(H, S)
        values, vectors = gram_spectrum(pooled.Z)
        return cls(pooled.Z, pooled.mean, values, vectors, numerical_rank(values, pooled.magnitude))

    def axes(self, k: int) -> Float64[Tensor, "*L d k"]:
        """Top-k components."""
        return principal_axes(self.Z, self.eigenvectors, k)

    def scores(self) -> Float64[Tensor, "*L N m"]:
        """The samples in the basis of all their components: an isometry, so nothing but the basis changes."""
        return self.eigenvectors * self.eigenvalues.sqrt().unsqueeze(-2)

    def take(self, layers: list[int]) -> "PooledPCA":
        """The same for some of the layers."""
        if len(layers) == self.Z.shape[0]:
            return self
        return PooledPCA(*(part[layers] for part in vars(self).values()))


def orthonormal_span(
    X: Float64[Tensor, "*L a d"], Y: Float64[Tensor, "*L b d"]
) -> tuple[Float64[Tensor, "*L d m"], Float64[Tensor, "*L a m"], Float64[Tensor, "*L b m"]]:
    """Q with orthonormal columns (m = min(a + b, d)) spanning the rows of X and Y; X Q and Y Q."""
    rows = torch.cat([X, Y], dim=-2)
    # Householder QR rather than the Gram matrix: it does not square the condition number.
    with one_thread():
        Q, R = torch.linalg.qr(rows.mT)
    coordinates = R.mT
    return Q, coordinates[..., : X.shape[-2], :], coordinates[..., X.shape[-2] :, :]


def symmetric_part(A: Float64[Tensor, "*L m m"]) -> Float64[Tensor, "*L m m"]:
    """(A + A^T) / 2."""
    return (A + A.mT) / 2


def psd_eigen(
    C: Float64[Tensor, "*L m m"],
) -> tuple[Float64[Tensor, "*L m"], Float64[Tensor, "*L m m"], Int64[Tensor, "*L"]]:
    """Eigenvalues (ascending, negative ones set to 0), eigenvectors, and how many are truly negative."""
    with one_thread():
        values, vectors = torch.linalg.eigh(symmetric_part(C))
    # The backward error of the symmetric eigensolver.
    rounding = C.shape[-1] * torch.finfo(C.dtype).eps * values.abs().amax(-1, keepdim=True)
    return values.clamp_min(0.0), vectors, (values < -rounding).sum(-1)


def matrix_power(
    values: Float64[Tensor, "*L m"], vectors: Float64[Tensor, "*L m m"], exponent: float
) -> Float64[Tensor, "*L m m"]:
    """A power of a symmetric matrix from its eigenvalues and eigenvectors."""
    return (vectors * values.pow(exponent).unsqueeze(-2)) @ vectors.mT


def monge_matrix(
    root_H: Float64[Tensor, "*L m m"],
    inverse_root_H: Float64[Tensor, "*L m m"],
    root_S: Float64[Tensor, "*L m m"],
) -> Float64[Tensor, "*L m m"]:
    """A with A C_H A = C_S, symmetric and positive semidefinite, from C_H^{1/2}, C_H^{-1/2} and C_S^{1/2}.

    With C_S^{1/2} C_H^{1/2} = W diag(s) R^T, the closed form of Knott & Smith (1984) equals
    C_S^{1/2} W R^T C_H^{-1/2}, whose error grows only with the square root of the condition number.
    """
    product = root_S @ root_H
    with one_thread():
        W, _, Rt = torch.linalg.svd(product)
    return symmetric_part(root_S @ (W @ Rt) @ inverse_root_H)


def nuclear_norm(M: Float64[Tensor, "*L m n"], *, fast: bool = False) -> Float64[Tensor, "*L"]:
    """Sum of the singular values; `fast`, for nulls and resamples, within m sqrt(m eps) of the largest."""
    if not fast:
        with one_thread():
            return torch.linalg.svdvals(M).sum(-1)
    product = M @ M.mT if M.shape[-2] <= M.shape[-1] else M.mT @ M
    with one_thread():
        return torch.linalg.eigvalsh(product).clamp_min(0.0).sqrt().sum(-1)
