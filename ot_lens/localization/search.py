"""A budgeted search for the best set of layers: chosen on validation prompts, reported on test prompts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ot_lens.behaviour import next_token_logprobs
from ot_lens.behaviour.panel import next_token_values
from ot_lens.errors import SinglePassError
from ot_lens.execution import Runner, as_runner
from ot_lens.interventions import Edits, intervene
from ot_lens.localization.candidates import Candidate, Layers, Maps, candidate_at, edits_at
from ot_lens.localization.methods import MethodSpec
from ot_lens.localization.settings import SweepPlan, SweepSettings
from ot_lens.localization.walking import next_token_readings
from ot_lens.prompts import Prompt
from ot_lens.single_pass import why_not
from ot_lens.tables import SEARCHED, layers_label

# Sets that each round extends.
WIDTHS = {"greedy": 1, "beam": 4}


def search(
    model: Any, validation: Sequence[Prompt], maps: Maps, settings: SweepSettings, plan: SweepPlan
) -> list[Candidate]:
    """Search each method's layers for the set with the lowest mean refusal score on harmful prompts.

    "greedy" keeps the best set of each size and adds one layer to it; "beam" keeps the four best. A larger
    set wins only if it scores lower; with `plan.search_each_size` the best set of every size is returned, and
    for "rfa", which edits every layer and is left out otherwise, the best single direction. A runner's tasks
    are one round of one method, or one set where the model cannot be walked.

    Returns:
        The chosen sets, to be measured on other prompts; their notes say how they were chosen.
    """
    runner, each_size = as_runner(model), plan.search_each_size
    scored: dict[MethodSpec, dict[Layers, float]] = {m: {} for m in maps if each_size or not m.everywhere}
    beams: dict[MethodSpec, list[Layers]] = {method: [()] for method in scored}
    for size in range(1, plan.search_size + 1):
        edits = {}
        for method, known in scored.items():
            new = _grown(beams[method], maps[method]) - set(known)
            if new and (size == 1 or not method.everywhere):
                edits[method] = {
                    layers: edits_at(method, maps[method], layers, settings.n_layers)
                    for layers in sorted(new)
                }
        for method, scores in _scored(runner, edits, settings, validation).items():
            scored[method] |= scores
            ranked = sorted(scores, key=lambda layers: (scores[layers], layers))
            beams[method] = ranked[: WIDTHS[plan.search]]
    return [
        _chosen(method, sets, maps, settings)
        for method, scores in scored.items()
        for sets in _groups(scores, each_size=each_size)
    ]


def _grown(beam: Sequence[Layers], by_layer: Iterable[int]) -> set[Layers]:
    return {tuple(sorted((*layers, layer))) for layers in beam for layer in by_layer if layer not in layers}


def _groups(scored: Mapping[Layers, float], *, each_size: bool) -> list[dict[Layers, float]]:
    """The sets among which one is chosen."""
    if not each_size:
        return [dict(scored)]
    sizes = dict.fromkeys(map(len, scored))
    return [{layers: s for layers, s in scored.items() if len(layers) == size} for size in sizes]


def _chosen(
    method: MethodSpec, scored: Mapping[Layers, float], maps: Maps, settings: SweepSettings
) -> Candidate:
    best = min(scored, key=lambda layers: (scored[layers], len(layers), layers))
    score = scored[best]
    note = f"best of {len(scored)} sets, chosen on validation prompts: {score:.3f} nats there"
    return candidate_at(SEARCHED, best, method, maps[method], settings, chosen_at=score, note=note)


def _scored(
    runner: Runner,
    edits: Mapping[MethodSpec, Mapping[Layers, Edits]],
    settings: SweepSettings,
    validation: Sequence[Prompt],
) -> dict[MethodSpec, dict[Layers, float]]:
    """Mean refusal score under each edit."""
    scopes = {method: settings.scope(method.name) for method in edits}
    rounds = {
        _name("walk", method, sets): (scopes[method], list(sets.values())) for method, sets in edits.items()
    }
    results = runner.map(_walked_scores, rounds, validation, settings)
    walked = dict(zip(edits, results.values(), strict=True))
    hooked = {
        _name("hooks", method, [layers]): (scopes[method], edit)
        for method, sets in edits.items()
        if not walked[method]
        for layers, edit in sets.items()
    }
    scores = runner.map(_hooked_score, hooked, validation, settings)
    return {
        method: dict(zip(sets, walked[method], strict=True))
        if walked[method]
        else {layers: scores[_name("hooks", method, [layers])][0] for layers in sets}
        for method, sets in edits.items()
    }


def _name(engine: str, method: MethodSpec, sets: Iterable[Layers]) -> str:
    return "|".join(["search", engine, method.label, *map(layers_label, sets)])


def _walked_scores(
    model: Any, prompts: Sequence[Prompt], settings: SweepSettings, task: tuple[str, Sequence[Edits]]
) -> list[float]:
    """Mean refusal score under each edit, in one walk; none where the model cannot be walked."""
    scope, edits = task
    if any(why_not(model, edit, settings.hook) is not None for edit in edits[:1]):
        return []
    try:
        values = next_token_readings(model, prompts, edits, settings, scope)
    except SinglePassError:
        return []
    return [float(mean) for mean in values[..., 0].mean(dim=1)]


def _hooked_score(
    model: Any, prompts: Sequence[Prompt], settings: SweepSettings, task: tuple[str, Edits]
) -> list[float]:
    """Mean refusal score under one edit."""
    scope, edits = task
    with intervene(model, edits, scope, hook=settings.hook):
        logprobs = next_token_logprobs(model, prompts, batch_size=settings.panel.batch_size)
    return [float(next_token_values(logprobs, logprobs, settings.panel)[..., 0].mean())]
