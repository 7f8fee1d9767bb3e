"""The description of a fit: stored and printed with the map."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ot_lens.errors import RunFolderError
from ot_lens.io.untrusted import quoted


@dataclass(frozen=True)
class FitInfo:
    """Where a map came from and how reliable its fit is. Fields that are unknown are None.

    Attributes:
        method: Name in `METHODS`.
        layer: layer whose activations were fitted.
        position: token position.
        hook: hook point.
        k: components or directions used.
        n_harmful: samples of the source class.
        n_harmless: samples of the target class.
        seed: seed of the random numbers used.
        ridge: constant added to the variances, in squared activation units.
        shrinkage: "ledoit_wolf" or "oas".
        shrinkage_harmful: intensity in [0, 1] of the source's covariance.
        shrinkage_harmless: intensity in [0, 1] of the target's covariance.
        rank: numerical rank of the pooled centred samples.
        condition_number: of the regularized source covariance, the one that is inverted.
        clipped_eigenvalues: eigenvalues that came out negative and were set to zero.
        explained_variance: share of the pooled variance within the k components.
        error_bound: bound on the relative rounding error of the map on samples.
        strength: t of T_t(x) = x + t (T(x) - x).
        problems: why the fit is poor, each with its remedy.
        notes: other remarks.
    """

    method: str | None = None
    layer: int | None = None
    position: int | str | None = None
    hook: str | None = None
    k: int | None = None
    n_harmful: int | None = None
    n_harmless: int | None = None
    seed: int | None = None
    ridge: float | None = None
    shrinkage: str | None = None
    shrinkage_harmful: float | None = None
    shrinkage_harmless: float | None = None
    rank: int | None = None
    condition_number: float | None = None
    clipped_eigenvalues: int | None = None
    explained_variance: float | None = None
    error_bound: float | None = None
    strength: float = 1.0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; unknown fields are left out."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {**known, "problems": list(self.problems), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, stored: Any) -> "FitInfo":
        """The inverse of `to_dict`.

        Raises:
            RunFolderError: If a field is unknown to this version, or a value has the wrong type.
        """
        given = set(stored) if isinstance(stored, Mapping) else set()
        unknown = given - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise RunFolderError(
                f"Unknown fields {quoted(sorted(unknown))} in a stored map: a newer ot_lens wrote it; "
                "update ot_lens."
            )
        try:
            return TypeAdapter(cls).validate_python(stored)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the description"
            raise RunFolderError(
                f"A stored map is damaged: {place}: {first['msg']}; save it again."
            ) from error
