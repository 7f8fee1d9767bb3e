"""Ablation of several directions at once."""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import centring_rounding, check_samples
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import PROJECTION
from ot_lens.transport.projection import ablation_of

DEFAULT_RANK = 2
RELATIVE_RANK = 1e-10


@defines_method(
    "subspace_ablation",
    "Subspace ablation",
    PROJECTION,
    formula="x - Q Qᵀ x",
    group="Projection",
    colour="#8C5BB5",
    marker="pentagon",
    dash="dot",
    order=40,
)
def fit_subspace_ablation(
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    k: int | None = None,
    *,
    categories: Sequence[Hashable] | None = None,
    directions: Tensor | None = None,
    keep_mean: bool = False,
) -> list[AffineMap]:
    """T(x) = x - Q Q^T x, Q an orthonormal basis of several directions.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        k: the leading right singular vectors of the class differences h_i - mu_S, not centred, so that the
            difference in means is among what they explain; 2 when nothing is chosen.
        categories: one label per source sample; the directions are the category means minus mu_S.
        directions: `[m, d]`, not necessarily orthogonal; dependent ones are merged.
        keep_mean: x - Q Q^T (x - mu_S), the analogue of affine concept editing.

    Raises:
        ActivationError: samples or directions that cannot be used (see `check_samples`).
        FitError: more than one choice of subspace, k outside 1 .. rank, categories or directions that do not
            fit the samples, or only zero directions.
    """
    if sum(choice is not None for choice in (k, categories, directions)) > 1:
        raise FitError(
            "k, categories and directions are three ways to choose the subspace: give one of them."
        )
    mean_S = S.mean(1)
    if directions is not None:
        spans, k = _given(directions, H), None
    elif categories is not None:
        spans, k = _of_categories(H, mean_S, categories), None
    else:
        spans, k = H - mean_S.unsqueeze(1), DEFAULT_RANK if k is None else k
    _, s, Vh = torch.linalg.svd(spans, full_matrices=False)
    magnitude = (
        torch.cat([H, S], dim=1).norm(dim=-1).amax(1) if directions is None else torch.zeros_like(s[:, 0])
    )
    rounding = spans.shape[1] ** 0.5 * centring_rounding(magnitude, H.shape[1] + S.shape[1])
    ranks = (s > torch.maximum(RELATIVE_RANK * s[:, 0], rounding).unsqueeze(1)).sum(1).tolist()
    kept = mean_S if keep_mean else [None] * len(H)
    return [_ablation(*layer, k) for layer in zip(Vh, ranks, kept, strict=True)]


def _given(directions: Tensor, H: Float64[Tensor, "L n_H d"]) -> Float64[Tensor, "L m d"]:
    vectors = check_samples(directions, "directions", least=1).to(H.device)
    if vectors.shape[1] != H.shape[2]:
        raise FitError(f"Directions have width {vectors.shape[1]}, the samples {H.shape[2]}.")
    return vectors.expand(H.shape[0], -1, -1)


def _of_categories(
    H: Float64[Tensor, "L n_H d"], mean_S: Float64[Tensor, "L d"], categories: Sequence[Hashable]
) -> Float64[Tensor, "L m d"]:
    """Mean of each category minus the target mean."""
    if len(categories) != H.shape[1]:
        raise FitError(f"{len(categories)} categories for {H.shape[1]} source samples: give one per sample.")
    names = list(dict.fromkeys(categories))
    rows = [[index for index, label in enumerate(categories) if label == name] for name in names]
    return torch.stack([H[:, chosen].mean(1) - mean_S for chosen in rows], dim=1)


def _ablation(
    Vh: Float64[Tensor, "m d"], rank: int, keep: Float64[Tensor, " d"] | None, k: int | None
) -> AffineMap:
    if k is not None and not 1 <= k <= rank:
        raise FitError(f"k = {k} directions, but the differences have rank {rank}: choose 1 <= k <= {rank}.")
    if rank == 0:
        raise FitError("All directions are zero: there is nothing to ablate.")
    size = rank if k is None else k
    return ablation_of(Vh[:size].T.contiguous(), FitInfo(k=size, rank=rank), keep=keep)
