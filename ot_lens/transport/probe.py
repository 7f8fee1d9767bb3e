"""Cross-fitted linear probes that read the samples of one layer from their Gram matrix only."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ot_lens.linalg import EPS, Pooled, one_thread
from ot_lens.statistics.intervals import auc_interval

FOLDS = 4
MAX_STEPS = 100
TOLERANCE = 1e-12
# Log odds that are closer than this are equal up to rounding.
TIE = 1e-9
# Squared norms below this share of what they are computed from are rounding.
ROUNDING = 1e-13
RIDGE = 0.01


@dataclass(frozen=True)
class HeldOutAUC:
    """How well a probe tells held-out samples of the classes apart: its AUC and 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_chance(self) -> bool:
        """Whether the interval does not lie above one half."""
        return self.low <= 0.5

    def __str__(self) -> str:
        """The value and its interval."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class CrossFit:
    """The samples of one layer, source first, the assignment of each to a fold, and a probe's ridge.

    Row f of a batch leaves out the samples of fold f; one row more than there are folds leaves out none.
    """

    gram: Float64[Tensor, "N N"]  # of the samples about their pooled mean
    source: int  # samples of the source class
    fold: Int64[Tensor, " N"]
    folds: int
    penalty: float

    @classmethod
    def of(cls, pooled: Pooled, n_H: int, ridge: float, seed: int) -> "CrossFit":
        """Random folds, balanced in each class; the ridge is a share of the mean squared norm."""
        gram, n_S = pooled.gram(), pooled.Z.shape[0] - n_H
        folds = FOLDS if min(n_H, n_S) >= FOLDS else 2
        generator = torch.Generator().manual_seed(seed)
        order = [torch.randperm(n, generator=generator, device="cpu") % folds for n in (n_H, n_S)]
        penalty = ridge * float(gram.diagonal().mean()) + torch.finfo(gram.dtype).tiny
        return cls(gram, n_H, torch.cat(order).to(gram.device), folds, penalty)

    @property
    def sizes(self) -> tuple[int, int]:
        """Samples of the source and of the target class."""
        return self.source, len(self.fold) - self.source

    @property
    def is_source(self) -> Bool[Tensor, " N"]:
        """Whether each sample is of the source class."""
        return torch.arange(len(self.fold), device=self.fold.device) < self.source

    @property
    def training(self) -> Bool[Tensor, "rows N"]:
        """The samples that each row keeps."""
        rows = torch.arange(self.folds + 1, device=self.fold.device).unsqueeze(1)
        return self.fold != rows

    def probes(self, grams: Float64[Tensor, "rows N N"]) -> Float64[Tensor, "rows N"]:
        """Ridge logistic regressions: weights of the training samples whose combination is the normal vector.

        Minimizes the mean loss, both classes weighted alike, plus penalty / 2 times the squared norm of the
        normal vector; the intercept is free.
        """
        training, source = self.training[: len(grams)].to(grams.dtype), self.is_source
        n_H, n_S = (training[:, side].sum(1, keepdim=True) for side in (source, ~source))
        weights = training / (2 * torch.where(source, n_H, n_S))
        return logistic_weights(grams, source.to(grams.dtype), weights, self.penalty)

    def without(
        self, grams: Float64[Tensor, "rows N N"], alpha: Float64[Tensor, "rows N"]
    ) -> Float64[Tensor, "rows N N"]:
        """The Gram matrices once the combinations of the samples with weights alpha are projected out.

        A direction of which only rounding is left is projected out already.
        """
        along = (grams @ alpha.unsqueeze(-1)).squeeze(-1)
        square = (alpha * along).sum(1)[:, None, None]
        largest = (alpha.abs() @ self.gram.diagonal().sqrt()).square()[:, None, None]
        change = along.unsqueeze(2) * along.unsqueeze(1) / square.clamp_min(torch.finfo(grams.dtype).tiny)
        return grams - torch.where(square > ROUNDING * largest, change, 0.0)

    def held_out_auc(
        self, grams: Float64[Tensor, "rows N N"], probes: Float64[Tensor, "rows N"]
    ) -> HeldOutAUC:
        """Share of pairs of one fold in which the probe of the other folds ranks the source higher."""
        scores = (grams @ probes.unsqueeze(-1)).squeeze(-1).gather(0, self.fold.unsqueeze(0)).squeeze(0)
        difference = scores[: self.source, None] - scores[None, self.source :]
        same = self.fold[: self.source, None] == self.fold[None, self.source :]
        wins = (difference > TIE).double() + (difference.abs() <= TIE).double() / 2
        value = float(wins[same].mean())
        # Folds are trained on overlapping samples (Nadeau & Bengio 2003).
        inflation = 1 + self.folds / (self.folds - 1)
        return HeldOutAUC(value, *auc_interval(value, self.sizes, self.folds, inflation))


def logistic_weights(
    grams: Float64[Tensor, "rows N N"],
    labels: Float64[Tensor, " N"],
    weights: Float64[Tensor, "rows N"],
    penalty: float,
) -> Float64[Tensor, "rows N"]:
    """Weights of the samples in the normal vectors of logistic regressions, by Newton's method in the dual.

    In each step (sqrt(W) K sqrt(W) + penalty I) b = sqrt(W) (z - intercept): never worse conditioned than the
    ridge allows, however sure the probe is of a sample.
    """
    alpha, intercept = torch.zeros_like(weights), torch.zeros_like(weights[:, :1])
    scores, loss = torch.zeros_like(weights), _loss(labels, weights, torch.zeros_like(weights), 0.0)
    for _ in range(MAX_STEPS):
        p = torch.sigmoid(scores + intercept)
        root = (weights * (p * (1 - p)).clamp_min(EPS)).sqrt()
        residual = weights * (labels - p)
        working = root * (scores + intercept) + residual / root.clamp_min(torch.finfo(root.dtype).tiny)
        system = (root.unsqueeze(-1) * grams).mul_(root.unsqueeze(-2))
        system.diagonal(dim1=-2, dim2=-1).add_(penalty)
        with one_thread():
            factor = torch.linalg.cholesky(system)
            solved = torch.cholesky_solve(torch.stack([working, root], dim=-1), factor)
        shift = (root * solved[..., 0]).sum(1, keepdim=True) / (root * solved[..., 1]).sum(1, keepdim=True)
        step = root * (solved[..., 0] - shift * solved[..., 1]) - alpha
        moved = (grams @ step.unsqueeze(-1)).squeeze(-1)
        length = torch.ones_like(intercept)
        for _ in range(MAX_STEPS):
            tried = alpha + length * step
            tried_scores, tried_intercept = scores + length * moved, intercept + length * (shift - intercept)
            norm = penalty / 2 * (tried * tried_scores).sum(1)
            tried_loss = _loss(labels, weights, tried_scores + tried_intercept, norm)
            worse = (tried_loss > loss + TOLERANCE).unsqueeze(1)
            if not bool(worse.any()):
                break
            length = torch.where(worse, length / 2, length)
        change = float((tried_scores + tried_intercept - scores - intercept).abs().max())
        alpha, scores, intercept, loss = tried, tried_scores, tried_intercept, tried_loss
        if change <= 1e-10 * (1 + float(scores.abs().max())):
            break
    return alpha


def _loss(labels: Tensor, weights: Tensor, scores: Tensor, norm: Tensor | float) -> Float64[Tensor, " rows"]:
    signs = 2 * labels - 1
    return (weights * torch.nn.functional.softplus(-signs * scores)).sum(1) + norm
