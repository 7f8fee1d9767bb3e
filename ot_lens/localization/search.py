"""A budgeted search for the best set of layers: chosen on validation prompts, reported on test prompts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import comb
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
from ot_lens.progress import Stage, silent
from ot_lens.prompts import Prompt
from ot_lens.single_pass import why_not
from ot_lens.tables import SEARCHED, layers_label

# Sets that each round extends.
WIDTHS = {"greedy": 1, "beam": 4}


def search(
    model: Any,
    validation: Sequence[Prompt],
    maps: Maps,
    settings: SweepSettings,
    plan: SweepPlan,
    stage: Stage = silent,
) -> list[Candidate]:
    """Search each method's layers for the set with the lowest mean refusal score on harmful prompts.

    "greedy" keeps the best set of each size and adds one layer to it; "beam" keeps the four best. A larger
    set wins only if it scores lower; with `plan.search_each_size` the best set of every size is returned, and
    for "rfa", which edits every layer and is left out otherwise, the best single direction. Joint fits, which
    choose their layers themselves, are left out. At most
    `plan.search_budget` sets are scored for each method: every layer alone, then extensions of the best sets
    by the best layers. A runner's tasks are one round of one method, or one set where the model cannot be
    walked.

    Returns:
        The chosen sets, to be measured on other prompts; their notes say how they were chosen.
    """
    runner, each_size = as_runner(model), plan.search_each_size
    scored: dict[MethodSpec, dict[Layers, float]] = {
        m: {} for m in maps if not m.joint and (each_size or not m.everywhere)
    }
    beams: dict[MethodSpec, list[Layers]] = {method: [()] for method in scored}
    cut: dict[MethodSpec, int] = {}  # size at which the budget was used up
    for size in range(1, plan.search_size + 1):
        edits = {}
        for method, known in scored.items():
            if method in cut or (size > 1 and method.everywhere):
                continue
            new = _grown(beams[method], maps[method], known)
            if size > 1 and plan.search_budget is not None and len(known) + len(new) > plan.search_budget:
                new, cut[method] = new[: max(0, plan.search_budget - len(known))], size
            if new:
                edits[method] = {
                    layers: edits_at(method, maps[method], layers, settings.n_layers)
                    for layers in sorted(new)
                }
        name = f"search, sets of {size} layer{'s' if size > 1 else ''}"
        with stage(name, sum(map(len, edits.values()))) as step:
            for method, scores in _scored(runner, edits, settings, validation, step).items():
                scored[method] |= scores
                ranked = sorted(scores, key=lambda layers: (scores[layers], layers))
                beams[method] = ranked[: WIDTHS[plan.search]]
    chosen = []
    for method, scores in scored.items():
        by_size = sets_by_size(len(maps[method]), 1 if method.everywhere else plan.search_size, plan.search)
        for sizes, sets in _groups(scores, by_size, each_size=each_size):
            most = (
                sum(by_size[size] for size in sizes) if method in cut and cut[method] <= max(sizes) else None
            )
            chosen.append(_chosen(method, sets, most, maps, settings))
    return chosen


def sets_by_size(n_layers: int, size: int, kind: str) -> dict[int, int]:
    """How many sets of each size a search without a budget scores; from three layers on, at most."""
    width = min(WIDTHS[kind], n_layers)
    most = {n: min(comb(n_layers, n), width * (n_layers - n + 1)) for n in range(3, size + 1)}
    pairs = comb(n_layers, 2) - comb(n_layers - width, 2)
    return {n: count for n, count in {1: n_layers, 2: pairs, **most}.items() if n <= size and count > 0}


def _grown(beam: Sequence[Layers], by_layer: Iterable[int], scored: Mapping[Layers, float]) -> list[Layers]:
    """The sets with one layer more, the most promising first: the best sets with the best layers."""
    best_first = sorted(by_layer, key=lambda layer: scored.get((layer,), 0.0))
    grown = (tuple(sorted((*layers, more))) for layers in beam for more in best_first if more not in layers)
    return [layers for layers in dict.fromkeys(grown) if layers not in scored]


def _groups(
    scored: Mapping[Layers, float], by_size: Iterable[int], *, each_size: bool
) -> list[tuple[list[int], dict[Layers, float]]]:
    """The sizes and sets among which one is chosen."""
    if not each_size:
        return [(list(by_size), dict(scored))]
    sizes = dict.fromkeys(map(len, scored))
    return [([size], {layers: s for layers, s in scored.items() if len(layers) == size}) for size in sizes]


def _chosen(
    method: MethodSpec,
    scored: Mapping[Layers, float],
    most: int | None,
    maps: Maps,
    settings: SweepSettings,
) -> Candidate:
    """The best set; `most` is how many there are, if not all of them were scored."""
    best = min(scored, key=lambda layers: (scored[layers], len(layers), layers))
    score = scored[best]
    of = "" if most is None else f" of up to {most} (search_budget)"
    note = f"best of {len(scored)}{of} sets, chosen on validation prompts: {score:.3f} nats there"
    return candidate_at(SEARCHED, best, method, maps[method], settings, chosen_at=score, note=note)


def _scored(
    runner: Runner,
    edits: Mapping[MethodSpec, Mapping[Layers, Edits]],
    settings: SweepSettings,
    validation: Sequence[Prompt],
    step: Callable[[int], None],
) -> dict[MethodSpec, dict[Layers, float]]:
    """Mean refusal score under each edit."""
    scopes = {method: settings.scope(method.name) for method in edits}
    rounds = {
        _name("walk", method, sets): (scopes[method], list(sets.values())) for method, sets in edits.items()
    }
    results = runner.map(
        _walked_scores, rounds, validation, settings, progress=lambda name: step(len(runner.cache[name]))
    )
    walked = dict(zip(edits, results.values(), strict=True))
    hooked = {
        _name("hooks", method, [layers]): (scopes[method], edit)
        for method, sets in edits.items()
        if not walked[method]
        for layers, edit in sets.items()
    }
    scores = runner.map(_hooked_score, hooked, validation, settings, progress=lambda _name: step(1))
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
        values, _ = next_token_readings(model, prompts, edits, settings, scope)
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
    return [float(next_token_values(logprobs, logprobs, settings.panel.refusal_tokens)[..., 0].mean())]
