"""Entropic optimal transport by POT: the reference that is not affine (Cuturi 2013)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import all_equal
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.maps import number
from ot_lens.transport.methods import TRANSPORT
from ot_lens.transport.to_samples import MapToSamples

TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class EntropicMap(MapToSamples):
    """Barycentric projection of the Sinkhorn plan, T(x) = sum_j y_j w_j(x).

    w(x) is the softmax of (potential_j - ||x - y_j||^2) / epsilon. On the samples it was fitted to this is
    the plan's barycentre; elsewhere it is the entropic map of Pooladian & Niles-Weed 2021 (arXiv 2109.12004).

    Attributes:
        targets: y, `[n_S, d]`.
        potential: `[n_S]`, in squared activation units.
        epsilon: regularization in squared activation units.
        strength: t of x + t (T(x) - x).
        info: where the map came from.
    """

    targets: Float[Tensor, "n_S d"]
    potential: Float[Tensor, " n_S"]
    epsilon: float
    strength: float = 1.0
    info: FitInfo = field(default_factory=FitInfo)

    SHAPES: ClassVar[Mapping[str, str]] = {"targets": "n_S d", "potential": "n_S"}

    def _image(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """The barycentre of each row."""
        logits = (self.potential - _squared_distances(rows, self.targets)) / self.epsilon
        return torch.softmax(logits, dim=1) @ self.targets

    def settings(self) -> dict[str, Any]:
        """Regularization and strength."""
        return {"epsilon": self.epsilon, **super().settings()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], info: FitInfo) -> "EntropicMap":
        """The map of stored parameters."""
        epsilon, strength = (number(settings, name) for name in ("epsilon", "strength"))
        return cls(tensors["targets"], tensors["potential"], epsilon, strength, info)


def _squared_distances(X: Float[Tensor, "a d"], Y: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    # About a common centre: ||x||^2 - 2 xy + ||y||^2 loses digits to a large common mean.
    centre = Y.mean(0)
    X, Y = X - centre, Y - centre
    return (X.square().sum(1, keepdim=True) - 2 * X @ Y.T + Y.square().sum(1)).clamp_min(0.0)


@defines_method(
    "entropic_ot",
    "Entropic OT",
    TRANSPORT,
    formula="Σ_j w_j(x) y_j",
    source="arXiv 1306.0895",
    reversible=True,
    group="Entropic OT",
    colour="#4F74C4",
    marker="pentagon",
    dash="dash",
    order=100,
)
def fit_entropic_ot(
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    *,
    epsilon: float = 0.05,
    iterations: int = 10_000,
) -> list[EntropicMap]:
    """Entropic transport of the empirical classes, log-domain Sinkhorn of POT (Cuturi 2013, arXiv 1306.0895).

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        epsilon: regularization relative to the mean squared distance between the classes.
        iterations: of Sinkhorn, at most.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: epsilon not positive, or classes that are one point.

    Warns:
        PoorFitWarning: Sinkhorn did not converge.
    """
    if not epsilon > 0:
        raise FitError(f"epsilon = {epsilon} must be positive: 0.05 of the mean squared distance is a start.")
    if bool(all_equal(H, S).any()):
        raise FitError("All samples of both classes are one point: there is nothing to transport.")
    return [_map_of_layer(*layer, epsilon, iterations) for layer in zip(H, S, strict=True)]


def _map_of_layer(
    H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"], epsilon: float, iterations: int
) -> EntropicMap:
    import ot

    cost = _squared_distances(H, S)
    absolute = epsilon * float(cost.mean())
    masses = (X.new_full((len(X),), 1 / len(X)) for X in (H, S))
    options = {"method": "sinkhorn_log", "numItermax": iterations, "stopThr": TOLERANCE}
    _, log = ot.sinkhorn(*masses, cost, absolute, warn=False, log=True, **options)
    error = float(log["err"][-1])
    stopped = f"Sinkhorn stopped at marginal error {error:.1e}: choose a larger epsilon or more iterations"
    info = FitInfo(error_bound=error, problems=() if error <= 10 * TOLERANCE else (stopped,))
    return EntropicMap(S, absolute * log["log_v"], absolute, info=info)
