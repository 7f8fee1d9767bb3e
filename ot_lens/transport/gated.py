"""Maps behind a gate that looks at the activation: T(x) = x + sum_j g_j(x) (T_j(x) - x)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ot_lens.errors import RunFolderError
from ot_lens.io.untrusted import quoted
from ot_lens.transport.info import FitInfo
from ot_lens.transport.maps import (
    KINDS,
    ActivationMap,
    cast_back,
    described,
    kind_of,
    moved_to,
    working_dtype,
)

LOGISTIC, THRESHOLD = GATES = ("logistic", "threshold")
MOST_PARTS = 1024


@dataclass(frozen=True, eq=False)
class ScoreGate:
    """A gate on one linear score, s(x) = w . (x - c): 1 / (1 + exp(-s)), or 1 where s > 0 and 0 elsewhere.

    Attributes:
        direction: w, `[d]`, in nats per activation unit.
        centre: c, `[d]`, a point at which the score is 0.
        hard: Whether the gate is open or shut.
    """

    direction: Float[Tensor, " d"]
    centre: Float[Tensor, " d"]
    hard: bool = False

    SHAPES: ClassVar[Mapping[str, str]] = {"direction": "d", "centre": "d"}

    def score(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """s(x), in nats."""
        return (rows - self.centre) @ self.direction

    def weights(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        """The weight of the only part."""
        score = self.score(rows)
        return ((score > 0).to(rows.dtype) if self.hard else torch.sigmoid(score)).unsqueeze(1)

    def settings(self) -> dict[str, Any]:
        """Whether it is hard."""
        return {"hard": self.hard}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> "ScoreGate":
        """The gate of stored parameters."""
        return cls(tensors["direction"], tensors["centre"], settings.get("hard") is True)


@dataclass(frozen=True, eq=False)
class MixtureGate:
    """Weights sum_k p(k | z) plan[k, j], p the posterior of a Gaussian mixture of z = P^T (x - c).

    Attributes:
        axes: P, `[d, q]`, orthonormal.
        centre: c, `[d]`.
        log_weights: Logarithms of the mixture's weights, `[K]`.
        means: `[K, q]`.
        precisions: Inverse Cholesky factors L of the precisions L L^T, `[K, q, q]`.
        plan: `[K, m]`, how much of component k goes to part j; rows sum to 1.
    """

    axes: Float[Tensor, "d q"]
    centre: Float[Tensor, " d"]
    log_weights: Float[Tensor, " K"]
    means: Float[Tensor, "K q"]
    precisions: Float[Tensor, "K q q"]
    plan: Float[Tensor, "K m"]

    SHAPES: ClassVar[Mapping[str, str]] = {
        "axes": "d q",
        "centre": "d",
        "log_weights": "K",
        "means": "K q",
        "precisions": "K q q",
        "plan": "K m",
    }

    def posterior(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n K"]:
        """p(k | z), by (x - m)^T L L^T (x - m) and log det L."""
        z = (rows - self.centre) @ self.axes
        whitened = torch.einsum("nkq,kqr->nkr", z.unsqueeze(1) - self.means, self.precisions)
        log_det = self.precisions.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return torch.softmax(self.log_weights + log_det - whitened.square().sum(-1) / 2, dim=1)

    def weights(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """The weights of the parts, which sum to 1."""
        return self.posterior(rows) @ self.plan

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> "MixtureGate":  # noqa: ARG003
        """The gate of stored parameters."""
        return cls(**{name: tensors[name] for name in cls.SHAPES})


Gate = ScoreGate | MixtureGate
GATE_KINDS: Mapping[str, type[Gate]] = {"ScoreGate": ScoreGate, "MixtureGate": MixtureGate}


@dataclass(frozen=True, eq=False)
class GatedMap(ActivationMap):
    """T(x) = x + sum_j g_j(x) (T_j(x) - x), with weights that depend on the activation.

    Attributes:
        gate: g.
        parts: T_j, one for each weight.
        info: where the map came from.
    """

    gate: Gate
    parts: tuple[ActivationMap, ...]
    info: FitInfo = dataclasses.field(default_factory=FitInfo)

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.parts[0].d_model

    @property
    def is_identity(self) -> bool:
        """Whether no part moves anything."""
        return all(part.is_identity for part in self.parts)

    def map(self, x: Shaped[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The moved activations, in their dtype.

        Raises:
            ActivationError: see `AffineMap.map`.
        """
        self._check_input(x)
        rows = x.reshape(-1, self.d_model).to(working_dtype(x))
        gate = self.gate if self.dtype == rows.dtype else _gate_to(self.gate, rows.dtype)
        weights = gate.weights(rows)
        moved = rows.clone()
        for part, weight in zip(self.parts, weights.unbind(1), strict=True):
            moved += weight.unsqueeze(1) * (part.map(rows) - rows)
        return cast_back(moved, x)

    def at(self, strength: float) -> "GatedMap":
        """T_t(x) = x + t (T(x) - x): the gate stays, its parts move by t.

        Raises:
            FitError: If t is outside [0, 1].
        """
        info = dataclasses.replace(self.info, strength=self.info.strength * strength)
        return GatedMap(self.gate, tuple(part.at(strength) for part in self.parts), info)

    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | None = None) -> "GatedMap":
        """The map on a device or in a dtype (see `AffineMap.to`)."""
        parts = tuple(part.to(*args, device=device, dtype=dtype) for part in self.parts)
        return GatedMap(_gate_to(self.gate, *args, device=device, dtype=dtype), parts, self.info)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters of the gate, and those of each part after its number."""
        gate = {f"gate.{name}": getattr(self.gate, name) for name in self.gate.SHAPES}
        return gate | {
            f"{number}.{name}": part
            for number, inner in enumerate(self.parts)
            for name, part in inner.tensors().items()
        }

    def settings(self) -> dict[str, Any]:
        """Kind and settings of the gate and of each part."""
        return {"gate": described(self.gate), "parts": [described(part) for part in self.parts]}

    @classmethod
    def shapes(cls, settings: Mapping[str, Any]) -> tuple[Mapping[str, str], frozenset[str]]:
        """Shapes of the stored tensors of the gate and of each part."""
        gate, _ = kind_of(settings.get("gate"), GATE_KINDS)
        shapes = {f"gate.{name}": shape for name, shape in gate.SHAPES.items()}
        optional: set[str] = set()
        for index, (kind, inner) in enumerate(_part_kinds(settings)):
            own, missing = kind.shapes(inner)
            shapes |= {f"{index}.{name}": _numbered(shape, index) for name, shape in own.items()}
            optional |= {f"{index}.{name}" for name in missing}
        return shapes, frozenset(optional)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], info: FitInfo) -> "GatedMap":
        """The map of stored parameters."""
        gate, inside = kind_of(settings.get("gate"), GATE_KINDS)
        parts = [
            kind.of(_below(tensors, f"{index}."), inner, FitInfo())
            for index, (kind, inner) in enumerate(_part_kinds(settings))
        ]
        return cls(gate.of(_below(tensors, "gate."), inside), tuple(parts), info)


def _gate_to(gate: Gate, *args: Any, **kwargs: Any) -> Gate:
    moved = {name: moved_to(getattr(gate, name), *args, **kwargs) for name in gate.SHAPES}
    return type(gate).of(moved, gate.settings())


def _part_kinds(settings: Mapping[str, Any]) -> list[tuple[type[ActivationMap], dict[str, Any]]]:
    parts = settings.get("parts")
    if not isinstance(parts, list) or not 1 <= len(parts) <= MOST_PARTS:
        raise RunFolderError(f"A stored map is damaged: its parts are {quoted(parts)}; save it again.")
    return [kind_of(part, KINDS) for part in parts]


def _numbered(shape: str, index: int) -> str:
    """A shape whose sizes other than the width belong to one part."""
    return " ".join(size if size == "d" else f"{size}.{index}" for size in shape.split())


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
