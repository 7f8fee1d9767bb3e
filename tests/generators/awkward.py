"""Samples that break careless numerics, as hypothesis strategies."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.generators.gaussians import classes, normal


def _rank_deficient(n_H: int, n_S: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    H, S = classes(n_H, n_S, 3, seed)
    return H @ normal(3, d, seed=seed + 4), S @ normal(3, d, seed=seed + 5)


def _duplicate_rows(n_H: int, n_S: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    H, S = classes(n_H, n_S, d, seed)
    H[1::2], S[: n_S // 2] = H[0], S[-1]
    return H, S


def _constant_coordinates(n_H: int, n_S: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    H, S = classes(n_H, n_S, d, seed)
    H[:, ::3], S[:, ::3] = 7.3, 7.3
    H[:, 1] = -2.0
    return H, S


def _far_mean(n_H: int, n_S: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    H, S = classes(n_H, n_S, d, seed)
    H[:, 0] += 1e4
    S[:, 0] += 1e4
    return H, S


KINDS = {
    "plain": classes,
    "rank deficient": _rank_deficient,
    "duplicate rows": _duplicate_rows,
    "constant coordinates": _constant_coordinates,
    "far mean": _far_mean,
}


@st.composite
def samples(draw, *, low: int = 64, high: int = 128) -> tuple[Tensor, Tensor]:
    """Random, rank-deficient, n < d, duplicate-row, constant-coordinate and tiny-n classes."""
    d = draw(st.integers(low, high))
    n_H, n_S = (draw(st.sampled_from([2, 3, 17, d // 2, d + 9])) for _ in range(2))
    kind = draw(st.sampled_from(sorted(KINDS)))
    H, S = KINDS[kind](max(n_H, 2), max(n_S, 2), d, draw(st.integers(0, 10_000)))
    return H, S


def floor_for(H: Tensor, S: Tensor, condition: float) -> float:
    """The ridge that gives the larger of both covariances this condition number."""
    largest = max(float(torch.linalg.matrix_norm(X - X.mean(0), 2)) ** 2 / (len(X) - 1) for X in (H, S))
    return max(largest, 1e-3) / condition
