"""How well the refusal direction separates held-out prompts, under every draw."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ot_lens.geometry.distances import line_distance
from ot_lens.geometry.resampled_moments import DrawnClasses, Values
from ot_lens.statistics.resampling import Resamples


def held_out(classes: DrawnClasses) -> Values:
    """How well the direction of the other folds separates the prompts of each fold."""
    source, target = _held_out_projections(classes)
    draws = classes.draws
    # A projection is as accurate as the samples are long, whatever is left of it.
    rounding = classes.rounding / classes.gram.diagonal().amax().sqrt()
    return {
        "auc_direction": auc(source, target, draws, rounding),
        "fisher_ratio": _fisher(source, target, draws, rounding),
        "w2_on_direction": line_distance(source, target),
    }


def _fold_direction(
    draws: Resamples, N: int, keep_H: Bool[Tensor, "R n_H"], keep_S: Bool[Tensor, "R n_S"]
) -> Tensor:
    """Weights [R, N] whose combination of samples is the difference in means of the kept slots."""
    weights = torch.zeros(draws.count, N, dtype=torch.float64, device=draws.source.device)
    for rows, keep, sign in ((draws.source, keep_H, 1.0), (draws.target, keep_S, -1.0)):
        share = keep.to(torch.float64) * sign
        weights.scatter_add_(1, rows, share / keep.sum(1, keepdim=True).clamp_min(1))
    return weights


def _held_out_projections(classes: DrawnClasses) -> tuple[Float64[Tensor, "R n_H"], Float64[Tensor, "R n_S"]]:
    """Projection of every slot on the unit direction of the other folds."""
    draws, gram = classes.draws, classes.gram
    source = torch.zeros(draws.source.shape, dtype=torch.float64, device=gram.device)
    target = torch.zeros(draws.target.shape, dtype=torch.float64, device=gram.device)
    for fold in range(draws.folds):
        out_H, out_S = draws.source_fold == fold, draws.target_fold == fold
        weights = _fold_direction(draws, len(gram), ~out_H, ~out_S)
        scores = weights @ gram
        squared = (scores * weights).sum(1, keepdim=True)
        scores = scores / squared.masked_fill(squared <= classes.rounding, torch.nan).sqrt()
        source = torch.where(out_H, scores.gather(1, draws.source), source)
        target = torch.where(out_S, scores.gather(1, draws.target), target)
    return source, target


def auc(
    source: Float64[Tensor, "R n_H"],
    target: Float64[Tensor, "R n_S"],
    draws: Resamples,
    rounding: Tensor | float = 0.0,
) -> Float64[Tensor, " R"]:
    """Share of pairs of one fold in which the source scores higher; ties, up to rounding, count one half."""
    same = draws.source_fold.unsqueeze(2) == draws.target_fold.unsqueeze(1)
    left, right = source.unsqueeze(2), target.unsqueeze(1)
    above, not_below = ((left > right + rounding) & same, (left >= right - rounding) & same)
    wins = (above.sum((1, 2)) + not_below.sum((1, 2))).to(torch.float64) / 2
    undefined = source.isnan().any(1) | target.isnan().any(1)
    return (wins / same.sum((1, 2)).to(torch.float64)).masked_fill(undefined, torch.nan)


def _fisher(
    source: Float64[Tensor, "R n_H"], target: Float64[Tensor, "R n_S"], draws: Resamples, rounding: Tensor
) -> Float64[Tensor, " R"]:
    """Squared mean gap over the summed within-class variances of held-out projections, fold by fold."""
    mean_H, variance_H = _by_fold(source, draws.source_fold, draws.folds)
    mean_S, variance_S = _by_fold(target, draws.target_fold, draws.folds)
    variance = variance_H + variance_S
    variance = variance.masked_fill(variance <= rounding.square(), torch.nan)
    return (mean_H - mean_S).nanmean(1).square() / variance


def _by_fold(
    scores: Float64[Tensor, "R n"], fold: Tensor, folds: int
) -> tuple[Float64[Tensor, "R F"], Float64[Tensor, " R"]]:
    """Mean of each fold, and the variance about them; NaN where there are no degrees of freedom."""
    member = torch.nn.functional.one_hot(fold, folds).to(torch.float64)
    size = member.sum(1)
    mean = (member * scores.unsqueeze(2)).sum(1) / size
    residual = scores - mean.gather(1, fold)
    freedom = (size - 1).clamp_min(0).sum(1)
    return mean, residual.square().sum(1) / freedom


def location_share(classes: DrawnClasses, sample: DrawnClasses | None = None) -> Values:
    """Squared cosine of the differences in means of both halves of the prompts; noise makes it smaller."""
    products, norms = _between_halves(classes)
    # Repeated prompts inflate a resample's own ||d_1||^2 ||d_2||^2, which would make its spread too small.
    if sample is not None:
        norms = _between_halves(sample)[1]
    return {"location_share_on_direction": products.square() / norms}


def _between_halves(classes: DrawnClasses) -> tuple[Float64[Tensor, " R"], Float64[Tensor, " R"]]:
    """d_1 . d_2 and ||d_1||^2 ||d_2||^2 of the even and the odd folds."""
    draws, gram = classes.draws, classes.gram
    even_H, even_S = draws.source_fold % 2 == 0, draws.target_fold % 2 == 0
    one = _fold_direction(draws, len(gram), even_H, even_S)
    other = _fold_direction(draws, len(gram), ~even_H, ~even_S)
    projected = one @ gram
    squares = torch.stack([(projected * one).sum(1), ((other @ gram) * other).sum(1)])
    squares = squares.masked_fill(squares <= classes.rounding, torch.nan)
    return (projected * other).sum(1), squares.prod(0)
