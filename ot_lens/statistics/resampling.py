"""Relabelled and resampled prompts: indices into one Gram matrix, drawn once for all layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from ot_lens.errors import OtLensError

FOLDS = 4
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Resamples:
    """R choices of the rows of both classes among the pooled samples (source first), and each row's fold."""

    source: Int64[Tensor, "R n_H"]
    target: Int64[Tensor, "R n_S"]
    source_fold: Int64[Tensor, "R n_H"]
    target_fold: Int64[Tensor, "R n_S"]
    folds: int  # even, so that even and odd folds are halves

    @property
    def count(self) -> int:
        """R."""
        return self.source.shape[0]

    @property
    def sizes(self) -> tuple[int, int]:
        """Samples of the source and of the target class."""
        return self.source.shape[1], self.target.shape[1]

    def slice(self, start: int, stop: int) -> "Resamples":
        """Resamples start .. stop - 1."""
        chosen = slice(start, stop)
        folds = self.source_fold[chosen], self.target_fold[chosen]
        return Resamples(self.source[chosen], self.target[chosen], *folds, self.folds)

    def chunks(self, count_bytes: int = CHUNK_BYTES) -> Iterator["Resamples"]:
        """A few draws at a time, whose n x n matrices fit that many bytes and so stay in cache."""
        size = max(1, count_bytes // (8 * max(self.sizes) ** 2))
        for start in range(0, max(self.count, 1), size):
            yield self.slice(start, start + size)


def observed(n_H: int, n_S: int, seed: int) -> Resamples:
    """The observed labels; the assignment to folds is random, seeded and balanced in each class."""
    folds = FOLDS if min(n_H, n_S) >= FOLDS else 2
    generator = torch.Generator().manual_seed(seed)
    source_fold, target_fold = (torch.randperm(n, generator=generator) % folds for n in (n_H, n_S))
    source, target = torch.arange(n_H), torch.arange(n_H, n_H + n_S)
    return Resamples(
        source.unsqueeze(0), target.unsqueeze(0), source_fold.unsqueeze(0), target_fold.unsqueeze(0), folds
    )


def relabellings(labels: Resamples, count: int, seed: int, *, within_folds: bool = False) -> Resamples:
    """Labels permuted over the pooled prompts, or within each fold of them."""
    n_H, n_S = labels.sizes
    generator = torch.Generator().manual_seed(seed + 1)
    keys = torch.rand(count, n_H + n_S, generator=generator)
    if within_folds:
        fold = torch.cat([labels.source_fold[0], labels.target_fold[0]])
        slots = fold.argsort(stable=True)
        orders = torch.empty_like(keys, dtype=torch.int64)
        orders[:, slots] = (keys.double() + fold).argsort(1)
    else:
        orders = keys.argsort(1)
    folds = labels.source_fold.expand(count, -1), labels.target_fold.expand(count, -1)
    return Resamples(orders[:, :n_H], orders[:, n_H:], *folds, labels.folds)


def bootstraps(labels: Resamples, count: int, seed: int) -> Resamples:
    """Prompts of each class drawn with replacement; copies of a prompt stay in one fold, so none leaks."""
    n_H, n_S = labels.sizes
    generator = torch.Generator().manual_seed(seed + 2)
    source = torch.randint(n_H, (count, n_H), generator=generator)
    target = torch.randint(n_S, (count, n_S), generator=generator)
    return Resamples(
        source, target + n_H, labels.source_fold[0][source], labels.target_fold[0][target], labels.folds
    )


@dataclass(frozen=True)
class ResamplingPlan:
    """How often to permute the labels for the null and to resample for the interval; 0 for neither."""

    permutations: int
    bootstrap: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.permutations, self.bootstrap) < 0:
            raise OtLensError(
                f"The numbers of draws must be >= 0, got permutations = {self.permutations}, "
                f"bootstrap = {self.bootstrap}."
            )

    def observed(self, n_H: int, n_S: int) -> Resamples:
        """The observed labels."""
        return observed(n_H, n_S, self.seed)

    def relabelled(self, labels: Resamples, *, within_folds: bool = False) -> Resamples:
        """Draws of the null."""
        return relabellings(labels, self.permutations, self.seed, within_folds=within_folds)

    def resampled(self, labels: Resamples) -> Resamples:
        """Draws of the interval."""
        return bootstraps(labels, self.bootstrap, self.seed)

    def measure(
        self, labels: Resamples, function: Callable[[Resamples], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The observed value of a function of draws, its null and its resamples."""
        return function(labels)[0], function(self.relabelled(labels)), function(self.resampled(labels))
