"""AdamW on orthonormal vectors: tangent gradients, a step, and back to the sphere."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ot_lens.errors import FitError
from ot_lens.learned.objective import Chosen, Loss
from ot_lens.prompts import CLASSES

# As in the published code of arXiv 2502.17420.
BETAS, LARGEST_GRADIENT = (0.9, 0.98), 10.0
PATIENCE, REDUCTIONS, FACTOR = 5, 2, 0.1
# Losses of single steps that are kept with a map.
KEPT = 20


@runtime_checkable
class Differentiable(Protocol):
    """A loss of unit directions on training prompts, such as `Objective`."""

    @property
    def everything(self) -> Chosen:
        """All training prompts."""
        ...

    def loss(self, direction: Float64[Tensor, " d"], chosen: Chosen) -> Loss:
        """Of a direction on some prompts."""
        ...

    def gradient(
        self, direction: Float64[Tensor, " d"], chosen: Chosen
    ) -> tuple[Loss, Float64[Tensor, " d"]]:
        """The loss of a direction, and the gradient of its total."""
        ...


@dataclass(frozen=True)
class TrainingSettings:
    """How directions are trained; see the arguments of `fit_rdo` and `fit_cone`."""

    steps: int = 40
    learning_rate: float = 0.01
    prompts_per_step: int = 16
    combinations: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise a FitError if a value is out of range."""
        for name, least in (("steps", 1), ("prompts_per_step", 1), ("combinations", 0)):
            if getattr(self, name) < least:
                raise FitError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < float("inf"):
            raise FitError(f"learning_rate must be positive, got {self.learning_rate}.")


@dataclass(frozen=True, eq=False)
class Trained:
    """Orthonormal vectors, and the losses on the way."""

    basis: Float64[Tensor, "k d"]
    before: Loss  # on all training prompts, mean over the basis
    after: Loss
    curve: tuple[float, ...]  # mean total of the basis at each step, on the step's prompts
    kept_start: bool  # the loss did not fall, and the basis is the one from before

    @property
    def notes(self) -> tuple[str, ...]:
        """First and last loss, the number of steps, and the curve, for people."""
        start, end, steps = self.before, self.after, len(self.curve)
        every = -(-steps // KEPT)
        shown = [*self.curve[:-1:every], self.curve[-1]]
        return (
            f"loss {start.total:.4g} before and {end.total:.4g} after {steps} steps, in nats: "
            f"refusal score {end.ablation:.4g} under ablation and {end.addition:.4g} under addition, KL "
            f"{end.retention:.4g}",
            f"loss of every {every} steps and of the last: {', '.join(f'{loss:.4g}' for loss in shown)}",
            *(("the loss did not fall: these are the directions from before training",) * self.kept_start),
        )


def orthonormal(vectors: Float64[Tensor, "k d"]) -> Float64[Tensor, "k d"]:
    """Gram-Schmidt, first vector first, by a QR decomposition whose signs are those of the vectors."""
    Q, R = torch.linalg.qr(vectors.T)
    sign = torch.where(R.diagonal() < 0, -1.0, 1.0)
    return (Q * sign).T.contiguous()


def train(
    objective: Differentiable,
    start: Float64[Tensor, "k d"],
    settings: TrainingSettings,
    progress: Callable[[int], None] = lambda _done: None,
) -> Trained:
    """Minimize the mean loss of the vectors plus, for several, that of random non-negative combinations.

    As in the published code, the learning rate falls tenfold when the loss has not fallen for five steps,
    twice at most, and then the training ends; there that loss includes the combinations, here it is that of
    the vectors, which does not depend on the draw. The gradients are tangent to the sphere and clipped.
    """
    first = orthonormal(start)
    basis = first.clone().requires_grad_()
    optimizer = AdamW([basis], settings.learning_rate, BETAS, weight_decay=0.0, amsgrad=True)
    schedule = ReduceLROnPlateau(
        optimizer, factor=FACTOR, patience=PATIENCE - 1, threshold=0.0, threshold_mode="abs", eps=0.0
    )
    generator = torch.Generator().manual_seed(settings.seed)
    curve: list[float] = []
    for chosen in islice(_draws(objective, settings.prompts_per_step, generator), settings.steps):
        curve.append(_gradients(objective, basis, chosen, settings.combinations, generator))
        torch.nn.utils.clip_grad_norm_([basis], LARGEST_GRADIENT)
        optimizer.step()
        basis.data.copy_(orthonormal(basis.data))
        progress(1)
        schedule.step(curve[-1])
        if optimizer.param_groups[0]["lr"] < settings.learning_rate * FACTOR ** (REDUCTIONS + 0.5):
            break
    last = basis.detach()
    before, after = (_mean_loss(objective, vectors) for vectors in (first, last))
    falls = after.total < before.total
    return Trained(last if falls else first, before, after if falls else before, tuple(curve), not falls)


def _draws(objective: Differentiable, size: int, generator: torch.Generator) -> Iterator[Chosen]:
    """Prompts of each step: every class in random order, again and again."""
    streams = {label: _shuffled(len(objective.everything[label]), size, generator) for label in CLASSES}
    while True:
        yield {label: next(stream) for label, stream in streams.items()}


def _shuffled(n: int, size: int, generator: torch.Generator) -> Iterator[Sequence[int]]:
    size = min(n, size)
    while True:
        order = torch.randperm(n, generator=generator).tolist()
        yield from (order[start : start + size] for start in range(0, n - size + 1, size))


def _gradients(
    objective: Differentiable,
    basis: Float64[Tensor, "k d"],
    chosen: Chosen,
    combinations: int,
    generator: torch.Generator,
) -> float:
    """Set the gradient of the basis; returns the mean loss of its vectors, which varies least."""
    k = len(basis)
    weights = [torch.eye(k, dtype=torch.float64)]
    if k > 1 and combinations:
        weights.append(torch.randn(combinations, k, generator=generator, dtype=torch.float64).abs())
    totals, slopes = [], torch.zeros_like(basis)
    for group in weights:
        for row in group:
            direction = row @ basis.detach()
            size = float(direction.norm())
            loss, slope = objective.gradient(direction / size, chosen)
            totals.append(loss.total)
            slopes += torch.outer(row / size, slope) / len(group)
    # The gradients of combinations are tangent to their own direction, not to the vectors'.
    along = (slopes * basis.detach()).sum(dim=1, keepdim=True)
    basis.grad = slopes - along * basis.detach()
    return sum(totals[:k]) / k


def _mean_loss(objective: Differentiable, basis: Float64[Tensor, "k d"]) -> Loss:
    return Loss.mean([objective.loss(direction, objective.everything) for direction in basis])
