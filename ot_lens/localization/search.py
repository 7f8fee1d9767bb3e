"""A budgeted search for the best set of layers: chosen on validation prompts, reported on test prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.behaviour import next_token_logprobs, next_token_values
from ot_lens.errors import HookError, SinglePassError, one_of
from ot_lens.execution import Runner, as_runner
from ot_lens.interventions import Edits, intervene
from ot_lens.localization.candidates import Candidate, Maps, edits_at
from ot_lens.localization.methods import MethodSpec
from ot_lens.localization.settings import SweepSettings
from ot_lens.localization.walking import next_token_readings
from ot_lens.prompts import Prompt
from ot_lens.single_pass import why_not
from ot_lens.tables import SEARCHED, layers_label
from ot_lens.transport import AffineMap

MAX_LAYERS = 4
SEARCHES = ("greedy", "beam")

Layers = tuple[int, ...]
Scores = Mapping[Layers, float]


@dataclass(frozen=True)
class BestSet:
    """The best set of layers of one method, of any size or of one size.

    Attributes:
        method: The method.
        layers: The chosen layers.
        score: Mean refusal score of the validation prompts under the edit, in nats.
        tried: Number of sets that were compared.
    """

    method: MethodSpec
    layers: Layers
    score: float
    tried: int


def search(
    model: Any,
    validation: Sequence[Prompt],
    maps: Maps,
    settings: SweepSettings,
    *,
    size: int = 2,
    kind: str = "beam",
    width: int = 4,
    each_size: bool = False,
) -> list[BestSet]:
    """Search each method's layers for the set of at most `size` with the lowest mean refusal score.

    "greedy" keeps the best set of each size and adds one layer to it; "beam" keeps the `width` best. A larger
    set wins only if it scores lower on the validation prompts; with `each_size` the best set of every size is
    returned, and for "rfa", which edits every layer, the best single direction.

    Args:
        model: A hooked model, or a `Runner`, whose tasks are one round of one method, or one set where the
            model cannot be walked.
        validation: Harmful validation prompts; report the sets on other prompts.
        maps: Maps of each method by layer; "rfa" is left out unless `each_size` is set.
        settings: How the sets are measured.
        size: Maximum number of layers, 1 to 4.
        kind: "greedy" or "beam".
        width: Number of sets that "beam" keeps per round.
        each_size: Find the best set of each size from one layer to `size`.

    Raises:
        HookError: If the size, kind or width is out of range.
    """
    one_of("search", kind, SEARCHES, HookError)
    if not 1 <= size <= MAX_LAYERS:
        raise HookError(f"The search size must be 1 to {MAX_LAYERS} layers, got search size = {size}.")
    if width < 1:
        raise HookError(f"The beam width must be at least 1, got {width}.")
    runner = as_runner(model)
    keep = 1 if kind == "greedy" else width
    scored: dict[MethodSpec, dict[Layers, float]] = {m: {} for m in maps if each_size or not m.everywhere}
    beams: dict[MethodSpec, list[Layers]] = {method: [()] for method in scored}
    for number in range(size):
        new = {
            method: _grown(beams[method], maps[method], scored[method])
            for method in scored
            if number == 0 or not method.everywhere
        }
        edits = {
            method: {layers: edits_at(method, maps[method], layers, settings.n_layers) for layers in sets}
            for method, sets in new.items()
            if sets
        }
        for method, scores in _scored(runner, edits, validation, settings).items():
            scored[method] |= scores
            beams[method] = sorted(scores, key=lambda layers: (scores[layers], layers))[:keep]
    return [best for m, scores in scored.items() for best in _best(m, scores, each_size=each_size)]


def confirmations(best_sets: Sequence[BestSet], maps: Maps, n_layers: int) -> list[Candidate]:
    """The chosen sets as candidates for the test prompts; the note says how each was chosen."""
    return [
        Candidate(
            SEARCHED,
            best.layers,
            best.method,
            edits_at(best.method, maps[best.method], best.layers, n_layers),
            best.method.k([maps[best.method][layer] for layer in best.layers]),
            chosen_at=best.score,
            note=f"best of {best.tried} sets, chosen on validation prompts: {best.score:.3f} nats there",
        )
        for best in best_sets
    ]


def _grown(beam: Sequence[Layers], by_layer: Mapping[int, AffineMap], scored: Scores) -> list[Layers]:
    """New sets with one more layer."""
    grown = {tuple(sorted((*layers, layer))) for layers in beam for layer in by_layer if layer not in layers}
    return sorted(grown - set(scored))


def _scored(
    runner: Runner, edits: Mapping[MethodSpec, Mapping[Layers, Edits]], *arguments: Any
) -> dict[MethodSpec, Scores]:
    """Mean refusal score under each edit."""
    rounds = {_name("walk", method, sets): list(sets.values()) for method, sets in edits.items()}
    walked = dict(zip(edits, runner.map(_walked_scores, rounds, *arguments).values(), strict=True))
    hooked = {
        method: {_name("hooks", method, [layers]): edit for layers, edit in sets.items()}
        for method, sets in edits.items()
        if not walked[method]
    }
    tasks = {name: edit for named in hooked.values() for name, edit in named.items()}
    scores = runner.map(_hooked_score, tasks, *arguments)
    found = walked | {method: [scores[name][0] for name in named] for method, named in hooked.items()}
    return {method: dict(zip(sets, found[method], strict=True)) for method, sets in edits.items()}


def _name(engine: str, method: MethodSpec, sets: Iterable[Layers]) -> str:
    return "|".join(["search", engine, method.label, *map(layers_label, sets)])


def _best(method: MethodSpec, scored: Scores, *, each_size: bool) -> list[BestSet]:
    groups: dict[int, list[Layers]] = {}
    for layers in scored:
        groups.setdefault(len(layers) if each_size else 0, []).append(layers)
    best = [min(sets, key=lambda layers: (scored[layers], len(layers), layers)) for sets in groups.values()]
    return [
        BestSet(method, layers, scored[layers], len(sets))
        for layers, sets in zip(best, groups.values(), strict=True)
    ]


def _walked_scores(
    model: Any, prompts: Sequence[Prompt], settings: SweepSettings, edits: Sequence[Edits]
) -> list[float]:
    """Mean refusal score under each edit, in one walk; none where the model cannot be walked."""
    if any(why_not(model, edit, settings.hook) is not None for edit in edits[:1]):
        return []
    try:
        values = next_token_readings(model, prompts, edits, settings)
    except SinglePassError:
        return []
    return [float(mean) for mean in values[..., 0].mean(dim=1)]


def _hooked_score(
    model: Any, prompts: Sequence[Prompt], settings: SweepSettings, edits: Edits
) -> list[float]:
    """Mean refusal score under one edit."""
    with intervene(model, edits, settings.tokens, hook=settings.hook):
        logprobs = next_token_logprobs(model, prompts, batch_size=settings.panel.batch_size)
    return [float(next_token_values(logprobs, logprobs, settings.panel)[..., 0].mean())]
