"""A budgeted search for the best set of m layers: chosen on validation prompts, reported on test prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.behaviour import PanelSettings, next_token_logprobs, next_token_values
from ot_lens.errors import HookError, SinglePassError, one_of
from ot_lens.execution.runner import Compute, here
from ot_lens.interventions import Edits, intervene
from ot_lens.localization.candidates import Candidate, Maps, edits_at
from ot_lens.localization.methods import RFA, Method
from ot_lens.models import backend
from ot_lens.prompts import Prompt
from ot_lens.single_pass import next_token_sweep, why_not
from ot_lens.tables import SEARCHED, layers_label
from ot_lens.transport import AffineMap

MOST_LAYERS = 4
SEARCHES = ("greedy", "beam")

Layers = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """The best set of layers of one method, of any size or of one size.

    Attributes:
        method: The method.
        layers: The chosen layers.
        score: Mean refusal score of the validation prompts under the edit, in nats.
        tried: Sets that were tried for the choice.
    """

    method: Method
    layers: Layers
    score: float
    tried: int


def search(
    model: Any,
    validation: Sequence[Prompt],
    maps: Maps,
    settings: PanelSettings,
    *,
    size: int = 2,
    kind: str = "beam",
    width: int = 4,
    each_size: bool = False,
    tokens: str = "all",
    hook: str = "resid_pre",
) -> list[Found]:
    """Search each method's layers for the set of at most `size` with the lowest mean refusal score.

    "greedy" keeps the best set of each size and adds one layer to it; "beam" keeps the `width` best. A larger
    set is taken only if it scores lower on the validation prompts; with `each_size` the best set of every
    size is, and of "rfa", which edits everywhere, the best single direction.

    Args:
        model: A hooked model.
        validation: Harmful validation prompts; the sets must be reported on others.
        maps: Maps of each method by layer; "rfa" is left out unless `each_size` is set.
        settings: The panel, for its refusal tokens.
        size: Most layers, at most 4.
        kind: "greedy" or "beam".
        width: Sets kept a round by "beam".
        each_size: Find the best set of each size from one layer to `size`.
        tokens: Token scope.
        hook: Hook point.

    Raises:
        HookError: If the size, kind or width is out of range.
    """
    return search_by_pieces(
        here(model),
        backend(model).n_layers,
        validation,
        maps,
        settings,
        size=size,
        kind=kind,
        width=width,
        each_size=each_size,
        tokens=tokens,
        hook=hook,
    )


def search_by_pieces(
    compute: Compute,
    n_layers: int,
    validation: Sequence[Prompt],
    maps: Maps,
    settings: PanelSettings,
    *,
    size: int,
    kind: str,
    width: int = 4,
    each_size: bool = False,
    tokens: str = "all",
    hook: str = "resid_pre",
) -> list[Found]:
    """See `search`. A piece is one round of one method, or one set where the model cannot be walked.

    Args:
        compute: Computes the pieces.
        n_layers: Layers of the model.
        validation: Harmful validation prompts.
        maps: Maps of each method by layer.
        settings: The panel.
        size: Most layers.
        kind: "greedy" or "beam".
        width: Sets kept a round by "beam".
        each_size: Find the best set of each size.
        tokens: Token scope.
        hook: Hook point.

    Raises:
        HookError: If the size, kind or width is out of range.
    """
    one_of("search", kind, SEARCHES, HookError)
    if not 1 <= size <= MOST_LAYERS:
        raise HookError(f"search size = {size}: choose 1 to {MOST_LAYERS} layers.")
    if width < 1:
        raise HookError(f"beam width = {width}: keep at least one set a round.")
    keep = 1 if kind == "greedy" else width
    scored: dict[Method, dict[Layers, float]] = {m: {} for m in maps if m.name != RFA or each_size}
    beams: dict[Method, list[Layers]] = {method: [()] for method in scored}
    for number in range(size):
        new = {
            method: _grown(beams[method], maps[method], scored[method])
            for method in scored
            if number == 0 or method.name != RFA
        }
        edits = {
            method: {layers: edits_at(method, maps[method], layers, n_layers) for layers in sets}
            for method, sets in new.items()
            if sets
        }
        for method, scores in _scored(compute, edits, validation, settings, tokens, hook).items():
            scored[method] |= scores
            beams[method] = sorted(scores, key=lambda layers: (scores[layers], layers))[:keep]
    return [best for m, scores in scored.items() for best in _best(m, scores, each_size=each_size)]


def confirmations(found: Sequence[Found], maps: Maps, n_layers: int) -> list[Candidate]:
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
        for best in found
    ]


def _grown(
    beam: Sequence[Layers], by_layer: Mapping[int, AffineMap], scored: Mapping[Layers, float]
) -> list[Layers]:
    """Sets of one layer more that were not tried."""
    grown = {tuple(sorted((*layers, layer))) for layers in beam for layer in by_layer if layer not in layers}
    return sorted(grown - set(scored))


def _scored(
    compute: Compute, asked: Mapping[Method, Mapping[Layers, Edits]], *given: Any
) -> dict[Method, dict[Layers, float]]:
    """Mean refusal score under each edit."""
    rounds = {method: _name("walk", method, edits) for method, edits in asked.items()}
    walked = compute(walked_scores, {rounds[m]: list(edits.values()) for m, edits in asked.items()}, *given)
    left = {
        _name("hooks", method, [layers]): edit
        for method, edits in asked.items()
        if not walked[rounds[method]]
        for layers, edit in edits.items()
    }
    hooked = compute(hooked_score, left, *given)
    return {
        method: dict(zip(edits, walked[rounds[method]], strict=True))
        if walked[rounds[method]]
        else {layers: hooked[_name("hooks", method, [layers])][0] for layers in edits}
        for method, edits in asked.items()
    }


def _name(how: str, method: Method, sets: Iterable[Layers]) -> str:
    return "|".join(["search", how, method.label, *map(layers_label, sets)])


def _best(method: Method, scored: Mapping[Layers, float], *, each_size: bool) -> list[Found]:
    groups: dict[int, list[Layers]] = {}
    for layers in scored:
        groups.setdefault(len(layers) if each_size else 0, []).append(layers)
    best = [min(sets, key=lambda layers: (scored[layers], len(layers), layers)) for sets in groups.values()]
    return [
        Found(method, layers, scored[layers], len(sets))
        for layers, sets in zip(best, groups.values(), strict=True)
    ]


def walked_scores(
    model: Any,
    prompts: Sequence[Prompt],
    settings: PanelSettings,
    tokens: str,
    hook: str,
    edits: Sequence[Edits],
) -> list[float]:
    """Mean refusal score under each edit, in one walk; none where the model cannot be walked."""
    if any(why_not(model, edit, hook) is not None for edit in edits[:1]):
        return []
    try:
        values = next_token_sweep(
            model,
            prompts,
            edits,
            lambda rows, own: next_token_values(rows.log_softmax(-1), own.log_softmax(-1), settings),
            tokens=tokens,
            hook=hook,
            batch_size=settings.batch_size,
        )
    except SinglePassError:
        return []
    return [float(mean) for mean in values[..., 0].mean(dim=1)]


def hooked_score(
    model: Any, prompts: Sequence[Prompt], settings: PanelSettings, tokens: str, hook: str, edits: Edits
) -> list[float]:
    """Mean refusal score under one edit."""
    with intervene(model, edits, tokens, hook=hook):
        logprobs = next_token_logprobs(model, prompts, batch_size=settings.batch_size)
    return [float(next_token_values(logprobs, logprobs, settings)[..., 0].mean())]
