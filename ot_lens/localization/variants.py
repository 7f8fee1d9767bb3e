"""Variants of chosen edits: weaker, of another rank, lift or token scope; one setting changed at a time."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ot_lens.activations import Activations
from ot_lens.errors import FitError, HookError, PoorFitWarning, one_of
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.localization.candidates import Candidate, candidate_at
from ot_lens.localization.methods import MethodSpec, fit_maps
from ot_lens.localization.outside import with_domains
from ot_lens.localization.settings import SweepSettings
from ot_lens.tables import VARIANT_COLUMNS, join
from ot_lens.transport import ActivationMap

STRENGTH, RANK, LIFT, SCOPE = AXES = ("strength", "k", "lift", "tokens")
# Lifts as parameters of PCA-OT; "discard" is the paper's formula as written.
LIFTS: Mapping[str, Mapping[str, str]] = {
    "full": {"mean_shift": "full"},
    "subspace": {"mean_shift": "subspace"},
    "discard": {"lift": "discard"},
}
PCA_OT = "pca_ot"


@dataclass(frozen=True, eq=False)
class Variant:
    """An edit that differs from a chosen one, whose key is `of`, in one setting."""

    candidate: Candidate
    of: str
    axis: str
    level: str


def check_axes(axes: Mapping[str, Sequence[Any]]) -> None:
    """Raise a HookError if an axis or a level of it does not exist."""
    allowed = {LIFT: tuple(LIFTS), SCOPE: TOKEN_SCOPES}
    for axis, levels in axes.items():
        one_of("axis of variants", axis, AXES, HookError)
        for level in levels:
            if axis in allowed:
                one_of(f"{axis} of a variant", level, allowed[axis], HookError)
            elif axis == STRENGTH and not (_is_number(level) and 0 < level <= 1):
                raise HookError(f"The strength of a variant must be in (0, 1], got {level!r}.")
            elif axis == RANK and not (isinstance(level, int) and level > 0):
                raise HookError(f"The rank of a variant must be a positive whole number, got {level!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def variants(
    chosen: Sequence[Candidate],
    acts: Activations,
    settings: SweepSettings,
    axes: Mapping[str, Sequence[Any]],
) -> list[Variant]:
    """Every chosen edit with each setting of the axes, one at a time; its own setting is left out.

    All of them are varied in strength, those of PCA-OT at one layer also in rank, lift and token scope. Ranks
    that the samples do not have are left out.
    """
    check_axes(axes)
    made = [variant for candidate in chosen for variant in _of(candidate, acts, settings, axes)]
    placed = with_domains(acts, [variant.candidate for variant in made], settings)
    return [replace(variant, candidate=one) for variant, one in zip(made, placed, strict=True)]


def _of(
    candidate: Candidate, acts: Activations, settings: SweepSettings, axes: Mapping[str, Sequence[Any]]
) -> Iterator[Variant]:
    for strength in axes.get(STRENGTH, ()):
        if strength != candidate.strength:
            weaker = {
                site: edit.at(float(strength))
                for site, edit in candidate.edits.items()
                if isinstance(edit, ActivationMap)
            }
            changed = replace(candidate, edits=weaker, strength=float(strength))
            yield Variant(changed, candidate.key, STRENGTH, f"{strength:g}")
    if candidate.method.name != PCA_OT or len(candidate.layers) != 1:
        return
    for scope in axes.get(SCOPE, ()):
        if scope != candidate.tokens:
            changed = replace(candidate, tokens=scope, variant=f"tokens {scope}")
            yield Variant(changed, candidate.key, SCOPE, scope)
    for axis, level, params in _parameters(candidate.method, axes):
        refitted = _refitted(candidate, MethodSpec(PCA_OT, params), acts, settings)
        if refitted is not None:
            yield Variant(refitted, candidate.key, axis, level)


def _parameters(
    method: MethodSpec, axes: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Parameters of PCA-OT that differ from a method's own in one setting."""
    own = {"k": 2, "mean_shift": "full", "lift": "keep", **method.params}
    other = [(RANK, str(k), {"k": k}) for k in axes.get(RANK, ())]
    other += [
        (LIFT, name, {"mean_shift": "full", "lift": "keep", **LIFTS[name]}) for name in axes.get(LIFT, ())
    ]
    for axis, level, change in other:
        if any(own[name] != value for name, value in change.items()):
            kept = {
                name: value for name, value in (own | change).items() if (name, value) != ("lift", "keep")
            }
            yield axis, level, kept


def _refitted(
    candidate: Candidate, method: MethodSpec, acts: Activations, settings: SweepSettings
) -> Candidate | None:
    """The candidate with another map of its layer; None if the samples do not have that rank."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PoorFitWarning)  # the table's note says it
            maps = fit_maps(acts, [method], layers=candidate.layers, position=settings.position)[method]
    except FitError:
        return None
    (layer,) = candidate.layers
    problems = "; ".join(maps[layer].info.problems)
    return candidate_at(candidate.layer_set, candidate.layers, method, maps, settings, note=problems)


def count_variants(names: Sequence[str], chosen: int, axes: Mapping[str, Sequence[Any]]) -> int:
    """At most how many variants so many chosen edits have, of methods with these names."""
    levels = {axis: len(values) for axis, values in axes.items()}
    weaker = levels.pop(STRENGTH, 0)
    return chosen * weaker + list(names).count(PCA_OT) * sum(levels.values())


def variant_table(made: Sequence[Variant], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of each variant with the edit that it varies, the axis and the level; `tables` are by key."""
    if not made:
        empty = next(iter(tables.values())).iloc[:0]
        return join([empty]).assign(**dict.fromkeys(VARIANT_COLUMNS, ""))
    parts = [
        tables[one.candidate.key].assign(
            **dict(zip(VARIANT_COLUMNS, (one.of, one.axis, one.level), strict=True))
        )
        for one in made
    ]
    return join(parts)


def to_measure(made: Sequence[Variant], known: Collection[str]) -> list[Candidate]:
    """The candidates of variants that were not measured yet, each once."""
    return list({one.candidate.key: one.candidate for one in made if one.candidate.key not in known}.values())
