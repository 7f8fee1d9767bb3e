"""Muon: momentum with orthogonalized updates (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

`torch.optim.Muon` runs its Newton-Schulz iteration in bfloat16, which a CPU without bfloat16 arithmetic
emulates. Here it runs in float32, and matrices of one shape are orthogonalized in one batched product.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic iteration of Jordan et al.
_ITERATIONS = 5
_RMS_OF_ADAMW = 0.2  # Liu et al. 2025, arXiv 2502.16982, eq. (4): the update's RMS is that of AdamW


def orthogonalize(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Move every singular value of each matrix close to one (five Newton-Schulz steps)."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalized updates, for matrices only; `lr` is on the scale of AdamW."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: the recipe has none
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for shape, params in by_shape.items():
                gradients = [self._nesterov(param, param.grad, group["momentum"]) for param in params]
                scale = _RMS_OF_ADAMW * max(shape) ** 0.5
                for param, update in zip(params, orthogonalize(torch.stack(gradients)), strict=True):
                    param.add_(update, alpha=-group["lr"] * scale)

    def _nesterov(self, param: Tensor, gradient: Any, momentum: float) -> Tensor:
        running: Tensor = self.state[param].setdefault("momentum", torch.zeros_like(param))
        running.mul_(momentum).add_(gradient)
        return gradient.add(running, alpha=momentum)
