"""Cross-fitted linear probes that read the samples of one layer from their Gram matrix only."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ot_lens.linalg import EPS, Pooled, one_thread
from ot_lens.statistics.intervals import auc_interval

FOLDS = 4
MAX_STEPS, MAX_HALVINGS = 100, 40
TOLERANCE = 1e-10
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
    """Weights of the samples in the normal vectors of logistic regressions, by Newton's method."""
    fitted = _Fitted(torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros_like(weights[:, :1]))
    for _ in range(MAX_STEPS):
        step = _newton_step(fitted, grams, labels, weights, penalty)
        moved = _downhill(fitted, step, labels, weights, penalty)
        change = (moved.log_odds - fitted.log_odds).abs().max()
        fitted = moved
        if change <= TOLERANCE * (1 + fitted.log_odds.abs().max()):
            break
    return fitted.alpha


@dataclass(frozen=True)
class _Fitted:
    """Logistic regressions, or a change of them."""

    alpha: Float64[Tensor, "rows N"]
    scores: Float64[Tensor, "rows N"]  # Gram matrix times alpha
    intercept: Float64[Tensor, "rows 1"]

    @property
    def log_odds(self) -> Float64[Tensor, "rows N"]:
        return self.scores + self.intercept

    def moved(self, step: "_Fitted", length: Float64[Tensor, "rows 1"]) -> "_Fitted":
        """Part of the way."""
        pairs = zip(vars(self).values(), vars(step).values(), strict=True)
        return _Fitted(*(part + length * change for part, change in pairs))

    def loss(self, labels: Tensor, weights: Tensor, penalty: float) -> Float64[Tensor, "rows 1"]:
        """Mean loss and penalty."""
        losses = torch.nn.functional.softplus((1 - 2 * labels) * self.log_odds)
        return (weights * losses + penalty / 2 * self.alpha * self.scores).sum(1, keepdim=True)


def _newton_step(at: _Fitted, grams: Tensor, labels: Tensor, weights: Tensor, penalty: float) -> _Fitted:
    """(R K R + penalty I) b = R (z - intercept), R^2 the curvatures, z the working response, alpha = R b.

    So scaled, the system is no worse conditioned than the ridge allows, however sure the probe is.
    """
    p = torch.sigmoid(at.log_odds)
    root = (weights * (p * (1 - p)).clamp_min(EPS)).sqrt()
    working = root * at.log_odds + weights * (labels - p) / root.clamp_min(torch.finfo(root.dtype).tiny)
    system = (root.unsqueeze(-1) * grams).mul_(root.unsqueeze(-2))
    system.diagonal(dim1=-2, dim2=-1).add_(penalty)
    with one_thread():
        factor = torch.linalg.cholesky(system)
        solved = torch.cholesky_solve(torch.stack([working, root], dim=-1), factor)
    # The intercept makes the weights alpha sum to zero.
    sums = root.unsqueeze(1) @ solved
    intercept = sums[..., 0] / sums[..., 1]
    step = root * (solved[..., 0] - intercept * solved[..., 1]) - at.alpha
    return _Fitted(step, (grams @ step.unsqueeze(-1)).squeeze(-1), intercept - at.intercept)


def _downhill(at: _Fitted, step: _Fitted, labels: Tensor, weights: Tensor, penalty: float) -> _Fitted:
    """The end of the step, halved until no loss is larger, up to rounding."""
    length, before = torch.ones_like(at.intercept), at.loss(labels, weights, penalty)
    for _ in range(MAX_HALVINGS):
        moved = at.moved(step, length)
        worse = moved.loss(labels, weights, penalty) > before + ROUNDING
        if not bool(worse.any()):
            return moved
        length = torch.where(worse, length / 2, length)
    return at
