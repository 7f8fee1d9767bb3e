"""Orthogonal projections: directional ablation and affine concept editing (ACE)."""

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import mean_gap
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import METHODS, PROJECTION, register


def unit_directions(
    H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]
) -> tuple[Float64[Tensor, "L d"], Float64[Tensor, "L d"]]:
    """r^ = (mu_H - mu_S) / ||mu_H - mu_S|| and mu_S; an error where the means coincide up to rounding."""
    gap, rounding = mean_gap(H, S)
    norm = gap.norm(dim=-1)
    if bool((norm <= rounding).any()):
        distance = float(norm[norm <= rounding][0])
        raise FitError(
            f"The class means coincide (distance {distance:.1e}): there is no direction to ablate; "
            "choose another layer or position."
        )
    return -gap / norm.unsqueeze(-1), S.mean(1)


@defines_method(
    "directional_ablation",
    "Directional ablation",
    PROJECTION,
    formula="x - r rᵀ x",
    source="Arditi et al. 2024",
    group="Projection",
    colour="#AA4499",
    marker="down",
    dash="solid",
    order=10,
)
def fit_directional_ablation(H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]) -> list[AffineMap]:
    """T(x) = x - r^ r^T x (Arditi et al. 2024, arXiv 2406.11717).

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: If the class means coincide.
    """
    directions, _ = unit_directions(H, S)
    return [ablation_of(direction.unsqueeze(1), FitInfo(k=1)) for direction in directions]


register(
    replace(
        METHODS["directional_ablation"],
        name="rfa",
        label="RFA (every block)",
        formula="x - r rᵀ x at every block input, attention output and MLP output",
        everywhere=True,
        colour="#7A6FC0",
        marker="right",
        dash="dash",
        order=20,
    )
)


@defines_method(
    "ace",
    "ACE",
    PROJECTION,
    formula="x - r rᵀ (x - μ_S)",
    source="arXiv 2411.09003",
    reversible=True,
    group="Projection",
    colour="#C2607F",
    marker="left",
    dash="dashdot",
    order=30,
)
def fit_ace(H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]) -> list[AffineMap]:
    """T(x) = x - r^ r^T (x - mu_S): affine concept editing (arXiv 2411.09003).

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: If the class means coincide.
    """
    pairs = zip(*unit_directions(H, S), strict=True)
    return [ablation_of(direction.unsqueeze(1), FitInfo(k=1), keep=mean) for direction, mean in pairs]


def ablation_of(
    Q: Float64[Tensor, "d k"], info: FitInfo, *, keep: Float64[Tensor, " d"] | None = None
) -> AffineMap:
    """X - Q Q^T (x - keep), Q orthonormal; keep = 0 unless given."""
    bias = torch.zeros_like(Q[:, 0]) if keep is None else Q @ (Q.T @ keep)
    return AffineMap(-Q, Q, bias, info=info)
