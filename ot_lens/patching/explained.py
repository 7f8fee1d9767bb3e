"""How much of the interchange's effect a map has at the same site: no map can be more specific there."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.activations import capture, resolve_layers
from ot_lens.behaviour import refusal_token_ids
from ot_lens.behaviour.panel import values_of_logits, without_nan
from ot_lens.errors import FitError
from ot_lens.interventions import Edits
from ot_lens.localization import MethodSpec, as_methods, fit_maps
from ot_lens.models import backend
from ot_lens.patching.partners import others
from ot_lens.patching.positions import LAST
from ot_lens.patching.prepared import Patching
from ot_lens.patching.sweep import AUTO
from ot_lens.patching.table import averaged
from ot_lens.patching.tails import BLOCK, HOOK_OF
from ot_lens.progress import Stage, silent
from ot_lens.prompts import CLASSES, ContrastSet
from ot_lens.single_pass import next_token_sweep
from ot_lens.statistics import Estimate, mean
from ot_lens.statistics.estimates import ratio_of_sums, unknown
from ot_lens.transport import ActivationMap

HOOK = HOOK_OF[BLOCK]
ByLayer = Float[np.ndarray, "layer prompt"]
Maps = dict[MethodSpec, dict[int, ActivationMap]]


def share_explained(
    model: Any,
    prompts: ContrastSet,
    methods: Sequence[str | dict[str, Any] | MethodSpec],
    *,
    layers: str | Sequence[int] = "all",
    partners: str | Sequence[int] = "random",
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    stage: Stage = silent,
) -> pd.DataFrame:
    """The effect of each map at the last token over that of the interchange at the same site.

    Both replace the stream that leaves a block at the last token of harmful prompts; the interchange puts a
    harmless prompt's own activation there, so it is what a map can reach without reading the prompt.

    Args:
        model: A hooked model.
        prompts: `train` fits the maps; effects are of `test`.
        methods: As in `localize`; not those that edit every block at once.
        layers: "all" or layer numbers.
        partners: As in `interchange`.
        draws: Partners of each prompt, whose effects are averaged.
        seed: Of partners, trained methods and intervals.
        batch_size: Prompts per batch.
        stage: Shows progress; see `ot_lens.progress`.

    Returns:
        One row per method and layer: method, layer, value (effect over interchange, a ratio of means), unit
        ("share"), low and high (95 % interval, prompts drawn in pairs), effect (mean change of the refusal
        score under the map), interchange (the same of the interchange), interchange_low, interchange_high
        (its 95 % interval), n, draws, seed. Where that interval holds zero, value, low and high are NaN: a
        share of nothing.

    Raises:
        FitError: If a method cannot be fitted, or edits every block.
        PromptError: As `interchange`.
        SinglePassError: If the model cannot be replayed block by block.
        ActivationError: If logits are NaN.
    """
    chosen = as_methods(methods)
    spread = next((method.label for method in chosen if method.everywhere), None)
    if spread is not None:
        raise FitError(f"{spread} edits every block at once: leave it out, for no one site has its effect.")
    known = resolve_layers(layers, backend(model).n_layers)
    with stage("maps", len(chosen) * len(known)) as step:
        acts = capture(model, prompts.train, layers=known, hook=HOOK, positions=[-1])
        options: dict[str, Any] = {"layers": known, "position": -1, "seed": seed, "progress": step}
        maps = fit_maps(acts, chosen, model=model, prompts=prompts.train, **options)
    with stage("interchange", len(prompts.test.harmful)) as step:
        whole = _interchanged(model, prompts, partners, draws, seed, batch_size, step)[list(known)]
    effects = _of_maps(model, prompts, [maps[method][layer] for method in chosen for layer in known], known)
    by_method = zip(chosen, effects.reshape(len(chosen), *whole.shape), strict=True)
    rows = [
        {"method": method.label, "layer": layer, **row, "draws": draws, "seed": seed}
        for method, own in by_method
        for layer, row in zip(known, _shares(own, whole, seed), strict=True)
    ]
    return pd.DataFrame(rows)


def _interchanged(
    model: Any,
    prompts: ContrastSet,
    partners: str | Sequence[int],
    draws: int,
    seed: int,
    batch_size: int,
    progress: Any,
) -> ByLayer:
    """The mean effect of a prompt's partners, by layer."""
    harmful, harmless = CLASSES
    patching = Patching.read(model, prompts.test, LAST, [HOOK], batch_size)
    numbers, _ = others(partners, patching.lengths, draws, np.random.default_rng(seed))
    replacements = [patching.interchanged(BLOCK, harmful, drawn, harmless) for drawn in numbers]
    effects = patching.effects(harmful, replacements, kl=False, engine=AUTO, progress=progress)
    return averaged(effects.score.numpy())[:, 0]


def _of_maps(
    model: Any, prompts: ContrastSet, maps: Sequence[ActivationMap], layers: Sequence[int]
) -> Float[np.ndarray, "map prompt"]:
    """How each map changes the refusal score of harmful prompts; maps go through the layers in turn."""
    sites = [(layers[number % len(layers)], HOOK) for number in range(len(maps))]
    edits: list[Edits] = [{site: edit} for site, edit in zip(sites, maps, strict=True)]
    reduce = partial(values_of_logits, tokens=refusal_token_ids(model))
    values = next_token_sweep(model, prompts.test.harmful, [*edits, {}], reduce, tokens="last")
    scores = without_nan(values)[..., 0].numpy()
    return scores[:-1] - scores[-1]


def _shares(own: ByLayer, whole: ByLayer, seed: int) -> Iterator[dict[str, Any]]:
    for a, b in zip(own, whole, strict=True):
        all_of_it = mean(b, seed=seed)
        share = _share(a, b, all_of_it, seed)
        yield {
            "value": share.value,
            "unit": "share",
            "low": share.low,
            "high": share.high,
            "effect": float(a.mean()),
            "interchange": all_of_it.value,
            "interchange_low": all_of_it.low,
            "interchange_high": all_of_it.high,
            "n": len(a),
        }


def _share(
    a: Float[np.ndarray, " prompt"], b: Float[np.ndarray, " prompt"], whole: Estimate, seed: int
) -> Estimate:
    if not whole.low * whole.high > 0:
        return unknown(len(a))
    return ratio_of_sums(a, b, seed=seed, least=-np.inf)
