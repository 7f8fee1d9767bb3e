"""The description of a fit, stored and displayed with the map, and the warning about a poor one."""

import dataclasses
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ot_lens.errors import PoorFitWarning, RunFolderError
from ot_lens.transport.methods import find_method

GENERAL = "scale ⊙ x + bias + U (Vᵀ x)"
MAX_CONDITION = 1e8
MAX_STRETCH = 300.0
PACKAGE = str(Path(__file__).parent.parent)


@dataclass(frozen=True)
class FitInfo:
    """Where a map came from and how reliable its fit is. Fields that are unknown are None.

    Attributes:
        method: Name of a method.
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
        components_harmful: Gaussian components of the source's mixture.
        components_harmless: Gaussian components of the target's mixture.
        null_space_rank: dimensions of the target's subspace that a null-space constraint leaves alone.
        null_space_variance: share of the target's second moment in it.
        gate: "logistic" or "threshold".
        gate_auc: held-out area under the ROC curve of the gate's score.
        gate_threshold: the regression's log-odds at which the gate's score is 0, in nats.
        gate_false_positives: held-out share of target samples beyond the threshold.
        gate_true_positives: held-out share of source samples beyond it.
        strength: t of T_t(x) = x + t (T(x) - x).
        problems: why the fit is poor, each with its remedy.
        notes: other remarks.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

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
    components_harmful: int | None = None
    components_harmless: int | None = None
    null_space_rank: int | None = None
    null_space_variance: float | None = None
    gate: str | None = None
    gate_auc: float | None = None
    gate_threshold: float | None = None
    gate_false_positives: float | None = None
    gate_true_positives: float | None = None
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
        try:
            return TypeAdapter(cls).validate_python(stored)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the description"
            raise RunFolderError(
                f"A stored map is damaged or of a newer ot_lens: {place}: {first['msg']}; save it again."
            ) from error


def diagnosed(
    info: FitInfo, n: int, dimension: int, *, regularized: bool, stretch: float, fewer: str = "a smaller k"
) -> FitInfo:
    """With the reasons why covariances of n samples make a poor map, whose top eigenvalue is `stretch`."""
    problems, condition, clipped = [], info.condition_number or 0.0, info.clipped_eigenvalues
    if n <= dimension and not regularized:
        problems.append(
            f"{n} samples cannot estimate a covariance in {dimension} dimensions: "
            f"choose {fewer}, more prompts or a larger ridge"
        )
    if condition > MAX_CONDITION:
        problems.append(
            f"the source covariance has condition number {condition:.1e}: "
            f"choose a larger ridge or shrinkage, or {fewer}"
        )
    if clipped:
        problems.append(f"{clipped} eigenvalues came out negative and were set to 0: choose a larger ridge")
    if stretch > MAX_STRETCH:
        problems.append(
            f"the map stretches a direction by {stretch:.0f}, in which the source hardly varies: "
            f"choose a larger ridge or shrinkage, or {fewer}"
        )
    return dataclasses.replace(info, problems=tuple(problems))


def warn_if_poor(infos: Iterable[FitInfo]) -> None:
    """Warn once about all fits of a call that have problems."""
    poor = [info for info in infos if info.problems]
    if poor:
        layers = [info.layer for info in poor if info.layer is not None]
        where = f" at layers {layers}" if layers else ""
        warn_of(f"poor {poor[0].method} fit{where}: {poor[0].problems[0]}")


def warn_of(problem: str) -> None:
    """Warn at the line outside this package that called the fit."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(problem, PoorFitWarning, stacklevel=level)


def map_table(info: FitInfo, size: dict[str, str]) -> str:
    """An HTML table of a map's origin, its size by name, and the quality of its fit."""
    known = find_method(info.method or "")
    shrunk = info.shrinkage_harmful, info.shrinkage_harmless
    facts = {
        "method": info.method or "unnamed",
        "T(x)": "x" if info.method == "identity" else (known.formula if known else "") or GENERAL,
        "layer": _shown(info.layer),
        "hook point": info.hook,
        "position": _shown(info.position),
        "fitted on": _shown(info.n_harmful, f"{{}} harmful, {info.n_harmless} harmless"),
        "strength": None if info.strength == 1.0 else f"{info.strength:g}",
        **size,
        "variance explained": _shown(info.explained_variance, "{:.0%}"),
        "condition number": _shown(info.condition_number, "{:.3g}"),
        "ridge": _shown(info.ridge, "{:.3g} activation²"),
        "null space": _shown(info.null_space_rank, f"{{}} dimensions, {info.null_space_variance or 0:.1%}"),
        "gate": _shown(
            info.gate,
            f"{{}}, held-out AUC {info.gate_auc or 0:.2f}, open for {info.gate_true_positives or 0:.0%} of "
            f"the source and {info.gate_false_positives or 0:.0%} of the target",
        ),
        "shrinkage": None if None in shrunk else "{}, {:.2f} and {:.2f}".format(info.shrinkage, *shrunk),
        "problems": "; ".join(info.problems) or None,
        "notes": "; ".join(info.notes) or None,
    }
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<table><caption>AffineMap</caption>{cells}</table>"


def _shown(value: object, form: str = "{}") -> str | None:
    return None if value is None else form.format(value)
