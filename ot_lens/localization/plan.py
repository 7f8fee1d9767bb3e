"""The maps and the candidates of a sweep."""

from collections.abc import Sequence
from typing import Any

from ot_lens.activations import Activations
from ot_lens.execution import as_runner
from ot_lens.localization.candidates import Candidate, Maps, candidates, listed
from ot_lens.localization.controls import REFERENCES, controls, swapped
from ot_lens.localization.domain import with_domains
from ot_lens.localization.methods import MethodSpec, fit_maps, fit_sequentially
from ot_lens.localization.search import search
from ot_lens.localization.settings import SweepPlan, SweepSettings
from ot_lens.prompts import ContrastSet
from ot_lens.tables import ALL, INDUCE, SEQUENTIAL, SINGLE
from ot_lens.transport import AffineMap, method_named


def fit_sweep(
    acts: Activations, methods: Sequence[MethodSpec], settings: SweepSettings, plan: SweepPlan
) -> dict[MethodSpec, dict[int, AffineMap]]:
    """The map of every method at every layer, including the references that come with controls."""
    references = [m for m in REFERENCES if plan.controls and m not in methods]
    return fit_maps(acts, [*methods, *references], layers=settings.layers, position=settings.position)


def plan_sweep(
    model: Any,
    prompts: ContrastSet,
    acts: Activations,
    methods: Sequence[MethodSpec],
    maps: Maps,
    settings: SweepSettings,
    plan: SweepPlan,
) -> list[Candidate]:
    """All candidates of a plan, in the order of the table; references are neither searched nor listed."""
    runner, layers = as_runner(model), settings.layers
    generates = plan.answers == "all"
    planned = candidates(maps, settings, plan.sets, plan.strengths, generates=generates)
    if SEQUENTIAL in plan.fitting and set(plan.sets) - {SINGLE} and len(layers) > 1:
        later: dict[MethodSpec, dict[int, AffineMap]] = {}
        for scope in {settings.scope(method.name): None for method in maps}:
            later |= fit_sequentially(
                runner,
                prompts.train,
                [method for method in maps if settings.scope(method.name) == scope],
                layers=layers,
                position=settings.position,
                hook=settings.hook,
                tokens=scope,
                batch_size=settings.panel.batch_size,
                acts=acts,
            )
        later = {method: later[method] for method in maps if method in later}
        # In a pair, the later map is fitted under the earlier one alone: these maps fit all layers only.
        planned += candidates(later, settings, [ALL], plan.strengths, fitting=SEQUENTIAL, generates=generates)
    if plan.sufficiency:
        reversible = [m for m in maps if method_named(m.name).reversible]
        back = fit_maps(swapped(acts), reversible, layers=layers, position=settings.position)
        planned += candidates(back, settings, [SINGLE], plan.strengths, transport=INDUCE, generates=generates)
    requested = {method: maps[method] for method in methods}
    planned += listed(requested, settings, plan.layer_sets, plan.strengths)
    if plan.search_size:
        planned += search(runner, prompts.val.harmful, requested, settings, plan)
    if plan.controls:
        planned += controls(acts, maps, settings, plan)
    return with_domains(runner, prompts.test, acts, planned, settings)
