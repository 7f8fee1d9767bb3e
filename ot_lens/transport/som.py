"""Several refusal directions from a self-organizing map of the harmful samples (arXiv 2511.08379)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import Pooled, one_thread
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.methods import PROJECTION
from ot_lens.transport.probe import RIDGE, CrossFit, HeldOutAUC
from ot_lens.transport.subspace import fit_subspace_ablation

EPOCHS = 20
LAST_RADIUS = 1 / 3


@defines_method(
    "som",
    "SOM directions",
    PROJECTION,
    formula="x - Q Qᵀ x, Q of neurons of the harmful samples less μ_S",
    source="arXiv 2511.08379",
    group="Projection",
    colour="#8A78A8",
    marker="circle",
    dash="dot",
    order=48,
)
def fit_som(
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    k: int | None = None,
    *,
    grid: Sequence[int] = (4, 4),
    seed: int = 0,
) -> list[AffineMap]:
    """T(x) = x - Q Q^T x, Q an orthonormal basis of SOM neurons minus mu_S (arXiv 2511.08379, algorithm 1).

    A self-organizing map on a hexagonal grid is fitted to the harmful samples. Each neuron that wins samples,
    less the harmless mean, is a direction; those of most samples come first, dependent ones are merged.

    How many are ablated is chosen on held-out samples, where the paper searches for the highest attack
    success rate of a model: the fewest after which the AUC of a linear probe, map and probe fitted on the
    other folds, has a 95 % interval that does not lie above one half, or else the number with the lowest AUC.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        k: directions to ablate; None for the choice on held-out samples.
        grid: rows and columns of the map; `(1, 1)` is directional ablation.
        seed: of the folds.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: k outside 1 .. the number of neurons that win samples, a grid that is not two positive
            integers, or harmful samples that all equal the harmless mean.
    """
    if len(grid) != 2 or min(grid) < 1:
        raise FitError(f"grid = {tuple(grid)} is not a map: give rows and columns, such as (4, 4).")
    return [_of_layer(*layer, k, grid, seed) for layer in zip(H, S, strict=True)]


def _of_layer(
    H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"], k: int | None, grid: Sequence[int], seed: int
) -> AffineMap:
    pooled, n_H = Pooled.of(H, S), len(H)
    fit = CrossFit.of(pooled, n_H, RIDGE, seed)
    weights, wins = neurons(fit.gram[:n_H, :n_H], fit.training[:, :n_H], hexagonal(grid, H))
    held = fit.training[:, n_H:].to(weights.dtype)
    mean_S = (held / held.sum(1, keepdim=True)).unsqueeze(1).expand(-1, weights.shape[1], -1)
    directions = torch.cat([weights, -mean_S], dim=-1) * (wins > 0).unsqueeze(-1)
    count = int((wins[-1] > 0).sum())
    note = f"{count} neurons win samples"
    if k is None:
        size, auc = _validated(fit, directions[:-1, :count])
        note += f"; held-out AUC of a linear probe {auc} at k = {size} (n = {n_H} + {len(S)})"
    elif 1 <= k <= count:
        size = k
    else:
        raise FitError(f"k = {k} directions, but {count} neurons win samples: choose 1 <= k <= {count}.")
    vectors = directions[-1, :size] @ pooled.Z
    vectors = vectors.masked_fill(vectors.norm(dim=1, keepdim=True) <= pooled.rounding, 0.0)
    ablation = fit_subspace_ablation(H, S, directions=vectors)
    return ablation.labelled(seed=seed if k is None else None, notes=(note,))


def _validated(fit: CrossFit, directions: Float64[Tensor, "folds k N"]) -> tuple[int, HeldOutAUC]:
    """The fewest directions whose ablation leaves a probe at chance, or else the best number; and its AUC."""
    grams = fit.gram.expand(fit.folds, -1, -1)
    left: list[HeldOutAUC] = []
    for direction in directions.unbind(1):
        grams = fit.without(grams, direction)
        left.append(fit.held_out_auc(grams, fit.probes(grams)))
        if left[-1].is_chance:
            return len(left), left[-1]
    best = min(range(len(left)), key=lambda index: left[index].value)
    return best + 1, left[best]


def hexagonal(grid: Sequence[int], like: Tensor) -> Float64[Tensor, "cells 2"]:
    """Positions of the neurons, every other row moved by half a step: neighbours have distance 1."""
    rows, columns = (torch.arange(size, dtype=like.dtype, device=like.device) for size in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([row * 0.75**0.5, column + (row % 2) / 2], dim=-1).reshape(-1, 2)


def neurons(
    gram: Float64[Tensor, "n n"], members: Bool[Tensor, "rows n"], places: Float64[Tensor, "cells 2"]
) -> tuple[Float64[Tensor, "rows cells n"], Int64[Tensor, "rows cells"]]:
    """Batch self-organizing maps (Kohonen 2001, section 3.6), one per row of samples; no random numbers.

    Returns the weights of the samples in each neuron and how many it wins, most first. The map starts in the
    plane of the leading two components, and the radius of its neighbourhoods shrinks to where each neuron is
    nearly the mean of the samples that it wins.
    """
    between = torch.cdist(places, places).square()
    winner = _in_plane(gram, members, places)
    outside = torch.where(members, 0.0, -torch.inf).to(gram.dtype).unsqueeze(1)
    first = max(float(between.max()) ** 0.5 / 2, LAST_RADIUS)
    weights = torch.empty(0, dtype=gram.dtype, device=gram.device)
    for epoch in range(EPOCHS):
        radius = first * (LAST_RADIUS / first) ** (epoch / (EPOCHS - 1))
        closeness = -between[winner].mT / (2 * radius**2)
        weights = (closeness + outside).softmax(-1)
        products = weights @ gram
        squares = (products * weights).sum(-1, keepdim=True)
        winner = (squares - 2 * products).argmin(1)
    cells = torch.arange(len(places), device=gram.device)
    wins = ((winner.unsqueeze(1) == cells[:, None]) & members.unsqueeze(1)).sum(-1)
    order = wins.argsort(dim=1, descending=True, stable=True)
    return weights.gather(1, order.unsqueeze(-1).expand_as(weights)), wins.gather(1, order)


def _in_plane(
    gram: Float64[Tensor, "n n"], members: Bool[Tensor, "rows n"], places: Float64[Tensor, "cells 2"]
) -> Int64[Tensor, "rows n"]:
    """The nearest neuron of each sample when the neurons are spread over the two leading components."""
    share = members.to(gram.dtype) / members.sum(1, keepdim=True)
    mean = share @ gram
    centred = gram - mean.unsqueeze(1) - mean.unsqueeze(2) + (mean * share).sum(1)[:, None, None]
    inside = (members.unsqueeze(1) & members.unsqueeze(2)).to(gram.dtype)
    with one_thread():
        values, vectors = torch.linalg.eigh(centred * inside)
    values, vectors = values[:, -2:].flip(-1).clamp_min(0.0), vectors[..., -2:].flip(-1)
    # Equal samples give equal maps, signs included.
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    scores = torch.where(largest < 0, -vectors, vectors) * values.sqrt().unsqueeze(1)
    spread = (values / members.sum(1, keepdim=True)).sqrt()
    middle = (places.amax(0) + places.amin(0)) / 2
    half = ((places.amax(0) - places.amin(0)) / 2).clamp_min(torch.finfo(places.dtype).tiny)
    # A uniform distribution over +- sqrt(3) has standard deviation 1.
    start = 3**0.5 * spread.unsqueeze(1) * ((places - middle) / half)
    return torch.cdist(scores, start[..., : scores.shape[-1]]).argmin(-1)
