"""Mergeable means and covariances in low-rank form, and shrinkage, which makes them usable at n << d."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.errors import ActivationError, FitError, one_of
from ot_lens.linalg import centred, centring_rounding, check_samples

LIMIT = 1024
METHODS = ("ledoit_wolf", "oas")


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of the samples seen so far, in any order (Chan, Golub & LeVeque 1983).

    The scatter sum (x - mean)(x - mean)^T is kept as factor^T factor. Up to 2 * limit rows it is exact;
    beyond, the rows are compressed to `limit` by Frequent Directions (Liberty 2013): the scatter is then
    underestimated, by at most `lost` in any direction, and `lost` is never above scatter trace / limit.
    Count, mean and trace stay exact.

    Attributes:
        n: number of samples.
        mean: `[d]`.
        factor: `[m, d]`.
        trace: sum ||x - mean||^2.
        cubic: sum ||x - mean||^2 (x - mean), which merging `quartic` needs.
        quartic: sum ||x - mean||^4, which Ledoit-Wolf needs.
        lost: bound on the spectral norm of scatter - factor^T factor.
        limit: number of rows after a compression.
    """

    n: int
    mean: Float64[Tensor, " d"]
    factor: Float64[Tensor, "m d"]
    trace: float
    cubic: Float64[Tensor, " d"]
    quartic: float
    lost: float = 0.0
    limit: int = LIMIT

    @classmethod
    def empty(cls, d_model: int, *, limit: int = LIMIT, device: torch.device | str = "cpu") -> "Moments":
        """No samples yet.

        Raises:
            ActivationError: a limit below 1.
        """
        if limit < 1:
            raise ActivationError(f"limit = {limit} rows cannot hold a covariance: use at least 1.")
        none = torch.zeros(d_model, dtype=torch.float64, device=device)
        return cls(0, none, none.new_zeros(0, d_model), 0.0, none, 0.0, limit=limit)

    @classmethod
    def of(cls, X: Float[Tensor, "n d"], *, limit: int = LIMIT) -> "Moments":
        """Moments of one batch, which may be a single sample.

        Raises:
            ActivationError: samples that cannot be used (see `check_samples`), or a limit below 1.
        """
        X = check_samples(X, least=1)
        factor, mean = centred(X)
        squares = factor.square().sum(1)
        empty = cls.empty(X.shape[1], limit=limit, device=X.device)
        sums = float(squares.sum()), factor.T @ squares, float(squares.square().sum())
        return empty.merge(cls(len(X), mean, factor, *sums, limit=limit))

    def add(self, X: Float[Tensor, "n d"]) -> "Moments":
        """These samples and a further batch."""
        return self.merge(Moments.of(X, limit=self.limit))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of samples, with the smaller limit.

        Raises:
            ActivationError: sets of different widths.
        """
        if self.mean.shape != other.mean.shape:
            raise ActivationError(f"Cannot merge moments of widths {len(self.mean)} and {len(other.mean)}.")
        n = self.n + other.n
        if n == 0:
            return self
        gap = other.mean - self.mean
        rounding = centring_rounding(torch.maximum(self.mean.abs(), other.mean.abs()), n)
        gap = torch.where(gap.abs() > rounding, gap, 0.0) if min(self.n, other.n) else gap
        mean = self.mean + gap * (other.n / n)
        between = gap * (self.n * other.n / n) ** 0.5
        ours, theirs = self._about(self.mean - mean), other._about(other.mean - mean)
        limit = min(self.limit, other.limit)
        factor, lost = _bounded(torch.cat([self.factor, other.factor, between.unsqueeze(0)]), limit)
        return Moments(
            n,
            mean,
            factor,
            self.trace + other.trace + float(between.square().sum()),
            ours[0] + theirs[0],
            ours[1] + theirs[1],
            self.lost + other.lost + lost,
            limit,
        )

    def _about(self, shift: Float64[Tensor, " d"]) -> tuple[Float64[Tensor, " d"], float]:
        """Cubic and quartic sums of y + shift, from those of the centred y."""
        along = self.factor.T @ (self.factor @ shift)
        squared = float(shift.square().sum())
        cubic = self.cubic + 2 * along + shift * (self.trace + self.n * squared)
        quartic = self.quartic + float(
            4 * (shift @ along) + 4 * (shift @ self.cubic) + 2 * squared * self.trace + self.n * squared**2
        )
        return cubic, quartic

    def covariance_factor(self) -> Float64[Tensor, "m d"]:
        """F with F^T F the sample covariance, 1 / (n - 1) convention.

        Raises:
            ActivationError: fewer than two samples.
        """
        if self.n < 2:
            raise ActivationError(f"A covariance needs at least 2 samples, got n = {self.n}.")
        return self.factor / (self.n - 1) ** 0.5

    def shrinkage(self, method: str) -> float:
        """Intensity in [0, 1] towards the scaled identity.

        Raises:
            FitError: unknown method.
        """
        squared_norm = (self.factor @ self.factor.T).square().sum()
        trace, quartic = (self.mean.new_tensor(total) for total in (self.trace, self.quartic))
        return float(_intensity(method, self.n, len(self.mean), trace, squared_norm, quartic))


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Moments of all samples together.

    Raises:
        ActivationError: an empty list, or moments of different widths.
    """
    known = list(parts)
    if not known:
        raise ActivationError("Cannot merge an empty list of moments: pass at least one.")
    return reduce(Moments.merge, known)


def _bounded(factor: Float64[Tensor, "m d"], limit: int) -> tuple[Float64[Tensor, "r d"], float]:
    """Rows with the same F^T F where possible, else `limit` rows, and the largest loss in any direction."""
    rows, d = factor.shape
    if rows <= min(2 * limit, 2 * d):
        return factor, 0.0
    _, s, Vh = torch.linalg.svd(factor, full_matrices=False)
    if d <= 2 * limit:
        return s.unsqueeze(1) * Vh, 0.0
    taken = s[limit].square()
    kept = (s[:limit].square() - taken).clamp_min(0.0).sqrt()
    return kept.unsqueeze(1) * Vh[:limit], float(taken)


def shrinkage_intensity(centred: Float64[Tensor, "*L n d"], method: str) -> Float64[Tensor, "*L"]:
    """Ledoit-Wolf (2004) or OAS (Chen et al. 2010) intensity, the same number as scikit-learn's."""
    return intensity_of_gram(centred @ centred.mT, centred.shape[-1], method)


def intensity_of_gram(
    gram: Float64[Tensor, "*L n n"], d: int, method: str = "ledoit_wolf"
) -> Float64[Tensor, "*L"]:
    """The same from the Gram matrix of centred samples of width d, in any unit."""
    squares = gram.diagonal(dim1=-2, dim2=-1)
    sums = squares.sum(-1), gram.square().sum((-2, -1)), squares.square().sum(-1)
    return _intensity(method, gram.shape[-1], d, *sums)


def _intensity(
    method: str,
    n: int,
    d: int,
    trace: Float64[Tensor, "*L"],
    squared_norm: Float64[Tensor, "*L"],
    quartic: Float64[Tensor, "*L"],
) -> Float64[Tensor, "*L"]:
    """From tr(X^T X), ||X^T X||_F^2 and sum ||x_i||^4."""
    one_of("shrinkage", method, METHODS, FitError)
    mean_variance = trace / (n * d)
    squared = squared_norm / n**2
    if method == "oas":
        # eq. (23) of Chen et al. 2010, as scikit-learn has it.
        spread = squared / d**2
        denominator = (n + 1) * (spread - mean_variance**2 / d)
        return torch.where(denominator > 0, (spread + mean_variance**2) / denominator, 1.0).clamp(0.0, 1.0)
    # Ledoit & Wolf 2004, Lemma 3.2-3.5: b^2 / d^2.
    noise = (quartic / n - squared) / (n * d)
    distance = squared / d - mean_variance**2
    return torch.where(noise > 0, torch.minimum(noise, distance) / distance, 0.0).nan_to_num(0.0)
