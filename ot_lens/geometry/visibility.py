"""Can a monitor see an edit? How far edited activations are from the model's own harmless distribution."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.errors import ActivationError, one_of
from ot_lens.gaussian import Gaussian
from ot_lens.geometry.held_out import auc
from ot_lens.geometry.quantities import COLUMNS, SHARE, Quantity, row
from ot_lens.geometry.resampled_moments import LABELS, Values
from ot_lens.linalg import Pooled, centring_rounding, check_pair
from ot_lens.samples import LayerSamples, resolve_position
from ot_lens.statistics.resampling import FOLDS, Resamples, ResamplingPlan

RELATIVE_RIDGE = 0.01
SCORE_ROUNDING = 1e-11
QUANTITIES = (
    Quantity("mahalanobis", "standard deviations"),
    Quantity("mahalanobis_auc", "AUC", SHARE),
    Quantity("classifier_auc", "AUC", SHARE),
)


def visibility(
    edited: LayerSamples,
    reference: LayerSamples,
    *,
    label: str = "harmful",
    method: str | None = None,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How visible an edit is to a monitor that knows the unedited harmless activations, layer by layer.

    Capture `edited` under the edit: layers after the edited one show how the rest of the model processes it.
    Pass unedited activations for the level before any edit.

    - `mahalanobis`: mean Mahalanobis distance of the edited samples to a Gaussian (Ledoit-Wolf) of the
      reference; its null is that of held-out reference samples, resampled twice because their own level is
      estimated from as few.
    - `mahalanobis_auc`: how well that distance tells edited from held-out reference samples, for a monitor
      that has never seen an edit.
    - `classifier_auc`: the same for a two-sample test, a ridge classifier trained on edited and reference
      samples (Lopez-Paz & Oquab 2017): a monitor that knows the edit.

    Everything is cross-fitted over folds; the null of an AUC permutes edited and reference labels. Intervals
    resample the held-out scores: they cover other prompts under this monitor, not other monitors. NaN where
    nothing varies.

    Args:
        edited: activations under an edit.
        reference: activations of the model itself; its harmless class is the reference.
        label: class of `edited` to measure.
        method: name of the edit in the table.
        position: token position; may be left out when only one was captured.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of folds and draws.

    Returns:
        Columns layer, position, method, quantity, value, n, null_mean, null_low, null_high, low, high, unit.

    Raises:
        ActivationError: no common layer, fewer than 8 samples, an unknown label, or bad samples.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    one_of("label", label, LABELS, ActivationError)
    layers = [layer for layer in edited.layers if layer in reference.layers]
    if not layers:
        raise ActivationError(
            f"No common layer in {list(edited.layers)} and {list(reference.layers)}: capture the same ones."
        )
    at = resolve_position(edited, position)
    rows: list[dict[str, Any]] = []
    for layer in layers:
        source = edited.harmful if label == "harmful" else edited.harmless
        names = (f"edited at layer {layer}", f"reference at layer {layer}")
        X, R = check_pair(
            source(layer=layer, position=at),
            reference.harmless(layer=layer, position=resolve_position(reference, position)),
            names=names,
            least=2 * FOLDS,
        )
        keys = {"layer": layer, "position": at, "method": method}
        rows += _rows(keys, X.cpu(), R.cpu(), plan)
    return pd.DataFrame(rows, columns=["layer", "position", "method", *COLUMNS])


def _rows(
    keys: dict[str, Any],
    X: Float64[Tensor, "n d"],
    R: Float64[Tensor, "m d"],
    plan: ResamplingPlan,
) -> Iterator[dict[str, Any]]:
    labels = plan.observed(len(X), len(R))
    distances = _distances(X, R, labels)
    Z, fold = Pooled.of(X, R).Z, torch.cat([labels.source_fold[0], labels.target_fold[0]])
    gram = Z @ Z.T
    scores = _classifier_scores(gram, fold, _signs(labels))
    shuffled = plan.relabelled(labels, within_folds=True)
    value, drawn = (_read(distances, scores, draws) for draws in (labels, plan.resampled(labels)))
    null = _read(distances, _classifier_scores(gram, fold, _signs(shuffled)), shuffled)
    null["mahalanobis"] = _reference(distances, shuffled, plan.seed)
    if not bool(Z.any()):
        value, null, drawn = {quantity.name: torch.tensor([torch.nan]) for quantity in QUANTITIES}, {}, {}
    for quantity in QUANTITIES:
        retrained = quantity.name != "classifier_auc"
        yield row(keys, quantity, len(X) + len(R), (value, null, drawn), labels=labels, retrained=retrained)


def _distances(
    X: Float64[Tensor, "n d"], R: Float64[Tensor, "m d"], labels: Resamples
) -> Float64[Tensor, " N"]:
    """Of every sample to the Gaussian of the reference samples outside its fold."""
    distances = torch.zeros(len(X) + len(R), dtype=X.dtype, device=X.device)
    for fold in range(labels.folds):
        inside_X, inside_R = (held == fold for held in (labels.source_fold[0], labels.target_fold[0]))
        gaussian = Gaussian.fit(R[~inside_R], shrinkage="ledoit_wolf")
        distances[: len(X)][inside_X] = _mahalanobis(gaussian, X[inside_X])
        distances[len(X) :][inside_R] = _mahalanobis(gaussian, R[inside_R])
    return distances


def _mahalanobis(gaussian: Gaussian, x: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Infinite for samples that differ from a reference without spread."""
    if bool(gaussian.factor.any()):
        return gaussian.mahalanobis(x)
    rounding = centring_rounding(gaussian.mean.abs(), gaussian.n)
    same = ((x - gaussian.mean).abs() <= rounding).all(1)
    return torch.where(same, 0.0, torch.full_like(x[:, 0], torch.inf))


def _signs(draws: Resamples) -> Float64[Tensor, "r N"]:
    """+1 for edited, -1 for reference."""
    N = sum(draws.sizes)
    signs = torch.full((draws.count, N), -1.0, dtype=torch.float64)
    return signs.scatter_(1, draws.source, 1.0)


def _classifier_scores(
    gram: Float64[Tensor, "N N"], fold: Int64[Tensor, " N"], signs: Float64[Tensor, "r N"]
) -> Float64[Tensor, "r N"]:
    """Held-out scores of a ridge classifier; each fold is factorized once for all labellings."""
    scores = torch.zeros_like(signs)
    for held_out in range(int(fold.max()) + 1):
        test, train = fold == held_out, fold != held_out
        inner = gram[train][:, train]
        outer = gram[test][:, train] - inner.mean(1)
        outer = outer - outer.mean(1, keepdim=True)
        centred = inner - inner.mean(0) - inner.mean(1, keepdim=True) + inner.mean()
        ridge = RELATIVE_RIDGE * centred.diagonal().mean() + torch.finfo(gram.dtype).tiny
        targets = signs[:, train] - signs[:, train].mean(1, keepdim=True)
        eye = torch.eye(len(inner), dtype=gram.dtype, device=gram.device)
        scores[:, test] = torch.linalg.solve(centred + ridge * eye, targets.T).T @ outer.T
    return scores


def _read(distances: Float64[Tensor, " N"], scores: Float64[Tensor, "r N"], draws: Resamples) -> Values:
    """The three quantities for drawn samples; one row of scores serves all draws."""
    drawn = scores.expand(draws.count, -1)
    return {
        "mahalanobis": distances[draws.source].mean(1),
        "mahalanobis_auc": _auc(distances, distances[draws.source], distances[draws.target], draws),
        "classifier_auc": _auc(scores, drawn.gather(1, draws.source), drawn.gather(1, draws.target), draws),
    }


def _reference(distances: Float64[Tensor, " N"], draws: Resamples, seed: int) -> Float64[Tensor, " r"]:
    """Mean distance of held-out reference samples, resampled twice."""
    n, m = draws.sizes
    generator = torch.Generator().manual_seed(seed + 6)
    # First the reference samples from which the level is estimated, then edited samples of that level.
    known = torch.randint(n, n + m, (draws.count, m), generator=generator)
    chosen = known.gather(1, torch.randint(m, (draws.count, n), generator=generator))
    return distances[chosen].mean(1)


def _auc(scores: Tensor, source: Tensor, target: Tensor, draws: Resamples) -> Float64[Tensor, " r"]:
    """Equal samples have scores that are equal up to rounding: those are ties."""
    largest = scores.nan_to_num(posinf=0.0).abs().max() if len(scores) else 0.0
    return auc(source, target, draws, SCORE_ROUNDING * largest)
