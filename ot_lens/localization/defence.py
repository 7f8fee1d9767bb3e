"""The defender's side: maps that restore refusal after another edit has removed it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, capture
from ot_lens.errors import FitError, HookError
from ot_lens.execution import as_runner
from ot_lens.interventions import Edits
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.measure import measure_sweep
from ot_lens.localization.methods import MethodSpec, as_methods, fit_maps
from ot_lens.localization.settings import SweepSettings, sweep_settings
from ot_lens.prompts import CLASSES, ContrastSet
from ot_lens.tables import (
    ATTACK,
    ATTACK_AND_DEFENCE,
    DEFENCE,
    INDUCE,
    LISTED,
    REMOVE,
    SINGLE,
    UNEDITED,
    join,
)
from ot_lens.transport import ActivationMap, method_named
from ot_lens.transport.fitting import fit_unmodified
from ot_lens.transport.modifiers import modified, split_options

DEFENCES: tuple[str | Mapping[str, Any], ...] = (
    "mean_shift",
    {"name": "mean_shift", "within": "null_space"},
    {"name": "mean_shift", "gate": "threshold"},
    {"name": "pca_ot", "k": 2, "gate": "threshold"},
)
MEASURES = ("refusal_rate", "refusal_score", "kl")
# Both edits act on the token that the maps were fitted on.
TOKENS = "last"


def restore_refusal(
    model: Any,
    prompts: ContrastSet,
    attack: str | Mapping[str, Any] | MethodSpec = "mean_shift",
    *,
    attack_layer: int,
    layers: Sequence[int],
    methods: Sequence[str | Mapping[str, Any] | MethodSpec] = DEFENCES,
    measures: Sequence[str] = MEASURES,
    phrases: str | Sequence[str] | None = None,
    refusal_tokens: Sequence[str | int] | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Remove refusal by an edit at one layer and restore it by an edit above.

    Each defence moves harmless activations, as they are under the attack, onto those of the harmful prompts
    that the unedited model refuses. Its gate or null-space constraint tells harmful prompts from harmless
    ones, with the attack and without. Both edits act on the last prompt token.

    Args:
        model: A hooked model that refuses.
        prompts: `train` fits the maps, `test` measures.
        attack: Method of the edit that removes refusal.
        attack_layer: Its layer.
        layers: Layers of the defence, each by itself, above the attack's.
        methods: Methods that can be fitted from harmless to harmful, with their modifiers.
        measures: As `localize` takes them.
        phrases: As `localize` takes them.
        refusal_tokens: As `localize` takes them.
        max_new_tokens: Token budget of an answer.
        batch_size: Prompts per batch.
        seed: Seed of intervals and tests.
        progress: Called with the key of each edit that is done.

    Returns:
        The columns of `localize`, and `edits`: "none" (the unedited model), "attack", "defence", "attack and
        defence". `layer` is that of the defence, for "attack" the attack's. The refusal rate on harmful
        prompts under both edits is what was restored, on harmless ones what is refused wrongly.

    Raises:
        FitError: If a method is unknown, cannot be fitted, or has no form from harmless to harmful.
        HookError: If a layer does not exist or is not above the attack's.
    """
    runner, (removing,), defending = as_runner(model), as_methods([attack]), as_methods(methods)
    low = [layer for layer in layers if layer <= attack_layer]
    if low or not layers:
        raise HookError(f"A defence acts above the attack's layer {attack_layer}, got layers {list(layers)}.")
    for method in defending:
        if not method_named(method.name).reversible:
            raise FitError(f"{method.name} has no form from harmless to harmful: use pca_ot or mean_shift.")
    sites = sorted({attack_layer, *layers})
    options: dict[str, Any] = {"layers": sites, "batch_size": batch_size}
    settings = runner.call(
        sweep_settings,
        measures,
        layers=sites,
        tokens=TOKENS,
        phrases=phrases,
        refusal_tokens=refusal_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
    )
    plain = capture(runner, prompts.train, **options)
    attacked_by = fit_maps(plain, [removing], layers=[attack_layer], position=-1)[removing]
    attacked = capture(runner, prompts.train, edits=attacked_by, tokens=TOKENS, **options)
    candidates = {ATTACK: [_candidate(SINGLE, removing, (attack_layer,), attacked_by, REMOVE)]}
    for layer in sorted(layers):
        for method in defending:
            edit = defence(method, plain, attacked, layer)
            alone: Edits = {layer: edit}
            both: Edits = {**attacked_by, layer: edit}
            candidates.setdefault(DEFENCE, []).append(_candidate(SINGLE, method, (layer,), alone))
            defended = _candidate(LISTED, method, (attack_layer, layer), both)
            candidates.setdefault(ATTACK_AND_DEFENCE, []).append(defended)
    return _measured(runner, prompts, candidates, settings, progress)


def defence(method: MethodSpec, plain: Activations, attacked: Activations, layer: int) -> ActivationMap:
    """A method's map at a layer from attacked harmless activations to refused ones, with its modifiers."""
    known = method_named(method.name)
    own, options = split_options(known, method.params)
    fitted = fit_unmodified(known, attacked.harmless(layer), plain.harmful(layer), **own)
    harmful, harmless = (_both(plain, attacked, label, layer) for label in CLASSES)
    return modified(fitted, known, harmful, harmless, options).labelled(layer=layer, position=-1)


def _both(plain: Activations, attacked: Activations, label: str, layer: int) -> Float64[Tensor, "n d"]:
    """A class without the attack and with it."""
    return torch.cat([getattr(acts, label)(layer) for acts in (plain, attacked)])


def _candidate(
    layer_set: str, method: MethodSpec, layers: tuple[int, ...], edits: Edits, transport: str = INDUCE
) -> Candidate:
    k = method.k([edits[layers[-1]]])  # type: ignore[index,list-item]  # keyed by layer here
    return Candidate(layer_set, layers, method, edits, k, TOKENS, transport=transport)


def _measured(
    runner: Any,
    prompts: ContrastSet,
    candidates: Mapping[str, Sequence[Candidate]],
    settings: SweepSettings,
    progress: Callable[[str], None] | None,
) -> pd.DataFrame:
    everything = [candidate for group in candidates.values() for candidate in group]
    tables = measure_sweep(runner, prompts.test, everything, settings, progress=progress)
    table = join(list(tables.values()))
    what = {candidate.key: edits for edits, group in candidates.items() for candidate in group}
    defended = {candidate.key: candidate.layers[-1] for candidate in everything}
    table["edits"] = table["key"].map(what).fillna(UNEDITED)
    table["layer"] = table["key"].map(defended).astype("Int64")
    return table
