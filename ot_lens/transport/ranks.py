"""How many components: an int, a share of the explained variance, or "auto"."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import nuclear_norm

MAX_AUTO_RANK = 64
FOLDS = 4


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
