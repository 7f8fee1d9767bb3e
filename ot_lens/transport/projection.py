"""Orthogonal projections: directional ablation and affine concept editing (ACE)."""

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import checks_samples, mean_gap
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import PROJECTION, Method


def unit_directions(
    H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]
) -> tuple[Float64[Tensor, "L d"], Float64[Tensor, "L d"]]:
    """r^ = (mu_H - mu_S) / ||mu_H - mu_S|| and mu_S.

    Raises:
        FitError: the class means coincide up to rounding, so there is no direction.
    """
    gap, rounding = mean_gap(H, S)
    norm = gap.norm(dim=-1)
    if bool((norm <= rounding).any()):
        distance = float(norm[norm <= rounding][0])
        raise FitError(
            f"the class means coincide (distance {distance:.1e}): there is no direction to ablate; "
            "choose another layer or position"
        )
    return -gap / norm.unsqueeze(-1), S.mean(1)


def directional_ablation_batch(
    H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]
) -> list[AffineMap]:
    """`fit_directional_ablation` at every layer."""
    directions, _ = unit_directions(H, S)
    info = FitInfo(method="directional_ablation", k=1, n_harmful=H.shape[1], n_harmless=S.shape[1])
    return [ablation_of(direction.unsqueeze(1), info) for direction in directions]


def ace_batch(H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]) -> list[AffineMap]:
    """`fit_ace` at every layer."""
    directions, means = unit_directions(H, S)
    info = FitInfo(method="ace", k=1, n_harmful=H.shape[1], n_harmless=S.shape[1])
    return [
        ablation_of(direction.unsqueeze(1), info, keep=mean)
        for direction, mean in zip(directions, means, strict=True)
    ]


def ablation_of(
    Q: Float64[Tensor, "d k"], info: FitInfo, *, keep: Float64[Tensor, " d"] | None = None
) -> AffineMap:
    """X - Q Q^T (x - keep), Q orthonormal; keep = 0 unless given."""
    bias = torch.zeros_like(Q[:, 0]) if keep is None else Q @ (Q.T @ keep)
    return AffineMap(-Q, Q, bias, info=info)


@checks_samples
def fit_directional_ablation(H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"]) -> AffineMap:
    """T(x) = x - r^ r^T x (Arditi et al. 2024, arXiv 2406.11717).

    Raises:
        ActivationError: samples that cannot be used (see `check_samples`).
        FitError: the class means coincide.
    """
    return directional_ablation_batch(H.unsqueeze(0), S.unsqueeze(0))[0]


@checks_samples
def fit_ace(H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"]) -> AffineMap:
    """T(x) = x - r^ r^T (x - mu_S): affine concept editing (arXiv 2411.09003).

    Raises:
        ActivationError: samples that cannot be used (see `check_samples`).
        FitError: the class means coincide.
    """
    return ace_batch(H.unsqueeze(0), S.unsqueeze(0))[0]


_ABLATION = Method(
    "directional_ablation",
    "Directional ablation",
    PROJECTION,
    fit_directional_ablation,
    directional_ablation_batch,
    formula="x - r rᵀ x",
    source="Arditi et al. 2024",
    group="Projection",
    colour="#AA4499",
    marker="down",
    dash="solid",
    order=10,
)
RECORDS = (
    _ABLATION,
    replace(
        _ABLATION,
        name="rfa",
        label="RFA (every block)",
        formula="x - r rᵀ x at every block input, attention output and MLP output",
        everywhere=True,
        colour="#7A6FC0",
        marker="right",
        dash="dash",
        order=20,
    ),
    Method(
        "ace",
        "ACE",
        PROJECTION,
        fit_ace,
        ace_batch,
        formula="x - r rᵀ (x - μ_S)",
        source="arXiv 2411.09003",
        reversible=True,
        group="Projection",
        colour="#C2607F",
        marker="left",
        dash="dashdot",
        order=30,
    ),
)
