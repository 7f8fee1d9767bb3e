"""Coordinate-wise maps of all layers, fitted together: LinEAS (Rodriguez et al. 2025, arXiv 2503.10679)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, resolve_layers
from ot_lens.errors import FitError
from ot_lens.learned.marginals import Frame, Target
from ot_lens.learned.passes import EditedPasses
from ot_lens.learned.sparse_groups import critical_weights, proximal
from ot_lens.linalg import check_pair
from ot_lens.models import backend
from ot_lens.prompts import Contrast
from ot_lens.transport import TRANSPORT, AffineMap, FitInfo, Method
from ot_lens.transport.methods import register

# A step that would change the parameters by less than this share, at the largest step size, ends the fit.
CONVERGED = 1e-4
# Losses of float32 activations are only so exact; halved so often, a step that still raises the loss is none.
ROUNDING = 1e-6
HALVINGS = 20


@dataclass(frozen=True, eq=False)
class _Problem:
    """Loss and penalty in the standardized parameters."""

    passes: EditedPasses
    layers: tuple[int, ...]
    frame: Frame
    target: Target
    weights: Float64[Tensor, " L"]
    share: float

    def maps(self, q: Tensor) -> dict[int, AffineMap]:
        return self.frame.maps(self.layers, q)

    def gradient(self, q: Tensor, Z: Float64[Tensor, "L n d"]) -> Tensor:
        """At the optimal coupling of the edited samples Z, which is that of the loss itself."""
        return _gradient([(self.passes, torch.arange(Z.shape[1]))], self.maps, q, self.target, Z)

    def step(self, q: Tensor, gradient: Tensor, size: float) -> Tensor:
        """A proximal gradient step."""
        moved = (q - size * gradient).flatten(1)
        return proximal(moved, size * self.weights, self.share).view_as(q)


def fit_linear_act_joint(
    model: Any,
    prompts: Contrast,
    layers: str | Sequence[int] = "all",
    *,
    position: int = -1,
    hook: str = "resid_pre",
    penalty: int | float = 1.0,
    share: int | float = 0.05,
    permutations: int = 19,
    steps: int = 30,
    lr: int | float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[int, AffineMap]:
    """T_l(x) = omega_l * x + beta_l at all layers together (LinEAS, Rodriguez et al. 2025, arXiv 2503.10679).

    Minimizes the sum over layers of the mean one-dimensional W2^2 between edited harmful and unedited
    harmless activations, each layer in units of its pooled variance and under the edits below it, plus a
    sparse group lasso over layers. It begins with identities and takes proximal gradient steps over all
    prompts, each short enough to lower the sum. A layer that the lasso leaves out is exactly the identity.

    Args:
        model: A hooked model; it keeps its weights and gets no gradients.
        prompts: Training split.
        layers: "all" or layer numbers.
        position: Token position, counted from the prompt's end. At -1 edits act on the last token, otherwise
            on all tokens, as in a sweep.
        hook: Hook point of the edits.
        penalty: Strength of the lasso. At 1 each layer weighs as much as keeps every layer out, at the first
            step, under all permutations of the class labels; 0 is none.
        share: Share of the penalty that falls on single parameters instead of layers, in [0, 1].
        permutations: Random permutations of the labels that the penalty is measured in.
        steps: Largest number of steps.
        lr: Largest step size, in those of Newton's method for a layer alone; halved as often as needed.
        batch_size: Prompts per batch.
        seed: Of the permutations.
        progress: Called with the number of passes just done, of `permutations + steps`.

    Returns:
        The map of each layer; its `info.notes` say which layers stayed, and the first and last loss.

    Raises:
        FitError: If an option is out of range.
        ActivationError: If samples cannot be used (see `check_samples`).
        HookError: If a layer, hook point or position does not exist.
        PromptError: If prompts cannot be rendered.
    """
    penalty, share, lr = float(penalty), float(share), float(lr)
    _check_options(penalty, share, permutations, steps, lr)
    chosen, report = resolve_layers(layers, backend(model).n_layers), progress or (lambda _done: None)
    options: dict[str, Any] = {"hook": hook, "position": position, "batch_size": batch_size}
    harmful = EditedPasses(model, prompts.harmful, chosen, **options)
    harmless = EditedPasses(model, prompts.harmless, chosen, **options)
    identities = dict.fromkeys(chosen, AffineMap.identity(backend(model).d_model))
    H, S = harmful.all(identities), harmless.all(identities)
    for layer, *pair in zip(chosen, H, S, strict=True):
        check_pair(*pair, names=(f"harmful at layer {layer}", f"harmless at layer {layer}"))
    frame = Frame.of(H, S)
    weights = torch.zeros(len(chosen), dtype=torch.float64)
    if penalty > 0:
        null = _null([harmful, harmless], chosen, H, S, share, permutations, seed, report)
        weights = penalty * null
    problem = _Problem(harmful, chosen, frame, Target.of(S, H.shape[1], frame.size), weights, share)
    q, ending = _minimized(problem, H, steps, lr / 2, report)
    first, last = problem.target.losses(H), problem.target.losses(harmful.all(problem.maps(q)))
    kept = [layer for layer, own in zip(chosen, q, strict=True) if bool(own.any())]
    note = (
        f"joint fit of layers {list(chosen)}: kept {kept or 'none'}; loss {float(first.sum()):.4g} at first, "
        f"{float(last.sum()):.4g} at last; {ending}"
    )
    info = FitInfo(
        method="linear_act_joint",
        position=position,
        hook=hook,
        k=0,
        n_harmful=H.shape[1],
        n_harmless=S.shape[1],
        seed=seed if penalty > 0 else None,
        notes=(note,),
    )
    return _described(problem.maps(q), kept, first, last, info)


def _check_options(penalty: float, share: float, permutations: int, steps: int, lr: float) -> None:
    if not (math.isfinite(penalty) and penalty >= 0):
        raise FitError(f"penalty must be a number >= 0, got {penalty}.")
    if not 0 <= share <= 1:
        raise FitError(f"share must be in [0, 1], got {share}.")
    if not (math.isfinite(lr) and lr > 0):
        raise FitError(f"lr must be a number > 0, got {lr}.")
    for name, value in (("permutations", permutations), ("steps", steps)):
        if value < 1:
            raise FitError(f"{name} must be at least 1, got {value}.")


def _described(
    maps: Mapping[int, AffineMap],
    kept: Sequence[int],
    first: Float64[Tensor, " L"],
    last: Float64[Tensor, " L"],
    info: FitInfo,
) -> dict[int, AffineMap]:
    """The maps with where they came from; identities where the lasso left a layer out."""
    described = {}
    for (layer, fitted), before, after in zip(maps.items(), first.tolist(), last.tolist(), strict=True):
        stays = fitted if layer in kept else AffineMap.identity(fitted.d_model)
        state = "kept" if layer in kept else "left out: the map is the identity"
        own = f"this layer: {state}; loss {before:.4g} at first, {after:.4g} at last"
        described[layer] = AffineMap(stays.U, stays.V, stays.bias, stays.scale, info).labelled(
            layer=layer, notes=(*info.notes, own)
        )
    return described


def _minimized(
    problem: _Problem, H: Float64[Tensor, "L n d"], steps: int, size: float, report: Callable[[int], None]
) -> tuple[Float64[Tensor, "L two d"], str]:
    """Parameters after proximal gradient steps, and how they ended."""
    largest, Z = size, H
    q = H.new_zeros(len(H), 2, H.shape[-1])
    loss = float(problem.target.losses(Z).sum())
    rounding = ROUNDING * loss
    for number in range(1, steps + 1):
        gradient, first = problem.gradient(q, Z), size
        for _ in range(HALVINGS):
            moved = problem.step(q, gradient, size)
            change = moved - q
            Z = problem.passes.all(problem.maps(moved)) if bool(change.any()) else Z
            now = float(problem.target.losses(Z).sum())
            # What the loss would be if its curvature were 1 / size (Beck & Teboulle 2009, lemma 2.3).
            bound = loss + float((gradient * change).sum()) + float(change.square().sum()) / (2 * size)
            if now <= bound + rounding:
                break
            size /= 2
        else:
            return q, f"stopped after {number - 1} steps: no step lowers the loss"
        report(1)
        converged = float(change.norm()) * largest / size <= CONVERGED * float(moved.norm())
        q, loss = moved, now
        if converged:
            return q, f"converged after {number} steps"
        size = min(2 * size, largest) if size == first else size
    return q, f"stopped after {steps} steps"


def _gradient(
    parts: Sequence[tuple[EditedPasses, Tensor]],
    maps: Callable[[Tensor], Mapping[int, AffineMap]],
    q: Tensor,
    target: Target,
    Z: Float64[Tensor, "L n d"],
) -> Float64[Tensor, "L two d"]:
    """Of the loss of samples Z, which are prompts of several passes: the row of each prompt, -1 for none."""
    goals, total = target.of_samples(Z), torch.zeros_like(q)
    for passes, rows in parts:

        def loss(values: Tensor, indices: Sequence[int], rows: Tensor = rows) -> Tensor:
            row = rows[list(indices)]
            distances = (values - goals[:, row.clamp_min(0)]).square().sum(-1) * (row >= 0)
            return (target.weight * distances.sum(1)).sum() / Z.shape[1]

        total += passes.gradient(maps, q, loss)
    return total


def _null(
    parts: Sequence[EditedPasses],
    layers: Sequence[int],
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    share: float,
    permutations: int,
    seed: int,
    report: Callable[[int], None],
) -> Float64[Tensor, " L"]:
    """Weights at which no layer would be chosen at first under any permutation of the class labels.

    In proportion to each layer's own mean, so that no layer is more likely to be chosen by chance.
    """
    pooled, n = torch.cat([H, S], dim=1), H.shape[1]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(permutations):
        order = torch.randperm(pooled.shape[1], generator=generator)
        source, target_samples = pooled[:, order[:n]], pooled[:, order[n:]]
        frame = Frame.of(source, target_samples)
        row = torch.full((pooled.shape[1],), -1)
        row[order[:n]] = torch.arange(n)
        rows = zip(parts, row.split([n, pooled.shape[1] - n]), strict=True)
        gradient = _gradient(
            list(rows),
            partial(frame.maps, layers),
            H.new_zeros(len(H), 2, H.shape[-1]),
            Target.of(target_samples, n, frame.size),
            source,
        )
        found.append(critical_weights(gradient.flatten(1), share))
        report(1)
    critical = torch.stack(found)
    typical = critical.mean(0)
    ratios = torch.where(typical > 0, critical / typical, 0.0)
    return typical * ratios.max()


def _learn(
    model: Any,
    prompts: Contrast,
    acts: Activations,  # noqa: ARG001  read again: edits below a layer change its activations
    *,
    layers: Sequence[int],
    **settings: Any,
) -> dict[int, AffineMap]:
    return fit_linear_act_joint(model, prompts, layers, **settings)


register(
    Method(
        "linear_act_joint",
        "Linear-AcT, joint (LinEAS)",
        TRANSPORT,
        learn=_learn,
        joint=True,
        formula="ω ⊙ x + β at the layers that the fit chooses",
        source="Rodriguez et al. 2025",
        group="Shift, coordinate-wise",
        colour="#C08552",
        marker="plus",
        dash="dot",
        order=75,
    )
)
