"""Exact algebra of diagonal-plus-low-rank matrices."""

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import NotInvertibleError
from ot_lens.linalg import EPS


def compressed(
    U: Float64[Tensor, "d k"], V: Float64[Tensor, "d k"]
) -> tuple[Float64[Tensor, "d r"], Float64[Tensor, "d r"]]:
    """U' V'^T = U V^T with the fewest columns: U' orthonormal, V' orthogonal times the singular values."""
    if U.shape[1] == 0:
        return U, V
    Qu, Ru = torch.linalg.qr(U)
    Qv, Rv = torch.linalg.qr(V)
    W, s, Rt = torch.linalg.svd(Ru @ Rv.T)
    kept = s > max(U.shape) * EPS * s[0]
    return Qu @ W[:, kept], (Qv @ Rt.T[:, kept]) * s[kept]


def woodbury_inverse(
    U: Float64[Tensor, "d k"], V: Float64[Tensor, "d k"], scale: Float64[Tensor, " d"] | None, name: str
) -> tuple[Float64[Tensor, "d k"], Float64[Tensor, "d k"], Float64[Tensor, " d"] | None]:
    """U', V', scale' of (D + U V^T)^{-1} = D^{-1} - D^{-1} U (I + V^T D^{-1} U)^{-1} V^T D^{-1}."""
    stretch = torch.ones_like(U[:, 0]) if scale is None and U.shape[1] else scale
    if stretch is None:
        return U, V, None
    if bool((stretch == 0).any()):
        zeros = int((stretch == 0).sum())
        raise NotInvertibleError(
            f"{name} sends {zeros} coordinates to constants: nothing can bring them back."
        )
    left, right = U / stretch.unsqueeze(1), V / stretch.unsqueeze(1)
    coupling = V.T @ left
    _check_regular(coupling, name)
    capacitance = torch.eye(U.shape[1], dtype=U.dtype, device=U.device) + coupling
    solved = torch.linalg.solve(capacitance.T, left.T).T
    return -solved, right, None if scale is None else 1 / stretch


def _check_regular(coupling: Float64[Tensor, "k k"], name: str) -> None:
    k = coupling.shape[0]
    if k == 0:
        return
    # Rows are measured against what was summed in them: a projection cancels 1 - 1, a small eigenvalue not.
    rows = coupling.abs().amax(1).clamp_min(1.0).unsqueeze(1)
    balanced = (torch.eye(k, dtype=coupling.dtype, device=coupling.device) + coupling) / rows
    smallest = float(torch.linalg.svdvals(balanced)[-1])
    if smallest <= 64 * k * EPS:
        raise NotInvertibleError(
            f"{name} is a projection: it sends a whole direction to one value (smallest singular value "
            f"{smallest:.1e}) and cannot be inverted; use a transport map such as pca_ot, or strength < 1."
        )
