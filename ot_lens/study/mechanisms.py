"""Tables of what a model does inside: which blocks, tokens and parts refuse, what they write, and harm."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.components import ablate_heads, contributions, top_heads
from ot_lens.components.ablation import MODES
from ot_lens.directions import harm_and_refusal, readout_vectors, tokens_written
from ot_lens.errors import (
    ActivationError,
    FitError,
    HookError,
    NotMeasuredWarning,
    OtLensError,
    PromptError,
    SinglePassError,
)
from ot_lens.execution import Runner
from ot_lens.localization import across_languages, restore_refusal
from ot_lens.localizers import located
from ot_lens.patching import interchange
from ot_lens.prompts import CLASSES, ContrastSet
from ot_lens.study.subject import Study, Tables, drawn, spread
from ot_lens.tables import most_effective_layer, reported

# Prompts of each class to which localizers fit edits, directions and probes.
MOST_FITTED = 64
# Layers above an attack at which it is defended against.
MAX_DEFENDED = 3
# Axes of each map whose tokens are read.
MAX_AXES = 2
# Sets of random heads: a p-value can be as small as 1/40.
RANDOM_HEADS = 39
# Layers at which edits are tried in other languages, and fits to permuted labels in each.
MAX_TRANSLATED, TRANSLATED_CONTROLS = 8, 4
# Stages that are not named like their table.
STAGES = {"harm": "harm apart from refusal", "ablated_heads": "heads left out"}


def localizers_table(study: Study) -> Tables:
    """Which blocks make refusal; none where the model cannot be replayed block by block, which is said."""
    config = study.config
    if study.executor is None or study.prompts is None or not config.localizers:
        return {}
    rng = np.random.default_rng(config.seed)
    train = drawn(study.prompts.train, MOST_FITTED, rng)
    test = drawn(study.prompts.test, config.localizers, rng)
    prompts = replace(study.prompts, train=train, test=test)
    errors, what = (FitError, SinglePassError), "Which blocks make refusal"
    arguments = (prompts, config.base, config.loading(), config.seed)
    return _unless(errors, study, "localizers", what, located, *arguments)


def defence_table(study: Study) -> Tables:
    """What restores refusal that a mean shift has removed below the highest layer, where edits do most."""
    config, (*lower, highest) = study.config, study.acts["test"].layers
    if study.executor is None or study.prompts is None or not config.defence:
        return {}
    sweep = reported(study.sweep)
    attacked = most_effective_layer(sweep[sweep["layer"].isin(lower)])
    if attacked is None:
        warnings.warn(
            f"No defence was measured: no edit below layer {highest} removes refusal. Add lower layers.",
            NotMeasuredWarning,
            stacklevel=2,
        )
        return {}
    above = tuple(layer for layer in (*lower, highest) if layer > attacked)
    names = ("phrases", "refusal_tokens", "max_new_tokens", "batch_size", "seed")
    with study.stage("defence", None):
        table = restore_refusal(
            Runner(study.executor),
            study.prompts,
            attack_layer=attacked,
            layers=spread(above, MAX_DEFENDED),
            **{name: getattr(config, name) for name in names},
        )
    return {"defence": table}


def contributions_table(study: Study) -> Tables:
    """Who writes the refusal direction: the class means' difference where edits have the largest effect."""
    config = study.config
    if (
        study.executor is None
        or study.prompts is None
        or "train" not in study.acts
        or not config.contributions
    ):
        return {}
    direction, at = _refusal_direction(study)
    options = {"layer": at, "batch_size": config.batch_size, "seed": config.seed}
    prompts = drawn(study.prompts.test, config.contributions, np.random.default_rng(config.seed))
    errors, what = (ActivationError, HookError), "Who writes the refusal direction"
    return _unless(errors, study, "contributions", what, contributions, prompts, direction, **options)


def ablated_heads_table(study: Study) -> Tables:
    """Whether the heads that write most of the refusal direction are needed."""
    config = study.config
    if study.executor is None or study.prompts is None or not (config.contributions and config.ablated_heads):
        return {}
    direction, at = _refusal_direction(study)
    test = drawn(study.prompts.test, config.contributions, np.random.default_rng(config.seed))
    train = drawn(study.prompts.train, MOST_FITTED, np.random.default_rng(config.seed))
    prompts = replace(study.prompts, train=train, test=test)
    options = {
        "layer": at,
        "count": config.ablated_heads,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    errors, what = (ActivationError, HookError), "Whether heads are needed"
    return _unless(errors, study, "ablated_heads", what, _without_top_heads, prompts, direction, **options)


def _refusal_direction(study: Study) -> tuple[Float64[Tensor, " d"], int]:
    """The class means' difference where edits do most, and the layer that its stream enters."""
    config, train = study.config, study.acts["train"]
    most = most_effective_layer(reported(study.sweep))
    layer = train.layers[-1] if most is None else most
    harmful, harmless = (getattr(train, label)(layer, config.position) for label in CLASSES)
    # The stream that is taken apart enters a layer; all other hook points are part of what enters the next.
    at = layer if config.hook == "resid_pre" else layer + 1
    return harmful.mean(dim=0) - harmless.mean(dim=0), at


def _without_top_heads(
    model: Any,
    prompts: ContrastSet,
    direction: Float[Tensor, " width"],
    *,
    layer: int,
    count: int,
    batch_size: int,
    seed: int,
) -> pd.DataFrame:
    """The heads that write most on training prompts, replaced in both modes."""
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    written = contributions(
        model, prompts.train, direction, layer=layer, permutations=1, bootstrap=1, **options
    )
    known = len(written[written["component"] == "head"].groupby(["layer", "head"]))
    # At most every second head, so that random sets are others.
    heads = top_heads(written, min(count, -(-known // 2))) if known else []
    options["random_sets"] = RANDOM_HEADS
    tables = [ablate_heads(model, prompts, heads, mode=mode, **options) for mode in MODES]
    return pd.concat(tables, ignore_index=True)


def languages_table(study: Study) -> Tables:
    """What edits fitted in one language do in others, of the prompts that the configuration names."""
    config = study.config
    if study.executor is None or not study.languages:
        return {}
    methods = [method for method in study.maps if method.label in study.compared]
    options: dict[str, Any] = {"layers": spread(study.acts["train"].layers, MAX_TRANSLATED)}
    names = ("refusal_tokens", "batch_size", "seed")
    options |= {name: getattr(config, name) for name in names} | {"control_draws": TRANSLATED_CONTROLS}
    options |= {name: study.few_resamples[name] for name in ("permutations", "bootstrap")}
    with study.stage("languages", None):
        table = across_languages(Runner(study.executor), study.languages, methods, **options)
    return {"languages": table}


def readout_table(study: Study) -> Tables:
    """What the direction and the compared maps write; displacements are those of held-out prompts."""
    config = study.config
    if study.executor is None or not config.readout:
        return {}
    train, test = study.acts["train"], study.acts["test"]
    vectors = readout_vectors(train, study.compared, moved=test, position=config.position, axes=MAX_AXES)
    with study.stage("readout", None):
        table = study.executor.call(tokens_written, vectors, k=config.readout, seed=config.seed)
    return {"readout": table}


def harm_table(study: Study) -> Tables:
    """Harm apart from refusal; none where the model refuses nothing or everything, which is said."""
    config, prompts = study.config, study.prompts
    if study.executor is None or prompts is None or not config.harm:
        return {}
    options: dict[str, Any] = {"refusal_tokens": config.refusal_tokens, "phrases": config.phrases}
    options |= {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
    options |= study.few_resamples
    del options["position"]
    methods = [method for method in study.maps if not (method.learned or method.joint)]
    options["layers"] = study.acts["train"].layers
    errors, what = (FitError, HookError), "Harm apart from refusal"
    return _unless(errors, study, "harm", what, harm_and_refusal, prompts, methods, **options)


def interchange_table(study: Study) -> Tables:
    """Whose activations the answer follows; none where the single pass cannot measure it, as is said."""
    config = study.config
    if study.executor is None or study.prompts is None or not config.interchange:
        return {}
    few = drawn(study.prompts.test, config.interchange, np.random.default_rng(config.seed))
    null_draws = int(min(len(group) for _, group in few) > 1)
    options = {"null_draws": null_draws, "seed": config.seed, "engine": "single_pass"}
    errors, what = (HookError, PromptError, SinglePassError), "Which tokens' activations the answer follows"
    return _unless(errors, study, "interchange", what, interchange, few, **options)


def _unless(
    errors: tuple[type[OtLensError], ...],
    study: Study,
    name: str,
    what: str,
    function: Callable[..., pd.DataFrame],
    *arguments: Any,
    **options: Any,
) -> Tables:
    """The table that a function of the model makes; none if it raises one of the errors, which is said."""
    assert study.executor is not None
    try:
        with study.stage(STAGES.get(name, name), None):
            return {name: study.executor.call(function, *arguments, **options)}
    except errors as error:
        warnings.warn(f"{what} was not measured: {error}", NotMeasuredWarning, stacklevel=3)
        return {}
