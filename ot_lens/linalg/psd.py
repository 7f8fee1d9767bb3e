"""Positive semidefinite matrices of a small side (classes, components), batched over leading dimensions."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.linalg.threads import one_thread


def symmetric_part(A: Float64[Tensor, "*L m m"]) -> Float64[Tensor, "*L m m"]:
    """(A + A^T) / 2."""
    return (A + A.mT) / 2


def psd_eigen(
    C: Float64[Tensor, "*L m m"],
) -> tuple[Float64[Tensor, "*L m"], Float64[Tensor, "*L m m"], Int64[Tensor, "*L"]]:
    """Eigenvalues (ascending, negative ones set to 0), eigenvectors, and the number of truly negative ones.

    Truly negative: beyond m * eps * the largest eigenvalue, the backward error of the symmetric eigensolver.
    """
    with one_thread():
        values, vectors = torch.linalg.eigh(symmetric_part(C))
    rounding = C.shape[-1] * torch.finfo(C.dtype).eps * values.abs().amax(-1, keepdim=True)
    return values.clamp_min(0.0), vectors, (values < -rounding).sum(-1)


def monge_matrix(
    root_H: Float64[Tensor, "*L m m"],
    inverse_root_H: Float64[Tensor, "*L m m"],
    root_S: Float64[Tensor, "*L m m"],
) -> Float64[Tensor, "*L m m"]:
    """A with A C_H A = C_S, symmetric and positive semidefinite, from C_H^{1/2}, C_H^{-1/2} and C_S^{1/2}.

    With C_S^{1/2} C_H^{1/2} = W diag(s) R^T, the closed form of Knott & Smith (1984),
    C_H^{-1/2} (C_H^{1/2} C_S C_H^{1/2})^{1/2} C_H^{-1/2}, equals C_S^{1/2} W R^T C_H^{-1/2}.
    Only roots are multiplied, so the error grows with the square root of the condition number, not with it.
    """
    product = root_S @ root_H
    with one_thread():
        W, _, Rt = torch.linalg.svd(product)
    return symmetric_part(root_S @ (W @ Rt) @ inverse_root_H)


def nuclear_norm(M: Float64[Tensor, "*L m n"], *, fast: bool = False) -> Float64[Tensor, "*L"]:
    """Sum of the singular values.

    Args:
        M: matrices of a small side.
        fast: through the eigenvalues of M M^T: about half the time, with an absolute error of at most
            m * sqrt(m * eps) * the largest singular value (2e-5 of it at m = 128, usually 1e-9); meant
            for permutation nulls and bootstrap replicates.
    """
    if not fast:
        with one_thread():
            return torch.linalg.svdvals(M).sum(-1)
    product = M @ M.mT if M.shape[-2] <= M.shape[-1] else M.mT @ M
    with one_thread():
        return torch.linalg.eigvalsh(product).clamp_min(0.0).sqrt().sum(-1)
