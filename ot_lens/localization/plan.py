"""The maps and the candidates of a sweep."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ot_lens.activations import Activations
from ot_lens.execution import as_runner
from ot_lens.localization.candidates import Candidate, Maps, candidates, listed
from ot_lens.localization.controls import controls, swapped, with_references
from ot_lens.localization.methods import MethodSpec, fit_maps, fit_sequentially
from ot_lens.localization.outside import with_domains
from ot_lens.localization.search import search
from ot_lens.localization.settings import PERMUTED, SweepPlan, SweepSettings
from ot_lens.progress import Stage, silent
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.tables import ALL, INDUCE, SEQUENTIAL, SINGLE
from ot_lens.transport import ActivationMap, method_named


def fit_sweep(
    acts: Activations,
    methods: Sequence[MethodSpec],
    settings: SweepSettings,
    plan: SweepPlan,
    stage: Stage = silent,
    *,
    model: Any = None,
    prompts: Contrast | None = None,
) -> dict[MethodSpec, dict[int, ActivationMap]]:
    """The map of every method at every layer, including the references that come with controls.

    Methods that are trained through the model need it, or a `Runner`, and the training prompts.
    """
    fitted = with_references(methods, plan.controls)
    with stage("maps", sum(len(settings.layers) if m.learned else 1 for m in fitted)) as step:
        return fit_maps(
            acts,
            fitted,
            layers=settings.layers,
            position=settings.position,
            model=model,
            prompts=prompts,
            batch_size=settings.panel.batch_size,
            seed=settings.panel.seed,
            refusal_tokens=settings.panel.refusal_tokens,
            progress=step,
        )


def plan_sweep(
    model: Any,
    prompts: ContrastSet,
    acts: Activations,
    methods: Sequence[MethodSpec],
    maps: Maps,
    settings: SweepSettings,
    plan: SweepPlan,
    stage: Stage = silent,
) -> list[Candidate]:
    """All candidates of a plan, in the order of the table; references are neither searched nor listed."""
    runner, layers = as_runner(model), settings.layers
    generates = plan.answers == "all"
    planned = candidates(maps, settings, plan.sets, plan.strengths, generates=generates)
    if SEQUENTIAL in plan.fitting and set(plan.sets) - {SINGLE} and len(layers) > 1:
        later: dict[MethodSpec, dict[int, ActivationMap]] = {}
        with stage("sequential maps", len(layers) * sum(method.sequential for method in maps)) as step:
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
                    progress=step,
                )
        later = {method: later[method] for method in maps if method in later}
        # In a pair, the later map is fitted under the earlier one alone: these maps fit all layers only.
        planned += candidates(later, settings, [ALL], plan.strengths, fitting=SEQUENTIAL, generates=generates)
    if plan.sufficiency:
        reversible = [m for m in maps if method_named(m.name).reversible and not m.learned]
        back = fit_maps(swapped(acts), reversible, layers=layers, position=settings.position)
        planned += candidates(back, settings, [SINGLE], plan.strengths, transport=INDUCE, generates=generates)
    planned = [_with_omissions(candidate, plan) for candidate in planned]
    requested = {method: maps[method] for method in methods}
    planned += listed(requested, settings, plan.layer_sets, plan.strengths)
    controlled = []
    if plan.controls:
        with stage("controls", len(plan.controls) * plan.control_draws) as step:
            controlled = list(controls(acts, maps, settings, plan, step))
    if plan.search_size:
        budget = search_budget([*planned, *controlled], prompts, len(requested), settings, plan)
        bounded = replace(plan, search_budget=budget)
        planned += search(runner, prompts.val.harmful, requested, settings, bounded, stage)
    return with_domains(acts, [*planned, *controlled], settings)


def _with_omissions(candidate: Candidate, plan: SweepPlan) -> Candidate:
    """With a note of what the plan asks for and a method that is trained through the model does not get."""
    asked = {"permuted labels": PERMUTED in plan.controls, "sequential fits": SEQUENTIAL in plan.fitting}
    omitted = [name for name, wanted in asked.items() if wanted]
    if not omitted or not candidate.method.learned:
        return candidate
    omission = f"trained through the model, so without {' and '.join(omitted)}"
    return replace(candidate, note="; ".join(filter(None, (candidate.note, omission))))


def search_budget(
    candidates: Sequence[Candidate],
    prompts: ContrastSet,
    n_methods: int,
    settings: SweepSettings,
    plan: SweepPlan,
) -> int:
    """Sets that the search scores at most for each method.

    By default it reads as many prompts as the candidates do; those that they answer count twice.
    """
    sizes, answers = {label: len(group) for label, group in prompts.test}, settings.panel.needs_answers
    read = sum((1 + (answers and c.generates)) * sizes[label] for c in candidates for label in c.prompts)
    return plan.search_budget or max(1, read // max(1, n_methods * len(prompts.val.harmful)))
