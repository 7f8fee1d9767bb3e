"""Harm apart from refusal: two directions, what ablating or adding each moves, and where harm is still read.

Source: Zhao et al. 2025 (arXiv 2507.11878): harmfulness is read at the last token of the instruction, refusal
at the tokens of the template after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from ot_lens.activations import Activations, capture, resolve_layers, resolve_positions
from ot_lens.behaviour import (
    FILTERS,
    HarmQuestion,
    harm_question,
    model_phrases,
    phrase_list,
    refusal_score,
    refusal_token_ids,
    refuses,
)
from ot_lens.directions.harm_directions import HARM, REFUSAL, Labelled, cosine, separations
from ot_lens.directions.harm_edits import Edit, Setting, direction_edits, measured, random_edits
from ot_lens.directions.harm_probes import fit_probes
from ot_lens.errors import FitError, HookError, OtLensError, OtLensTypeError, one_of
from ot_lens.generation import complete
from ot_lens.localization.candidates import edits_at
from ot_lens.localization.methods import MethodSpec, as_methods, fit_maps
from ot_lens.localization.settings import AUTO, scope_of
from ot_lens.models import backend
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.statistics.resampling import ResamplingPlan

LAST = -1
# Layers whose directions are ablated and added by default, evenly spaced.
MAX_EDITED = 6
DRAWS = 10
# Prompts of either side below which a direction is not fitted.
FEWEST = 2
NONE = dict.fromkeys(("direction", "action", "method", "prompts", "position"), "")
WHOLE = ("layer", "probe_layer", "draws")
COLUMNS = (
    "part", "direction", "action", "method", "layer", "quantity", "prompts", "position", "probe_layer",
    "value", "low", "high", "null_mean", "null_low", "null_high", "n", "draws", "unit", "seed",
)  # fmt: skip

Flags = Mapping[str, Mapping[str, Bool[Tensor, " n"]]]  # by direction and split, harmful prompts first


def harm_and_refusal(
    model: Any,
    prompts: ContrastSet,
    methods: Sequence[str | Mapping[str, Any] | MethodSpec] = (),
    *,
    layers: str | Sequence[int] = "all",
    edit_layers: Sequence[int] | None = None,
    refusal: bool = True,
    judged_by: str = "answers",
    refusal_tokens: Sequence[str | int] | None = None,
    phrases: str | Sequence[str] | None = None,
    question: HarmQuestion | None = None,
    max_new_tokens: int = 32,
    draws: int = DRAWS,
    permutations: int = 200,
    bootstrap: int = 200,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """What a model knows of harm apart from what it refuses.

    Two directions at each layer, differences in means of the stream that enters it over training prompts:
    harm, at the last token of the user's text, between harmful and harmless prompts; refusal, at the last
    token of the prompt, between what the model refuses and what it answers, of both classes together. Each is
    edited in three ways, on all tokens: "ablate" projects it out at every block's input, attention output and
    MLP output (Arditi et al. 2024); "ace" sets it, at its own layer, to where the other side's mean has it
    (affine concept editing, arXiv 2411.09003); "add" adds it at its own layer, with its own length.
    Everything is measured on the test prompts. The parts of the table:

    - "cosine": of both directions at a layer; the null permutes the labels of each by itself.
    - "separability": AUC of the projection on each `direction` at its own position, for harm of the
      class, for refusal of being refused.
    - "behaviour": shares of `prompts` of a class that are refused (refusal score above 0, `refused`) and,
      when the model is asked, called harmful (`harm_score` above 0, `named_harmful`), with Wilson
      intervals, without an edit (method "none") and under each.
    - "effect": mean change, under each edit, of the `refusal_score`, of the `harm_score` (see
      `ot_lens.harm_score`) and of the log odds of the harm probe at the instruction's last token
      (`probe_log_odds`), with a studentized bootstrap interval over prompts.
    - "survival": AUC of a harm probe that was trained unedited, at the last token of the instruction and
      at that of the prompt, without an edit and under each. It is read at the edit's layer or above, by
      the probe with the largest cross-fitted AUC (`probe_layer`). Intervals are Newcombe's, the null
      permutes the classes.

    The null of "behaviour" and "effect" is the range (from 39 draws on, the 95 % band) of the same edits
    with random directions of the same length; edits of `methods` have none. At the token scope "last", an
    edit leaves earlier tokens as they are, so that the probe there reads the same.

    Args:
        model: A hooked model.
        prompts: `train` fits, `test` measures.
        methods: Methods whose edits the probes read, as `localize` takes them: each fitted at the last token,
            one layer at a time, at its own token scope.
        layers: Layers of directions, cosines and probes: "all" or layer numbers.
        edit_layers: The layers of `layers` at which is edited; default: at most 6, evenly spaced.
        refusal: Whether to fit a refusal direction. Without it, harm alone is measured.
        judged_by: "answers" (greedy answers, by phrases) or "refusal_score" (the next token, above 0).
        refusal_tokens: Tokens that begin a refusal; see `refusal_token_ids`.
        phrases: Refusal phrases; default: the model's own, else "arditi".
        question: How to ask the model whether a request is harmful; default: the question that it declares.
            Without one, `harm_score` is not measured.
        max_new_tokens: Token budget of an answer that is judged.
        draws: Random directions of the null of each effect.
        permutations: Relabellings of the nulls of cosines and AUCs; 0 for none.
        bootstrap: Resamples of the intervals of cosines; 0 for none.
        batch_size: Prompts per batch.
        seed: Of resamples and random directions.
        progress: Called with 1 for each edit that was measured, those of random directions included.

    Returns:
        One row per measured quantity, with the columns part, direction, action, method, layer (of the edit),
        quantity, prompts, position, probe_layer, value, low, high, null_mean, null_low, null_high, n, draws,
        unit, seed.

    Raises:
        FitError: If the model refuses, or answers, fewer than two training prompts, or a method cannot be
            fitted or edits all layers together.
        HookError: If a layer does not exist, or the chat template has nothing after the instruction.
        PromptError: If prompts or the question cannot be used.
        OtLensError: If there are fewer than two draws.
        OtLensTypeError: If `prompts` is not a `ContrastSet`.
    """
    if not isinstance(prompts, ContrastSet):
        raise OtLensTypeError(f"harm_and_refusal takes a ContrastSet, got {type(prompts).__name__}.")
    one_of("judgement", judged_by, FILTERS, OtLensError)
    if draws < 2:
        raise OtLensError(f"draws must be at least 2, got {draws}.")
    specs, plan = as_methods(methods) if methods else [], ResamplingPlan(permutations, bootstrap, seed)
    joint = next((method for method in specs if method.joint), None)
    if joint is not None:
        raise FitError(f"{joint.label} edits all layers together: leave it out of methods.")
    n_layers, positions = backend(model).n_layers, _positions(model)
    chosen = resolve_layers(layers, n_layers)
    sites = _edited_layers(chosen, edit_layers)
    tokens = refusal_token_ids(model, refusal_tokens)
    judge = _judge(model, judged_by, tokens, phrases, max_new_tokens, batch_size)
    splits = {"train": prompts.train, "test": prompts.test}
    flags: dict[str, dict[str, Tensor]] = {HARM: {name: _classes(split) for name, split in splits.items()}}
    if refusal:
        flags[REFUSAL] = {name: judge(split) for name, split in splits.items()}
        _check_sides(flags[REFUSAL]["train"], judged_by)
    options: dict[str, Any] = {
        "layers": chosen,
        "positions": list(positions.values()),
        "batch_size": batch_size,
    }
    acts = {name: capture(model, split, **options) for name, split in splits.items()}
    fitted = {
        name: {layer: _labelled(acts, flags, positions, "train", name, layer) for layer in chosen}
        for name in flags
    }
    edits = direction_edits(fitted, sites, n_layers)
    random = random_edits(fitted, sites, n_layers, draws, seed)
    probes = {at: fit_probes(acts["train"], at, seed) for at in positions.values()}
    setting = Setting(model, prompts.test, question or harm_question(model), tokens, probes, batch_size, plan)
    others = _method_edits(model, prompts.train, acts["train"], specs, sites, batch_size, seed)
    rows = [*_of_directions(acts, flags, positions, plan)]
    rows += measured(setting, edits, random, others, progress or (lambda _done: None))
    table = pd.DataFrame([{**NONE, **row} for row in rows], columns=list(COLUMNS)).assign(seed=seed)
    return table.astype(dict.fromkeys(WHOLE, "Int64") | {"position": str})


def count_edits(n_layers: int, n_methods: int, draws: int = DRAWS) -> int:
    """Edits that `harm_and_refusal` measures by default, those of random directions included."""
    layers, directions = min(n_layers, MAX_EDITED), 2
    return draws * (1 + 2 * directions * layers) + (3 * directions + n_methods) * layers + 1


def _positions(model: Any) -> dict[str, int | str]:
    """The token at which each direction is fitted."""
    (end,) = resolve_positions(model, "instruction_last")
    if end == LAST:
        raise HookError(
            "This model's chat template has nothing after the instruction, so that harm and refusal cannot "
            "be read at different tokens."
        )
    return {HARM: end, REFUSAL: LAST}


def _edited_layers(captured: tuple[int, ...], wanted: Sequence[int] | None) -> list[int]:
    if wanted is None:
        last, count = len(captured) - 1, min(len(captured), MAX_EDITED)
        return sorted({captured[round(i * last / max(1, count - 1))] for i in range(count)})
    missing = [layer for layer in wanted if layer not in captured]
    if missing or not wanted:
        raise HookError(f"edit_layers = {list(wanted)}: choose at least one of layers {list(captured)}.")
    return sorted(set(wanted))


def _classes(split: Contrast) -> Bool[Tensor, " n"]:
    return torch.tensor([label == "harmful" for label, group in split for _ in group])


def _judge(
    model: Any,
    by: str,
    tokens: Sequence[int],
    phrases: str | Sequence[str] | None,
    max_new_tokens: int,
    batch_size: int,
) -> Callable[[Contrast], Bool[Tensor, " n"]]:
    """A function that tells which prompts of a split the model refuses."""
    listed = model_phrases(model) if phrases is None else phrase_list(phrases)

    def refused(split: Contrast) -> Bool[Tensor, " n"]:
        both = [prompt for _, group in split for prompt in group]
        if by == "refusal_score":
            return refusal_score(model, both, tokens=tokens, batch_size=batch_size) > 0
        answers = complete(model, both, max_new_tokens=max_new_tokens, batch_size=batch_size)
        return torch.tensor(refuses(answers, listed))

    return refused


def _check_sides(refused: Bool[Tensor, " n"], by: str) -> None:
    count, n = int(refused.sum()), len(refused)
    if min(count, n - count) < FEWEST:
        raise FitError(
            f"The model refuses {count} of {n} training prompts (by {by}): a refusal direction needs at "
            f"least {FEWEST} that it refuses and {FEWEST} that it answers. refusal=False measures harm alone."
        )


def _labelled(
    acts: Mapping[str, Activations],
    flags: Flags,
    positions: Mapping[str, int | str],
    split: str,
    name: str,
    layer: int,
) -> Labelled:
    """The samples that a direction is fitted to, or measured on."""
    return Labelled.of(acts[split], layer, positions[name], flags[name][split])


def _of_directions(
    acts: Mapping[str, Activations], flags: Flags, positions: Mapping[str, int | str], plan: ResamplingPlan
) -> Iterator[dict[str, Any]]:
    """Cosines of the directions, and how well each separates held-out prompts."""
    for layer in acts["train"].layers:
        train, test = (
            {name: _labelled(acts, flags, positions, split, name, layer) for name in flags}
            for split in ("train", "test")
        )
        if REFUSAL in train:
            found = cosine(train[HARM], train[REFUSAL], plan)
            yield {"part": "cosine", "layer": layer, "quantity": "cosine", "unit": "cosine", **found}
        for name in flags:
            about = {"part": "separability", "direction": name, "layer": layer, "position": positions[name]}
            for found in separations(train[name], test[name], plan):
                yield {**about, "quantity": "auc", "unit": "AUC", **found}


def _method_edits(
    model: Any,
    train: Contrast,
    acts: Activations,
    methods: Sequence[MethodSpec],
    layers: Sequence[int],
    batch_size: int,
    seed: int,
) -> list[Edit]:
    """Each method's map at each layer, fitted at the last token, at its own token scope."""
    if not methods:
        return []
    options: dict[str, Any] = {"model": model, "prompts": train, "batch_size": batch_size, "seed": seed}
    maps = fit_maps(acts, methods, layers=layers, position=LAST, **options)
    n_layers = backend(model).n_layers
    return [
        Edit(
            {"method": method.label, "layer": layer},
            edits_at(method, by_layer, (layer,), n_layers),
            scope_of(method.name, AUTO, LAST),
        )
        for method, by_layer in maps.items()
        for layer in layers
    ]
