"""Coordinate-wise optimal transport, Linear-AcT (Rodriguez et al. 2024, arXiv 2410.23054)."""

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.linalg import centred, mean_gap, monotone_coupling
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import TRANSPORT


@defines_method(
    "linear_act",
    "Linear-AcT",
    TRANSPORT,
    formula="ω ⊙ x + β",
    source="Rodriguez et al. 2024",
    reversible=True,
    group="Shift, coordinate-wise",
    colour="#9C6B45",
    marker="plus",
    dash="dash",
    order=70,
)
def fit_linear_act(H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]) -> list[AffineMap]:
    """T(x) = omega * x + beta: the least-squares line through each coordinate's optimal coupling.

    omega = sum(a~ b~) / sum(a~^2) over sorted, centred samples; classes of different size are coupled by
    the exact one-dimensional plan. See `restrict_to_support` for the paper's optional mask.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
    """
    (Z_H, mean_H), (Z_S, mean_S) = centred(H), centred(S)
    a, b = Z_H.sort(1).values, Z_S.sort(1).values
    i, j, mass = monotone_coupling(H.shape[1], S.shape[1], H.device)
    weight = mass.unsqueeze(1)
    covariance, variance = (weight * a[:, i] * b[:, j]).sum(1), a.square().mean(1)
    # A coordinate that is constant in the source says nothing about its scale: it is shifted only.
    constant = variance == 0
    omega = torch.where(constant, 1.0, covariance / variance.clamp_min(torch.finfo(H.dtype).tiny))
    beta = torch.where(constant, mean_gap(H, S)[0], mean_S - omega * mean_H)
    none = H.new_zeros(H.shape[-1], 0)
    info = FitInfo(k=0)
    return [AffineMap(none, none, shift, scale, info) for shift, scale in zip(beta, omega, strict=True)]
