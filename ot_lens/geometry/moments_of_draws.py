"""Class moments under every draw, read off one N x N Gram matrix: a draw costs O(N^2), never O(d)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.geometry.draws import Draws

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
    """

    gram: Float64[Tensor, "N N"]
    draws: Draws
    source_mean: Float64[Tensor, "R N"]
    target_mean: Float64[Tensor, "R N"]

    @classmethod
    def of(cls, gram: Float64[Tensor, "N N"], draws: Draws) -> "DrawnClasses":
        """Average the rows of the Gram matrix over each class of each draw."""
        return cls(
            gram, draws, *(class_weights(rows, len(gram)) @ gram for rows in (draws.source, draws.target))
        )

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


def joined(parts: list[dict[str, Tensor]]) -> Values:
    """Values of consecutive draws, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def about_own_means(Z: Float64[Tensor, "N d"], n_source: int) -> Float64[Tensor, "N d"]:
    """Samples about the mean of their own class, source first: what is left when only shapes may differ.

    Scaled, because they lie closer to a mean that was made of them: of classes with one covariance a
    relabelled class has that covariance, as an observed one has, and not (N - 2) / (N - 1) of it.
    """
    N, parts = len(Z), (Z[:n_source], Z[n_source:])
    scales = ((len(part) / max(len(part) - 1, 1) * (N - 1) / N) ** 0.5 for part in parts)
    return torch.cat([scale * (part - part.mean(0)) for scale, part in zip(scales, parts, strict=True)])


def class_weights(rows: Int64[Tensor, "R n"], N: int) -> Float64[Tensor, "R N"]:
    """1 / n for every time a row is drawn."""
    weights = torch.zeros(rows.shape[0], N, dtype=torch.float64, device=rows.device)
    return weights.scatter_add_(1, rows, torch.full_like(rows, 1, dtype=torch.float64) / rows.shape[1])


def _at(values: Float64[Tensor, "R N"], rows: Int64[Tensor, "R n"]) -> Float64[Tensor, "R n"]:
    return values.gather(1, rows)


def _trace(squares: Float64[Tensor, "R n"], with_mean: Float64[Tensor, "R n"]) -> Float64[Tensor, " R"]:
    n = squares.shape[1]
    return ((squares.sum(1) - n * with_mean.mean(1)) / (n - 1)).clamp_min(0.0)
