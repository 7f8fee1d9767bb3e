"""Class moments under every draw, read off one N x N Gram matrix: a draw costs O(N^2), never O(d)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from scipy.linalg import helmert
from torch import Tensor

from ot_lens.linalg import centring_rounding
from ot_lens.statistics.resampling import Resamples, observed, relabellings

LABELS = ("harmful", "harmless")
Values = dict[str, Float64[Tensor, " R"]]


@dataclass(frozen=True)
class DrawnClasses:
    """The Gram matrix of the pooled centred samples seen through draws.

    Attributes:
        gram: inner products of the samples about the pooled mean.
        draws: the rows of each class.
        source_mean: inner products of the source mean with every sample.
        target_mean: the same for the target mean.
        rounding: variance that equal samples may show.
    """

    gram: Float64[Tensor, "N N"]
    draws: Resamples
    source_mean: Float64[Tensor, "R N"]
    target_mean: Float64[Tensor, "R N"]
    rounding: float

    @classmethod
    def of(
        cls, gram: Float64[Tensor, "N N"], draws: Resamples, rounding: Tensor | float = 0.0
    ) -> "DrawnClasses":
        """Average the rows of the Gram matrix over each class of each draw.

        Args:
            gram: inner products of the samples about the pooled mean.
            draws: the rows of each class.
            rounding: variance that rounding left in the samples themselves (`Pooled.gram_rounding`).
        """
        source, target = (class_weights(rows, len(gram)) @ gram for rows in (draws.source, draws.target))
        return cls(gram, draws, source, target, _variance_rounding(gram, rounding))

    def location(self) -> Float64[Tensor, " R"]:
        """Squared distance of the class means."""
        difference = self.source_mean - self.target_mean
        return (
            _at(difference, self.draws.source).mean(1) - _at(difference, self.draws.target).mean(1)
        ).clamp_min(0.0)

    def traces(self) -> tuple[Float64[Tensor, " R"], Float64[Tensor, " R"]]:
        """Total variance of each class, 1 / (n - 1) convention."""
        squares = self.gram.diagonal()
        source = _trace(squares[self.draws.source], _at(self.source_mean, self.draws.source))
        return source, _trace(squares[self.draws.target], _at(self.target_mean, self.draws.target))

    def cross(self) -> Float64[Tensor, "R n_H n_S"]:
        """X~ Y~^T: inner products of the centred classes over sqrt((n_H - 1)(n_S - 1))."""
        return self._block(self.draws.source, self.draws.target, self.source_mean, self.target_mean)

    def within(self, label: str) -> Float64[Tensor, "R n n"]:
        """X~ X~^T of one class: its nonzero eigenvalues are those of the class covariance."""
        rows, mean = (
            (self.draws.source, self.source_mean)
            if label == "harmful"
            else (self.draws.target, self.target_mean)
        )
        return self._block(rows, rows, mean, mean)

    def _block(
        self,
        left: Int64[Tensor, "R a"],
        right: Int64[Tensor, "R b"],
        left_mean: Float64[Tensor, "R N"],
        right_mean: Float64[Tensor, "R N"],
    ) -> Float64[Tensor, "R a b"]:
        block = self.gram[left.unsqueeze(2), right.unsqueeze(1)]
        columns, rows = _at(left_mean, right), _at(right_mean, left)
        block -= (columns - columns.mean(1, keepdim=True)).unsqueeze(1)
        block -= rows.unsqueeze(2)
        return block.div_(((left.shape[1] - 1) * (right.shape[1] - 1)) ** 0.5)


@dataclass(frozen=True)
class DrawnShapes:
    """Relabelled classes that share one covariance, whatever their means.

    The centred samples of a class add to zero, which their permuted labels do not preserve: at d >> n every
    draw differs from the true labels. Here a class of n is n - 1
    orthonormal contrasts of its samples, in which its mean does not occur and which have its covariance.
    Those of Gaussian classes of one covariance are all alike and independent, so that permuting labels over
    them is exact (Langsrud 2005, Statistics and Computing 15).

    Attributes:
        gram: inner products of the contrasts of both classes, source first.
        draws: the contrasts of each class.
        rounding: variance that contrasts of equal samples may show.
    """

    gram: Float64[Tensor, "M M"]
    draws: Resamples
    rounding: float = 0.0

    @classmethod
    def relabelled(
        cls,
        gram: Float64[Tensor, "N N"],
        sizes: tuple[int, int],
        count: int,
        seed: int,
        rounding: Tensor | float = 0.0,
    ) -> "DrawnShapes":
        """Permute the contrasts behind the Gram matrix of the samples, about any point."""
        basis = torch.block_diag(*(contrasts(n) for n in sizes)).to(gram)
        draws = relabellings(observed(sizes[0] - 1, sizes[1] - 1, seed), count, seed)
        return cls(basis @ gram @ basis.T, draws, _variance_rounding(gram, rounding))

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

    def contrasts(self, label: str) -> Float64[Tensor, "R m m"]:
        """Inner products of one class's contrasts over n - 1."""
        rows = self.draws.source if label == "harmful" else self.draws.target
        return self._block(rows, rows)

    def within(self, label: str) -> Float64[Tensor, "R n n"]:
        """X~ X~^T of centred samples with these contrasts."""
        block = self.contrasts(label)
        basis = contrasts(block.shape[1] + 1).to(block)
        return basis.T @ block @ basis

    def _block(self, left: Int64[Tensor, "R a"], right: Int64[Tensor, "R b"]) -> Float64[Tensor, "R a b"]:
        block = self.gram[left.unsqueeze(2), right.unsqueeze(1)]
        return block.div_((left.shape[1] * right.shape[1]) ** 0.5)


def _variance_rounding(gram: Float64[Tensor, "N N"], samples: Tensor | float) -> float:
    """Rounding of the samples, or of centring their Gram matrix where that is larger."""
    return max(float(samples), float(centring_rounding(gram.diagonal().amax(), len(gram))))


def contrasts(n: int) -> Float64[Tensor, "m n"]:
    """Helmert's n - 1 orthonormal contrasts of n samples."""
    return torch.from_numpy(helmert(n))


def joined(chunks: list[dict[str, Tensor]]) -> Values:
    """Values of consecutive chunks of draws."""
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def class_weights(rows: Int64[Tensor, "R n"], N: int) -> Float64[Tensor, "R N"]:
    """1 / n for every time a row is drawn."""
    weights = torch.zeros(rows.shape[0], N, dtype=torch.float64, device=rows.device)
    return weights.scatter_add_(1, rows, torch.full_like(rows, 1, dtype=torch.float64) / rows.shape[1])


def _at(values: Float64[Tensor, "R N"], rows: Int64[Tensor, "R n"]) -> Float64[Tensor, "R n"]:
    return values.gather(1, rows)


def _trace(squares: Float64[Tensor, "R n"], with_mean: Float64[Tensor, "R n"]) -> Float64[Tensor, " R"]:
    n = squares.shape[1]
    return ((squares.sum(1) - n * with_mean.mean(1)) / (n - 1)).clamp_min(0.0)
