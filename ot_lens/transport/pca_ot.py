"""PCA-OT: Gaussian transport within leading pooled components, and how many of them (arXiv 2603.04355)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.errors import FitError, one_of
from ot_lens.gaussian import checked_ridge
from ot_lens.linalg import PooledPCA, centring_rounding, matrix_power, monge_matrix, nuclear_norm, psd_eigen
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo, diagnosed
from ot_lens.transport.methods import TRANSPORT

RELATIVE_RIDGE = 1e-6
MAX_AUTO_RANK = 64
FOLDS = 4
KEEP, DISCARD = LIFTS = ("keep", "discard")
DISCARDED = (
    "lift = 'discard' replaces whatever lies outside the k components by a constant, which destroys the "
    "activation: it is for comparison with the literal formula only, use lift = 'keep'"
)


@dataclass(frozen=True)
class SubspaceTransport:
    """x + shift + P (A - I) P^T (x - source_mean), each part batched over layers."""

    axes: Float64[Tensor, "L d k"]
    A: Float64[Tensor, "L k k"]
    source_mean: Float64[Tensor, "L d"]
    shift: Float64[Tensor, "L d"]
    ridge: Float64[Tensor, " L"]
    condition: Float64[Tensor, " L"]
    clipped: Int64[Tensor, " L"]


def subspace_transport(
    pca: PooledPCA, n_H: int, k: int, ridge: float | None, mean_shift: str
) -> SubspaceTransport:
    """Gaussian transport of the first n_H rows onto the others within k components."""
    Z, axes = pca.Z, pca.axes(k)
    mean_H, mean_S = Z[:, :n_H].mean(1), Z[:, n_H:].mean(1)
    projected = Z @ axes
    C_H, C_S = covariance(projected[:, :n_H]), covariance(projected[:, n_H:])
    c = _ridge(C_H, C_S, ridge, pca.rounding.square())
    values_H, E_H, clipped_H = psd_eigen(C_H)
    values_S, E_S, clipped_S = psd_eigen(C_S)
    values_H, values_S = values_H + c.unsqueeze(-1), values_S + c.unsqueeze(-1)
    root, inverse_root = (matrix_power(values_H, E_H, exponent) for exponent in (0.5, -0.5))
    A = monge_matrix(root, inverse_root, matrix_power(values_S, E_S, 0.5))
    shift = mean_S - mean_H
    if mean_shift == "subspace":
        shift = ((shift.unsqueeze(1) @ axes) @ axes.mT).squeeze(1)
    condition = values_H[..., -1] / values_H[..., 0]
    return SubspaceTransport(axes, A, mean_H, shift, c, condition, clipped_H + clipped_S)


def covariance(X: Float64[Tensor, "L n k"]) -> Float64[Tensor, "L k k"]:
    """With the 1 / (n - 1) convention; of projected samples, so k is small."""
    X = X - X.mean(1, keepdim=True)
    return X.mT @ X / (X.shape[1] - 1)


def _ridge(
    C_H: Float64[Tensor, "L k k"],
    C_S: Float64[Tensor, "L k k"],
    ridge: float | None,
    rounding: Float64[Tensor, " L"],
) -> Float64[Tensor, " L"]:
    """The requested ridge, or RELATIVE_RIDGE of the mean variance in the subspace."""
    trace_H, trace_S = (C.diagonal(dim1=-2, dim2=-1).sum(-1) for C in (C_H, C_S))
    if ridge is None:
        # Two classes without spread in the subspace need no rescaling: a ridge above rounding gives A = I.
        mean_variance = (trace_H + trace_S) / (2 * C_H.shape[-1])
        return torch.where(mean_variance > rounding, RELATIVE_RIDGE * mean_variance, 1.0)
    smallest = torch.linalg.eigvalsh(C_H)[..., 0]
    least = torch.maximum(centring_rounding(trace_H, C_H.shape[-1]), rounding)
    if ridge == 0.0 and bool((smallest <= least).any()):
        raise FitError(
            f"The source covariance is singular in k = {C_H.shape[-1]} components: give ridge > 0, a smaller "
            "k or more prompts."
        )
    return torch.full_like(trace_H, ridge)


def validate_rank(k: int | float | str) -> None:
    """Raise FitError unless k is an int >= 1, a share in (0, 1) or "auto"."""
    remedy = 'give an int >= 1, a share of explained variance in (0, 1), or "auto"'
    if isinstance(k, str):
        if k != "auto":
            raise FitError(f"k = {k!r} is unknown: {remedy}.")
    elif isinstance(k, bool) or (isinstance(k, int) and k <= 0) or (isinstance(k, float) and not 0 < k < 1):
        raise FitError(f"k = {k} components cannot be kept: {remedy}.")


def ranks_of(
    k: int | float, eigenvalues: Float64[Tensor, "L m"], rank: Int64[Tensor, " L"], sizes: tuple[int, int]
) -> list[int]:
    """The k of each layer: the int itself, or the fewest components that explain the share."""
    if isinstance(k, int):
        lowest = int(rank.min())
        if k > lowest:
            samples = f"of the pooled samples (n = {sizes[0]} + {sizes[1]})"
            raise FitError(f"k = {k} exceeds the rank {lowest} {samples}: choose k <= {lowest}.")
        return [k] * rank.shape[0]
    share = eigenvalues.cumsum(-1) / eigenvalues.sum(-1, keepdim=True)
    fewest = (share < k * (1 - 1e-12)).sum(-1) + 1
    return torch.minimum(fewest, rank).tolist()


def auto_ranks(
    scores: Float64[Tensor, "L N r"],
    n_H: int,
    rank: Int64[Tensor, " L"],
    push: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    seed: int,
) -> list[int]:
    """The power of two with the smallest held-out W2^2 between moved and target samples, for each layer."""
    H, S = scores[:, :n_H], scores[:, n_H:]
    folds = _folds(n_H, S.shape[1], seed)
    smallest = min(min(n_H, S.shape[1]) - math.ceil(min(n_H, S.shape[1]) / len(folds)) - 1, int(rank.min()))
    candidates = [2**power for power in range(7) if 2**power <= min(MAX_AUTO_RANK, max(smallest, 1))]
    errors = torch.stack([_held_out_error(H, S, folds, push, k) for k in candidates], dim=-1)
    return [candidates[best] for best in errors.argmin(-1).tolist()]


def _folds(n_H: int, n_S: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Masks of the held-out rows of each class, one pair per fold, at least two rows each."""
    count = min(FOLDS, n_H // 2, n_S // 2)
    if count < 2:
        raise FitError(
            f'k = "auto" needs at least 4 samples a class to hold some out, not {n_H} + {n_S}: give k.'
        )
    generator = torch.Generator().manual_seed(seed)
    order = [torch.randperm(n, generator=generator) % count for n in (n_H, n_S)]
    return [(order[0] == fold, order[1] == fold) for fold in range(count)]


def _held_out_error(
    H: Float64[Tensor, "L n_H r"],
    S: Float64[Tensor, "L n_S r"],
    folds: list[tuple[Tensor, Tensor]],
    push: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    k: int,
) -> Float64[Tensor, " L"]:
    total = H.new_zeros(H.shape[0])
    for out_H, out_S in folds:
        moved = push(H[:, ~out_H], S[:, ~out_S], H[:, out_H], k)
        total += _squared_distance(moved, S[:, out_S])
    return total


def _squared_distance(X: Float64[Tensor, "L a r"], Y: Float64[Tensor, "L b r"]) -> Float64[Tensor, " L"]:
    location = (X.mean(1) - Y.mean(1)).square().sum(-1)
    X, Y = ((Z - Z.mean(1, keepdim=True)) / (Z.shape[1] - 1) ** 0.5 for Z in (X, Y))
    spread = X.square().sum((-2, -1)) + Y.square().sum((-2, -1))
    return location + spread - 2 * nuclear_norm(X @ Y.mT)


@defines_method(
    "pca_ot",
    "PCA-OT",
    TRANSPORT,
    formula="x + (μ_S - μ_H) + P (A - I) Pᵀ (x - μ_H)",
    source="arXiv 2603.04355",
    reversible=True,
    group="PCA-OT",
    colour="#159A6F",
    marker="square",
    dash="solid",
    order=80,
)
def fit_pca_ot(
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    k: int | float | str = 2,
    *,
    ridge: float | None = None,
    mean_shift: str = "full",
    lift: str = KEEP,
    seed: int = 0,
) -> list[AffineMap]:
    """T(x) = x + (mu_S - mu_H) + P (A_k - I) P^T (x - mu_H) (arXiv 2603.04355).

    P holds the top-k components of the pooled samples, A_k is the symmetric positive definite map between the
    covariances of the projected classes; what is orthogonal to P is kept. Read literally, the paper's formula
    is mu_S + P A_k P^T (x - mu_H), the same without (I - P P^T) (x - mu_H): `lift="discard"`.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        k: components; an int, a share of the pooled variance in (0, 1), or "auto" for the held-out choice.
        ridge: added to both projected covariances, in squared activation units; None for 1e-6 of their mean
            variance.
        mean_shift: "full" moves the whole mean; "subspace" only its component within P.
        lift: "keep" or "discard", of what is orthogonal to P. The held-out choice of k is made with the same.
        seed: of the folds of k = "auto".

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: k not positive or above the rank, a negative ridge, ridge = 0 with a singular source
            covariance, an unknown option.

    Warns:
        PoorFitWarning: too few samples for k, an ill-conditioned source covariance, or `lift="discard"`.
    """
    validate_rank(k)
    if ridge is not None:
        checked_ridge(ridge)
    one_of("mean_shift", mean_shift, ("full", "subspace"), FitError)
    one_of("lift", lift, LIFTS, FitError)
    pca, n_H, n_S = PooledPCA.of(H, S), H.shape[1], S.shape[1]
    if int(pca.rank.min()) == 0:
        raise FitError(
            f"The rank of the pooled samples (n = {n_H} + {n_S}) is 0: all of them are identical; "
            "choose another layer or position."
        )
    if isinstance(k, str):
        held_out = partial(_pushed, ridge=ridge, mean_shift=mean_shift, lift=lift)
        ranks = auto_ranks(pca.scores(), n_H, pca.rank, held_out, seed)
    else:
        ranks = ranks_of(k, pca.eigenvalues, pca.rank, (n_H, n_S))
    maps: dict[int, AffineMap] = {}
    for size in sorted(set(ranks)):
        layers = [layer for layer, rank in enumerate(ranks) if rank == size]
        maps.update(zip(layers, _maps(pca.take(layers), n_H, size, ridge, mean_shift, lift), strict=True))
    recorded = seed if k == "auto" else None
    return [maps[layer].labelled(seed=recorded) for layer in range(len(ranks))]


def _pushed(
    train_H: Tensor,
    train_S: Tensor,
    held_out: Tensor,
    k: int,
    *,
    ridge: float | None,
    mean_shift: str,
    lift: str,
) -> Tensor:
    """The held-out samples, moved by a fit of k components to the training folds."""
    pca = PooledPCA.of(train_H, train_S)
    fitted, centre = subspace_transport(pca, train_H.shape[1], k, ridge, mean_shift), pca.mean.unsqueeze(1)
    X, source = held_out - centre, fitted.source_mean.unsqueeze(1)
    coordinates = (X - source) @ fitted.axes
    start = source + coordinates @ fitted.axes.mT if lift == DISCARD else X
    return (
        start + fitted.shift.unsqueeze(1) + (coordinates @ fitted.A - coordinates) @ fitted.axes.mT + centre
    )


def _maps(
    pca: PooledPCA, n_H: int, k: int, ridge: float | None, mean_shift: str, lift: str
) -> list[AffineMap]:
    """One map per layer, all with k components."""
    fitted = subspace_transport(pca, n_H, k, ridge, mean_shift)
    axes, bias, centre = fitted.axes, fitted.shift, fitted.source_mean + pca.mean
    scale, change = None, fitted.A - torch.eye(k, dtype=fitted.A.dtype, device=fitted.A.device)
    if lift == DISCARD:
        scale, change, bias = torch.zeros_like(centre[0]), fitted.A, bias + centre
    V = axes @ change
    bias = bias - ((centre.unsqueeze(1) @ V) @ axes.mT).squeeze(1)
    share = pca.eigenvalues[:, :k].sum(-1) / pca.eigenvalues.sum(-1)
    n, stretch = min(n_H, pca.Z.shape[1] - n_H), torch.linalg.eigvalsh(fitted.A)[:, -1]
    infos = (
        FitInfo(
            k=k,
            ridge=float(fitted.ridge[layer]),
            rank=int(pca.rank[layer]),
            condition_number=float(fitted.condition[layer]),
            clipped_eigenvalues=int(fitted.clipped[layer]),
            explained_variance=float(share[layer]),
        )
        for layer in range(len(bias))
    )
    diagnosed_infos = (
        diagnosed(info, n, k, regularized=False, stretch=largest)
        for info, largest in zip(infos, stretch.tolist(), strict=True)
    )
    parts = zip(axes, V, bias, diagnosed_infos, strict=True)
    return [AffineMap(P, pulled, shift, scale, _lifted(info, lift)) for P, pulled, shift, info in parts]


def _lifted(info: FitInfo, lift: str) -> FitInfo:
    """With a first problem, of which the fit warns, where the complement is discarded."""
    if lift == KEEP:
        return info
    return replace(info, problems=(DISCARDED, *info.problems), notes=(*info.notes, f"lift = {lift!r}"))
