"""Iterative null-space projection (INLP): linear probes are fitted and projected out in turn."""

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.gaussian import checked_ridge
from ot_lens.linalg import Pooled
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import PROJECTION
from ot_lens.transport.probe import RIDGE, CrossFit, HeldOutAUC
from ot_lens.transport.projection import ablation_of

ROUNDS = 32


@defines_method(
    "inlp",
    "INLP",
    PROJECTION,
    formula="x - Q Qᵀ x, Q of successive linear probes",
    source="Ravfogel et al. 2020",
    group="Projection",
    colour="#A35FD0",
    marker="star",
    dash="dash",
    order=46,
)
def fit_inlp(
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    *,
    rounds: int = ROUNDS,
    ridge: float = RIDGE,
    seed: int = 0,
) -> list[AffineMap]:
    """T(x) = x - Q Q^T x, Q of successive linear probes (Ravfogel et al. 2020, algorithm 1).

    Each round fits a ridge logistic regression to what the earlier rounds left of the samples, and projects
    the probe's normal vector out (arXiv 2004.07667). How many rounds are needed is decided on held-out
    samples: each fold is scored by the rounds fitted on the other folds, and the rounds end when the 95 %
    interval of the held-out AUC no longer lies above one half. Where that holds at once, the map is the
    identity. `info.k` is the number of directions; `info.notes` has the AUC that is left.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        rounds: most directions to project out.
        ridge: penalty on the squared norm of the normal vector, as a share of the mean squared norm of the
            centred samples; the loss is the mean over samples, both classes weighted alike.
        seed: of the folds.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: rounds below 1, or a ridge that is negative or not finite.

    Warns:
        PoorFitWarning: the classes can still be told apart after the last round.
    """
    checked_ridge(ridge)
    if rounds < 1:
        raise FitError(f"rounds = {rounds} projects nothing out: give rounds >= 1.")
    return [_of_layer(*layer, rounds, ridge, seed) for layer in zip(H, S, strict=True)]


def _of_layer(
    H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"], rounds: int, ridge: float, seed: int
) -> AffineMap:
    pooled = Pooled.of(H, S)
    weights, auc = null_space(CrossFit.of(pooled, len(H), ridge, seed), rounds)
    k = len(weights)
    note = f"held-out AUC of a linear probe {auc} at k = {k} (n = {len(H)} + {len(S)})"
    if k == 0:
        note += ": it does not lie above one half, and the map is the identity"
        identity = AffineMap.identity(H.shape[1], device=H.device)
        return identity.labelled(k=0, seed=seed, notes=(note,))
    problem = f"held-out AUC is still {auc} at k = {k}: choose more rounds or another layer"
    info = FitInfo(k=k, seed=seed, problems=() if auc.is_chance else (problem,), notes=(note,))
    return ablation_of(torch.linalg.qr((weights @ pooled.Z).mT).Q.contiguous(), info)


def null_space(fit: CrossFit, rounds: int) -> tuple[Float64[Tensor, "k N"], HeldOutAUC]:
    """Weights of the samples in the normal vectors of all rounds, and how separable the classes are then."""
    grams = fit.gram.expand(fit.folds + 1, -1, -1)
    found: list[Tensor] = []
    while True:
        probes = fit.probes(grams)
        auc = fit.held_out_auc(grams, probes)
        if auc.is_chance or len(found) == rounds:
            return torch.stack(found) if found else probes[:0], auc
        found.append(probes[-1])
        grams = fit.without(grams, probes)
