"""Class moments under every draw, read off one N x N Gram matrix: a draw costs O(N^2), never O(d)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float64, Int64
from scipy.linalg import helmert
from torch import Tensor

from ot_lens.linalg import Pooled, mapped
from ot_lens.statistics.resampling import Resamples, observed, relabellings

LABELS = ("harmful", "harmless")
SMALLEST = 1e-12  # of the leading eigenvalue
Values = dict[str, Float64[Tensor, " R"]]


@dataclass(frozen=True)
class PooledGram:
    """Inner products of both classes about their pooled mean, and the variance equal samples may show."""

    gram: Float64[Tensor, "N N"]
    rounding: float = 0.0

    @classmethod
    def of(cls, pooled: Pooled) -> "PooledGram":
        """From the centred samples."""
        return cls(pooled.gram().cpu(), float(pooled.gram_rounding))

    def under(self, draws: Resamples) -> "DrawnClasses":
        """Average the rows of the Gram matrix over each class of each draw."""
        source, target = (
            class_weights(rows, len(self.gram)) @ self.gram for rows in (draws.source, draws.target)
        )
        return DrawnClasses(self.gram, draws, source, target, self.rounding)

    def relabelled_shapes(self, sizes: tuple[int, int], count: int, seed: int) -> "DrawnShapes":
        """Permute the contrasts of both classes."""
        basis = torch.block_diag(*(contrasts(n) for n in sizes)).to(self.gram)
        draws = relabellings(observed(sizes[0] - 1, sizes[1] - 1, seed), count, seed)
        return DrawnShapes(basis @ self.gram @ basis.T, draws, self.rounding)


@dataclass(frozen=True)
class DrawnClasses:
    """The Gram matrix of the pooled centred samples seen through draws."""

    gram: Float64[Tensor, "N N"]
    draws: Resamples
    source_mean: Float64[Tensor, "R N"]  # inner products of the mean with every sample
    target_mean: Float64[Tensor, "R N"]
    rounding: float

    def location(self) -> Float64[Tensor, " R"]:
        """Squared distance of the class means."""
        difference = self.source_mean - self.target_mean
        source, target = (difference.gather(1, rows) for rows in (self.draws.source, self.draws.target))
        return (source.mean(1) - target.mean(1)).clamp_min(0.0)

    def traces(self) -> tuple[Float64[Tensor, " R"], Float64[Tensor, " R"]]:
        """Total variance of each class, 1 / (n - 1) convention."""
        source, target = (self._trace(*self.side(label)) for label in LABELS)
        return source, target

    def cross(self) -> Float64[Tensor, "R n_H n_S"]:
        """X~ Y~^T: inner products of the centred classes over sqrt((n_H - 1)(n_S - 1))."""
        return self._block(self.draws.source, self.draws.target, self.source_mean, self.target_mean)

    def within(self, label: str) -> Float64[Tensor, "R n n"]:
        """X~ X~^T of one class: its nonzero eigenvalues are those of the class covariance."""
        rows, mean = self.side(label)
        return self._block(rows, rows, mean, mean)

    def leading_weights(self, label: str, k: int) -> Float64[Tensor, "R N k"]:
        """W such that Z^T W is orthonormal and spans the top-k components of a class of samples Z."""
        rows, _ = self.side(label)
        return _leading_weights(self.within(label), rows, rows.shape[1] - 1, len(self.gram), k, self.rounding)

    def side(self, label: str) -> tuple[Int64[Tensor, "R n"], Float64[Tensor, "R N"]]:
        """Rows and mean of one class."""
        harmful = label == "harmful"
        return (self.draws.source, self.source_mean) if harmful else (self.draws.target, self.target_mean)

    def _trace(self, rows: Int64[Tensor, "R n"], mean: Float64[Tensor, "R N"]) -> Float64[Tensor, " R"]:
        n, squares = rows.shape[1], self.gram.diagonal()[rows]
        return ((squares.sum(1) - n * mean.gather(1, rows).mean(1)) / (n - 1)).clamp_min(0.0)

    def _block(
        self,
        left: Int64[Tensor, "R a"],
        right: Int64[Tensor, "R b"],
        left_mean: Float64[Tensor, "R N"],
        right_mean: Float64[Tensor, "R N"],
    ) -> Float64[Tensor, "R a b"]:
        block = self.gram[left.unsqueeze(2), right.unsqueeze(1)]
        columns, rows = left_mean.gather(1, right), right_mean.gather(1, left)
        block -= (columns - columns.mean(1, keepdim=True)).unsqueeze(1)
        block -= rows.unsqueeze(2)
        return block.div_(((left.shape[1] - 1) * (right.shape[1] - 1)) ** 0.5)


@dataclass(frozen=True)
class DrawnShapes:
    """Relabelled classes that share one covariance, whatever their means.

    The centred samples of a class add to zero, which their permuted labels do not preserve: at d >> n every
    draw differs from the true labels. Here a class of n is n - 1 orthonormal contrasts of its samples, which
    have its covariance but not its mean. Those of Gaussian classes of one covariance are all alike and
    independent, so that permuting labels over them is exact (Langsrud 2005, Statistics and Computing 15).
    """

    gram: Float64[Tensor, "M M"]
    draws: Resamples
    rounding: float

    def chunks(self) -> Iterator["DrawnShapes"]:
        """A few draws at a time."""
        for chunk in self.draws.chunks():
            yield DrawnShapes(self.gram, chunk, self.rounding)

    def traces(self) -> tuple[Float64[Tensor, " R"], Float64[Tensor, " R"]]:
        """Total variance of each class."""
        squares = self.gram.diagonal()
        return squares[self.draws.source].mean(1), squares[self.draws.target].mean(1)

    def cross(self) -> Float64[Tensor, "R m_H m_S"]:
        """Inner products of the classes' contrasts over sqrt((n_H - 1)(n_S - 1))."""
        return self._block(self.draws.source, self.draws.target)

    def within(self, label: str) -> Float64[Tensor, "R n n"]:
        """X~ X~^T of centred samples with these contrasts."""
        rows = self._rows(label)
        basis = contrasts(rows.shape[1] + 1).to(self.gram)
        return basis.T @ self._block(rows, rows) @ basis

    def leading_weights(self, label: str, k: int) -> Float64[Tensor, "R M k"]:
        """The same as of `DrawnClasses`, of the contrasts."""
        rows = self._rows(label)
        within = self._block(rows, rows)
        return _leading_weights(within, rows, rows.shape[1], len(self.gram), k, self.rounding)

    def _rows(self, label: str) -> Int64[Tensor, "R m"]:
        return self.draws.source if label == "harmful" else self.draws.target

    def _block(self, left: Int64[Tensor, "R a"], right: Int64[Tensor, "R b"]) -> Float64[Tensor, "R a b"]:
        block = self.gram[left.unsqueeze(2), right.unsqueeze(1)]
        return block.div_((left.shape[1] * right.shape[1]) ** 0.5)


Drawn = TypeVar("Drawn", Resamples, DrawnShapes)


def _leading_weights(
    within: Float64[Tensor, "R n n"],
    rows: Int64[Tensor, "R n"],
    freedom: int,
    N: int,
    k: int,
    rounding: float,
) -> Float64[Tensor, "R N k"]:
    values, vectors = torch.linalg.eigh(within)
    leading = values[:, -k:].unsqueeze(1)
    scaled = vectors[:, :, -k:] / (leading * freedom).sqrt()
    least = (SMALLEST * values[:, -1:, None]).clamp_min(rounding)
    scaled = scaled.masked_fill(leading <= least, torch.nan)
    W = within.new_zeros(rows.shape[0], N, k)
    return W.scatter_add_(1, rows.unsqueeze(2).expand(-1, -1, k), scaled)


def contrasts(n: int) -> Float64[Tensor, "m n"]:
    """Helmert's n - 1 orthonormal contrasts of n samples."""
    return torch.from_numpy(helmert(n))


def class_weights(rows: Int64[Tensor, "R n"], N: int) -> Float64[Tensor, "R N"]:
    """1 / n for every time a row is drawn."""
    weights = torch.zeros(rows.shape[0], N, dtype=torch.float64, device=rows.device)
    return weights.scatter_add_(1, rows, torch.full_like(rows, 1, dtype=torch.float64) / rows.shape[1])


def by_chunks(function: Callable[[Drawn], Values], draws: Drawn) -> Values:
    """Values under every draw, a few draws at a time."""
    chunks = mapped(function, draws.chunks())
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
