"""Samples of two classes that carry the answer: the optimal map is known before any fit."""

from dataclasses import dataclass

import torch
from torch import Tensor


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def orthogonal(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def spd(d: int, seed: int, low: float = 0.2, high: float = 5.0) -> Tensor:
    """Symmetric positive definite with eigenvalues log-uniform in [low, high]."""
    Q = orthogonal(d, seed)
    spread = torch.rand(d, generator=rng(seed + 1), dtype=torch.float64)
    return (Q * (low * (high / low) ** spread)) @ Q.T


@dataclass(frozen=True)
class Pair:
    """H, S, and the map between their sample moments: x -> mean_S + A (x - mean_H)."""

    H: Tensor
    S: Tensor
    A: Tensor

    def answer(self, x: Tensor) -> Tensor:
        return self.S.mean(0) + (x - self.H.mean(0)) @ self.A


def pair(n: int, d: int, seed: int, *, shift: float = 1.0, scale: float = 1.0) -> Pair:
    """n > d: S is a rearranged image of H under a known A, so its sample covariance is exactly A C_H A."""
    H = scale * (normal(n, d, seed=seed) @ spd(d, seed + 1) + shift * normal(d, seed=seed + 2))
    A = spd(d, seed + 3)
    S = (H - H.mean(0)) @ A + scale * shift * normal(d, seed=seed + 4)
    return Pair(H, S[torch.randperm(n, generator=rng(seed + 5))], A)


def classes(n_H: int, n_S: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two unrelated classes of different size, mean and covariance; n may be far below d."""
    decay = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    H = 2 * normal(n_H, d, seed=seed) * decay + normal(d, seed=seed + 1)
    S = normal(n_S, d, seed=seed + 2) * decay.flip(0) + normal(d, seed=seed + 3)
    return H, S


@dataclass(frozen=True)
class Layers:
    """The duck type of captured activations, for tests."""

    source: Tensor
    target: Tensor
    layers: tuple[int, ...]
    positions: tuple[int, ...] = (-1,)
    hook: str = "resid_pre"

    def harmful(self, layer: int, position: int | None = None) -> Tensor:
        return self.source[self.layers.index(layer)]

    def harmless(self, layer: int, position: int | None = None) -> Tensor:
        return self.target[self.layers.index(layer)]


def layered(n_H: int, n_S: int, d: int, layers: int, seed: int) -> Layers:
    pairs = [classes(n_H, n_S, d, seed + 10 * layer) for layer in range(layers)]
    H, S = (torch.stack(side) for side in zip(*pairs, strict=True))
    return Layers(H, S, tuple(range(layers)))


def one_layer(H: Tensor, S: Tensor) -> Layers:
    return Layers(H.unsqueeze(0), S.unsqueeze(0), (0,))
