"""Least-squares concept erasure for two classes (LEACE, Belrose et al. 2023, arXiv 2306.03819)."""

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.gaussian import checked_ridge
from ot_lens.linalg import PooledPCA, mean_gap
from ot_lens.moments import shrinkage_intensity
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import ERASURE
from ot_lens.transport.projection import unit_directions


@defines_method(
    "leace",
    "LEACE",
    ERASURE,
    formula="x - δ (Σ⁻¹δ)ᵀ (x - μ) / (δᵀ Σ⁻¹ δ)",
    source="Belrose et al. 2023",
    group="Projection",
    colour="#9A6A8B",
    marker="hexagon",
    dash="dashdot",
    order=50,
)
def fit_leace(
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    *,
    ridge: float | None = None,
    shrinkage: str | None = "ledoit_wolf",
) -> list[AffineMap]:
    """T(x) = x - delta (Sigma^-1 delta)^T (x - mu) / (delta^T Sigma^-1 delta), delta = mu_H - mu_S.

    For two classes Theorem 4.3 of the paper is this oblique rank-one projection: both class means land on one
    point, and of all affine maps that do so it moves x least in mean square, in every quadratic norm at once.
    Sigma is the pooled covariance about the pooled mean mu. The closed form on Gram matrices costs O(N^2 d);
    the concept-erasure package costs O(d^3).

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        ridge: variance added to every direction of Sigma, in squared activation units.
        shrinkage: "ledoit_wolf", "oas", or None for the pseudo-inverse.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: the class means coincide, a negative ridge, an unknown shrinkage.
    """
    added = checked_ridge(ridge)
    unit_directions(H, S)
    pca, n_H, n_S = PooledPCA.of(H, S), H.shape[1], S.shape[1]
    delta = -mean_gap(H, S)[0]
    N, d = pca.Z.shape[-2:]
    s = torch.zeros_like(delta[:, 0]) if shrinkage is None else shrinkage_intensity(pca.Z, shrinkage)
    variances = pca.eigenvalues / (N - 1)
    floor = s * variances.sum(-1) / d + added
    labels = torch.cat([delta.new_full((n_H,), 1 / n_H), delta.new_full((n_S,), -1 / n_S)])
    # Sigma^-1 delta = Z^T V (...)^-1 V^T labels, as delta = Z^T labels: whitening stays on the Gram side.
    kept = torch.arange(variances.shape[-1], device=delta.device) < pca.rank.unsqueeze(-1)
    inverse = torch.where(kept, 1 / ((1 - s).unsqueeze(-1) * variances + floor.unsqueeze(-1)), 0.0)
    weights = pca.eigenvectors @ (inverse * (labels @ pca.eigenvectors)).unsqueeze(-1)
    probe = (pca.Z.mT @ weights).squeeze(-1)
    intensities = [None] * len(s) if shrinkage is None else s.tolist()
    infos = (
        FitInfo(
            k=1,
            ridge=ridge,
            shrinkage=shrinkage,
            shrinkage_harmful=intensity,
            shrinkage_harmless=intensity,
            rank=rank,
        )
        for intensity, rank in zip(intensities, pca.rank.tolist(), strict=True)
    )
    return [_erasure(*layer) for layer in zip(delta, probe, pca.mean, infos, strict=True)]


def _erasure(
    delta: Float64[Tensor, " d"], probe: Float64[Tensor, " d"], centre: Float64[Tensor, " d"], info: FitInfo
) -> AffineMap:
    """The oblique projection x - delta probe^T (x - centre) / (probe^T delta)."""
    U = (-delta / (probe @ delta)).unsqueeze(1)
    return AffineMap(U, probe.unsqueeze(1), -U.squeeze(1) * (probe @ centre), info=info)
