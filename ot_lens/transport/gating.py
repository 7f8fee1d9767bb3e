"""Gates fitted to two classes: a map that acts on what looks harmful and leaves the rest alone."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float64
from scipy.linalg import eigh
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ot_lens.errors import FitError, one_of
from ot_lens.linalg import Pooled, all_equal, check_pair
from ot_lens.transport.gated import GATES, LOGISTIC, THRESHOLD, GatedMap, ScoreGate
from ot_lens.transport.maps import ActivationMap, check_width

COMPONENTS = 8
FALSE_POSITIVES = 0.01
FOLDS = 5
# Relative to the mean variance of a component, below which a component is rounding.
SHARED = 1e-12


def gated(
    map: ActivationMap,  # noqa: A002
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    *,
    gate: str = LOGISTIC,
    components: int = COMPONENTS,
    false_positive_rate: float = FALSE_POSITIVES,
    seed: int = 0,
) -> GatedMap:
    """Let a map act on activations that look like the source: T'(x) = x + g(x) (T(x) - x).

    g looks at one score, a regularized logistic regression of the class on the leading pooled components, as
    conditional steering does (CAST, arXiv 2409.05907). The score is 0 at the threshold that held-out target
    samples exceed with at most the given probability, up to the resolution 1 / (n_S + 1) of n_S samples
    (split conformal quantile). "threshold" opens the gate above it; "logistic" is 1 / (1 + exp(-score)), one
    half at the threshold.

    Args:
        map: A map of any kind.
        H: Source samples `[n_H, d]`.
        S: Target samples `[n_S, d]`.
        gate: "logistic" or "threshold".
        components: Leading pooled components that the regression sees, at most.
        false_positive_rate: Probability that a target sample exceeds the threshold.
        seed: Of the folds.

    Returns:
        The gated map; `info` holds the held-out AUC (`gate_auc`), the threshold in nats of the regression's
        log-odds (`gate_threshold`) and the held-out shares of target and source samples beyond it
        (`gate_false_positives`, `gate_true_positives`).

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: If an option is unknown or out of range, the map has another width, there are fewer than two
            samples of a class for each fold, or all samples are identical.
    """
    one_of("gate", gate, GATES, FitError)
    source, target = check_pair(H, S)
    check_width(map, source)
    if not 0.0 < false_positive_rate < 1.0:
        raise FitError(f"false_positive_rate = {false_positive_rate} is outside (0, 1).")
    if components < 1:
        raise FitError(f"components = {components} must be at least 1.")
    if all_equal(source, target):
        raise FitError("All samples of both classes are identical: no gate can tell them apart.")
    pooled = Pooled.of(source, target)
    gram, is_source = pooled.gram(), torch.arange(len(source) + len(target)) < len(source)
    scores = _held_out_scores(gram, is_source, components, seed)
    threshold = _conformal(scores[~is_source], false_positive_rate)
    axes = (_leading(gram, components).T @ pooled.Z).T
    weights, offset = _regression(pooled.Z @ axes, is_source)
    direction = axes @ weights
    norm = direction.square().sum()
    if not norm > 0:
        raise FitError("The classes are alike in the leading components: no gate can tell them apart.")
    # The regression's log-odds are direction . (x - mean) + offset; the gate's score is 0 at the threshold.
    step = (threshold - offset) / norm
    fitted = ScoreGate(direction, pooled.mean + step * direction, hard=gate == THRESHOLD)
    facts = {
        "gate": gate,
        "gate_auc": float(roc_auc_score(is_source.numpy(), scores.numpy())),
        "gate_threshold": threshold,
        "gate_false_positives": float((scores[~is_source] > threshold).double().mean()),
        "gate_true_positives": float((scores[is_source] > threshold).double().mean()),
    }
    return GatedMap(fitted, (map,), map.info).labelled(**facts)


def _held_out_scores(
    gram: Float64[Tensor, "N N"], is_source: Bool[Tensor, " N"], components: int, seed: int
) -> Float64[Tensor, " N"]:
    """Log-odds of each sample by a regression on components that were fitted without it."""
    scores = gram.new_zeros(len(gram))
    for held_out in _folds(is_source, seed):
        # Inner products of all samples with those of the other folds, about their mean.
        products = gram[:, ~held_out] - gram[~held_out][:, ~held_out].mean(0)
        products = products - products.mean(1, keepdim=True)
        Z = products @ _leading(products[~held_out], components)
        weights, offset = _regression(Z[~held_out], is_source[~held_out])
        scores[held_out] = Z[held_out] @ weights + offset
    return scores


def _leading(gram: Float64[Tensor, "n n"], components: int) -> Float64[Tensor, "n q"]:
    """Weights of the samples in the leading components, from their Gram matrix; none that is rounding."""
    n = len(gram)
    squares, vectors = eigh(gram.numpy(), subset_by_index=(max(n - components, 0), n - 1))
    kept = squares > SHARED * gram.trace().item()
    return torch.from_numpy(vectors[:, kept] / np.sqrt(squares[kept]))


def _folds(is_source: Bool[Tensor, " N"], seed: int) -> Iterator[Bool[Tensor, " N"]]:
    """Which samples each fold holds out, an equal share of both classes."""
    smallest = min(int(is_source.sum()), int((~is_source).sum()))
    count = min(FOLDS, smallest // 2)
    if count < 2:
        raise FitError(f"A gate needs at least 4 samples of each class to hold some out, got {smallest}.")
    generator = torch.Generator().manual_seed(seed)
    fold = torch.empty(len(is_source), dtype=torch.int64)
    for members in (is_source, ~is_source):
        n = int(members.sum())
        fold[members] = torch.randperm(n, generator=generator) % count
    yield from (fold == number for number in range(count))


def _regression(
    Z: Float64[Tensor, "n q"], is_source: Bool[Tensor, " n"]
) -> tuple[Float64[Tensor, " q"], float]:
    """Weights and offset of the log-odds, by a ridge on standardized components; classes weigh the same."""
    if Z.shape[1] == 0:  # of equal samples
        return Z.new_zeros(0), 0.0
    mean, scale = Z.mean(0), Z.std(0, correction=0).clamp_min(torch.finfo(Z.dtype).tiny)
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000, tol=1e-8)
    model.fit(((Z - mean) / scale).numpy(), is_source.numpy())
    weights = torch.from_numpy(np.ascontiguousarray(model.coef_[0])) / scale
    return weights, float(model.intercept_[0]) - float(mean @ weights)


def _conformal(scores: Float64[Tensor, " n"], rate: float) -> float:
    """The order statistic that a new score exceeds with probability at most `rate`; the largest of a few."""
    rank = min(math.ceil((len(scores) + 1) * (1 - rate)), len(scores))
    return float(scores.sort().values[rank - 1])
