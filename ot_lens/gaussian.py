"""Gaussians with covariance (low rank) + c I, and the Bures-Wasserstein distance between them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import (
    EPS,
    centred,
    centring_rounding,
    checks_samples,
    matrix_power,
    nuclear_norm,
    one_thread,
    orthonormal_span,
)
from ot_lens.moments import Moments, shrinkage_intensity


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, F^T F + floor I), one or a batch of them; nothing of size d x d is formed.

    Attributes:
        mean: `[*L, d]`.
        factor: F, `[*L, m, d]`.
        floor: c, `[*L]`: variance in directions that no sample spans.
        intensity: shrinkage in [0, 1], `[*L]`; 0 without.
        n: number of samples.
        ridge: as requested.
        shrinkage: as requested.
    """

    mean: Float64[Tensor, "*L d"]
    factor: Float64[Tensor, "*L m d"]
    floor: Float64[Tensor, "*L"]
    intensity: Float64[Tensor, "*L"]
    n: int
    ridge: float | None = None
    shrinkage: str | None = None

    @classmethod
    def fit(
        cls, X: Float64[Tensor, "*L n d"], *, ridge: float | None = None, shrinkage: str | None = None
    ) -> "Gaussian":
        """(1 - s) C + (s tr C / d + ridge) I, with C the sample covariance.

        Args:
            X: samples; leading dimensions are a batch.
            ridge: variance added to every direction, in squared activation units.
            shrinkage: "ledoit_wolf" or "oas", which choose s; None for s = 0.

        Raises:
            FitError: a negative ridge or an unknown shrinkage.
        """
        added = checked_ridge(ridge)
        Z, mean = centred(X)
        s = torch.zeros_like(mean[..., 0]) if shrinkage is None else shrinkage_intensity(Z, shrinkage)
        factor = Z / (X.shape[-2] - 1) ** 0.5
        floor = s * factor.square().sum((-2, -1)) / X.shape[-1] + added
        shrunk = factor * (1 - s).sqrt()[..., None, None]
        return cls(mean, shrunk, floor, s, X.shape[-2], ridge, shrinkage)

    @classmethod
    def of_moments(
        cls, moments: Moments, *, ridge: float | None = None, shrinkage: str | None = None
    ) -> "Gaussian":
        """Fit to streamed moments.

        Raises:
            ActivationError: fewer than two samples.
            FitError: a negative ridge or an unknown shrinkage.
        """
        added = checked_ridge(ridge)
        factor = moments.covariance_factor()
        s = 0.0 if shrinkage is None else moments.shrinkage(shrinkage)
        floor = s * moments.trace / (moments.n - 1) / len(moments.mean) + added
        scalar = moments.mean.new_tensor
        shrunk = factor * (1 - s) ** 0.5
        return cls(moments.mean, shrunk, scalar(floor), scalar(s), moments.n, ridge, shrinkage)

    @property
    def d_model(self) -> int:
        """Width."""
        return self.mean.shape[-1]

    @property
    def rounding(self) -> Float64[Tensor, "*L"]:
        """Variance that rounding can leave in a direction in which the samples do not vary."""
        return centring_rounding(self.mean.norm(dim=-1), self.n).square()

    def batched(self) -> "Gaussian":
        """This Gaussian as a batch of one."""
        fields = self.mean, self.factor, self.floor, self.intensity
        mean, factor, floor, intensity = (field.unsqueeze(0) for field in fields)
        return Gaussian(mean, factor, floor, intensity, self.n, self.ridge, self.shrinkage)

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.svd(self.factor, full_matrices=False)[1:]

    def mahalanobis(self, x: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """Mahalanobis distance of each row to the mean (not squared), for a single Gaussian.

        Raises:
            FitError: a singular covariance.
        """
        s, Qt = self._axes
        variances = s.square() + self.floor
        spans = len(s) == self.d_model
        # Dependent samples have variances of the square of the rounding of an SVD, 1e-32, rather than 0.
        rounding = max(len(s) * EPS**2 * float(variances.sum()), float(self.rounding))
        if float(variances.min()) <= rounding or not (spans or float(self.floor) > 0):
            raise FitError("The covariance is singular: use ridge > 0 or a shrinkage.")
        deviation = x - self.mean
        inside = deviation @ Qt.T
        squared = (inside.square() / variances).sum(1)
        if not spans:
            outside = deviation.square().sum(1) - inside.square().sum(1)
            squared = squared + outside.clamp_min(0.0) / self.floor
        return squared.sqrt()


def checked_ridge(ridge: float | None) -> float:
    """The ridge, 0 for None, if it is a finite variance."""
    if ridge is not None and not 0 <= ridge < float("inf"):
        raise FitError(f"ridge must be finite and >= 0, got {ridge}.")
    return ridge or 0.0


@dataclass(frozen=True)
class RestrictedRoots:
    """Roots of two covariances in a basis Q of both samples, outside which each is its floor times I."""

    Q: Float64[Tensor, "*L d m"]
    root_source: Float64[Tensor, "*L m m"]
    inverse_root_source: Float64[Tensor, "*L m m"]
    root_target: Float64[Tensor, "*L m m"]
    condition: Float64[Tensor, "*L"]  # number of the source's
    smallest: Float64[Tensor, "*L"]  # eigenvalue of the source's

    @classmethod
    def of(cls, source: Gaussian, target: Gaussian) -> "RestrictedRoots":
        """By the singular values of the coordinates: the condition number is never squared."""
        Q, in_source, in_target = orthonormal_span(source.factor, target.factor)
        values_H, E_H = _eigen(in_source, source.floor)
        values_S, E_S = _eigen(in_target, target.floor)
        return cls(
            Q,
            matrix_power(values_H, E_H, 0.5),
            matrix_power(values_H.clamp_min(torch.finfo(torch.float64).tiny), E_H, -0.5),
            matrix_power(values_S, E_S, 0.5),
            values_H[..., 0] / values_H[..., -1],
            values_H[..., -1],
        )


def _eigen(
    coordinates: Float64[Tensor, "*L n m"], floor: Float64[Tensor, "*L"]
) -> tuple[Float64[Tensor, "*L m"], Float64[Tensor, "*L m m"]]:
    """Eigenvalues, largest first, and eigenvectors of Y^T Y + floor I."""
    with one_thread():
        _, s, Vh = torch.linalg.svd(coordinates, full_matrices=True)
    missing = Vh.shape[-1] - s.shape[-1]
    return torch.nn.functional.pad(s, (0, missing)).square() + floor.unsqueeze(-1), Vh.mT


@dataclass(frozen=True)
class BuresWasserstein:
    """Both terms of W2^2 between two Gaussians; squared, not halved, in squared activation units.

    Attributes:
        location: ||mu_H - mu_S||^2.
        bures: tr(C_H + C_S - 2 (C_H^{1/2} C_S C_H^{1/2})^{1/2}).
    """

    location: float
    bures: float

    @property
    def squared(self) -> float:
        """W2^2."""
        return self.location + self.bures

    @property
    def distance(self) -> float:
        """W2."""
        return self.squared**0.5


def gaussian_distance(source: Gaussian, target: Gaussian) -> BuresWasserstein:
    """Squared W2 distance of two fitted Gaussians (Gelbrich 1990), span and complement apart."""
    location = float((source.mean - target.mean).square().sum())
    c_H, c_S = float(source.floor), float(target.floor)
    spread = float(source.factor.square().sum() + target.factor.square().sum())
    if c_H == c_S == 0:
        bures = spread - 2 * float(nuclear_norm(source.factor @ target.factor.T))
        return BuresWasserstein(location, max(bures, 0.0))
    roots = RestrictedRoots.of(source, target)
    m = roots.Q.shape[-1]
    inside = spread + m * (c_H + c_S) - 2 * float(nuclear_norm(roots.root_target @ roots.root_source))
    outside = (source.d_model - m) * (c_H**0.5 - c_S**0.5) ** 2
    return BuresWasserstein(location, max(inside, 0.0) + outside)


@checks_samples
def bures_wasserstein(
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    *,
    ridge: float = 0.0,
    shrinkage: str | None = None,
) -> BuresWasserstein:
    """Squared 2-Wasserstein distance between the Gaussians with the classes' moments, in O((n_H + n_S)^2 d).

    Biased upward when n is far below d: compare it with a null, as `diagnose` does.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        ridge: variance added to every direction of both covariances, in squared activation units.
        shrinkage: "ledoit_wolf", "oas" or None.

    Raises:
        ActivationError: samples that cannot be used (see `check_samples`).
        FitError: a negative ridge or an unknown shrinkage.
    """
    source, target = (Gaussian.fit(X, ridge=ridge, shrinkage=shrinkage) for X in (H, S))
    return gaussian_distance(source, target)
