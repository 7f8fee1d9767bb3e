"""Tables of what a model does inside: which blocks, tokens and parts refuse, what they write, and harm."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Final

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
from ot_lens.execution import Executor, Runner
from ot_lens.localization import across_languages, restore_refusal
from ot_lens.localizers import located
from ot_lens.patching import interchange
from ot_lens.progress import Stage
from ot_lens.prompts import CLASSES, ContrastSet
from ot_lens.study.subject import Maker, Study, Tables, drawn, spread
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
STAGES = {"harm": "harm apart from refusal"}


def _localizers(study: Study, executor: Executor, prompts: ContrastSet) -> Tables:
    """Which blocks make refusal; none where the model cannot be replayed block by block, which is said."""
    config = study.config
    rng = np.random.default_rng(config.seed)
    train = drawn(prompts.train, MOST_FITTED, rng)
    few = replace(prompts, train=train, test=drawn(prompts.test, config.localizers, rng))
    errors, what = (FitError, SinglePassError), "Which blocks make refusal"
    arguments = few, config.base, config.loading(), config.seed
    run = partial(executor.call, located, *arguments, stage=study.stage)
    return _unless(errors, study, "localizers", what, run, counted=True)


def _defence(study: Study, executor: Executor, prompts: ContrastSet) -> Tables:
    """What restores refusal that a mean shift has removed below the highest layer, where edits do most."""
    config, (*lower, highest) = study.config, study.acts["test"].layers
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
            Runner(executor),
            prompts,
            attack_layer=attacked,
            layers=spread(above, MAX_DEFENDED),
            **{name: getattr(config, name) for name in names},
        )
    return {"defence": table}


def _contributions(study: Study, executor: Executor, prompts: ContrastSet) -> Tables:
    """Who writes the refusal direction: the class means' difference where edits have the largest effect."""
    config = study.config
    direction, at = _refusal_direction(study)
    options = {"layer": at, "batch_size": config.batch_size, "seed": config.seed}
    few = drawn(prompts.test, config.contributions, np.random.default_rng(config.seed))
    errors, what = (ActivationError, HookError), "Who writes the refusal direction"
    run = partial(executor.call, contributions, few, direction, **options)
    return _unless(errors, study, "contributions", what, run)


def _ablated_heads(study: Study, executor: Executor, prompts: ContrastSet) -> Tables:
    """Whether the heads that write most of the refusal direction are needed."""
    config = study.config
    if not config.contributions:
        return {}
    direction, at = _refusal_direction(study)
    test = drawn(prompts.test, config.contributions, np.random.default_rng(config.seed))
    train = drawn(prompts.train, MOST_FITTED, np.random.default_rng(config.seed))
    few = replace(prompts, train=train, test=test)
    options = {
        "layer": at,
        "count": config.ablated_heads,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "stage": study.stage,
    }
    errors, what = (ActivationError, HookError), "Whether heads are needed"
    run = partial(executor.call, _without_top_heads, few, direction, **options)
    return _unless(errors, study, "ablated_heads", what, run, counted=True)


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
    stage: Stage,
) -> pd.DataFrame:
    """The heads that write most on training prompts, replaced in both modes."""
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    tables = []
    with stage("heads left out", 1 + len(MODES)) as step:
        written = contributions(
            model, prompts.train, direction, layer=layer, permutations=1, bootstrap=1, **options
        )
        step(1)
        known = len(written[written["component"] == "head"].groupby(["layer", "head"]))
        # At most every second head, so that random sets are others.
        heads = top_heads(written, min(count, -(-known // 2))) if known else []
        for mode in MODES:
            tables.append(ablate_heads(model, prompts, heads, mode=mode, random_sets=RANDOM_HEADS, **options))
            step(1)
    return pd.concat(tables, ignore_index=True)


def _languages(study: Study, executor: Executor, _: ContrastSet) -> Tables:
    """What edits fitted in one language do in others, of the prompts that the configuration names."""
    config = study.config
    methods = [method for method in study.maps if method.label in study.compared]
    options: dict[str, Any] = {"layers": spread(study.acts["train"].layers, MAX_TRANSLATED)}
    names = ("refusal_tokens", "batch_size", "seed")
    options |= {name: getattr(config, name) for name in names} | {"control_draws": TRANSLATED_CONTROLS}
    options |= {name: study.few_resamples[name] for name in ("permutations", "bootstrap")}
    options["stage"] = study.stage
    return {"languages": across_languages(Runner(executor), study.languages, methods, **options)}


def _readout(study: Study, executor: Executor, _: ContrastSet) -> Tables:
    """What the direction and the compared maps write; displacements are those of held-out prompts."""
    config = study.config
    train, test = study.acts["train"], study.acts["test"]
    vectors = readout_vectors(train, study.compared, moved=test, position=config.position, axes=MAX_AXES)
    with study.stage("readout", None):
        table = executor.call(tokens_written, vectors, k=config.readout, seed=config.seed)
    return {"readout": table}


def _harm(study: Study, executor: Executor, prompts: ContrastSet) -> Tables:
    """Harm apart from refusal; none where the model refuses nothing or everything, which is said."""
    config = study.config
    options: dict[str, Any] = {"refusal_tokens": config.refusal_tokens, "phrases": config.phrases}
    options |= {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
    options |= study.few_resamples
    del options["position"]
    methods = [method for method in study.maps if not (method.learned or method.joint)]
    options["layers"] = study.acts["train"].layers
    errors, what = (FitError, HookError), "Harm apart from refusal"
    run = partial(executor.call, harm_and_refusal, prompts, methods, **options)
    return _unless(errors, study, "harm", what, run)


def _interchange(study: Study, executor: Executor, prompts: ContrastSet) -> Tables:
    """Whose activations the answer follows; none where the single pass cannot measure it, as is said."""
    config = study.config
    few = drawn(prompts.test, config.interchange, np.random.default_rng(config.seed))
    null_draws = int(min(len(group) for _, group in few) > 1)
    options = {"null_draws": null_draws, "seed": config.seed, "engine": "single_pass", "stage": study.stage}
    errors, what = (HookError, PromptError, SinglePassError), "Which tokens' activations the answer follows"
    run = partial(executor.call, interchange, few, **options)
    return _unless(errors, study, "interchange", what, run, counted=True)


def _unless(
    errors: tuple[type[OtLensError], ...],
    study: Study,
    name: str,
    what: str,
    run: Callable[[], pd.DataFrame],
    *,
    counted: bool = False,
) -> Tables:
    """The table that a run of the model makes, which counts its own steps or has no steps to count.

    None if it raises one of the errors, which is said.
    """
    try:
        with nullcontext() if counted else study.stage(STAGES.get(name, name), None):
            return {name: run()}
    except errors as error:
        warnings.warn(f"{what} was not measured: {error}", NotMeasuredWarning, stacklevel=4)
        return {}


def _of_the_model(field: str, make: Callable[[Study, Executor, ContrastSet], Tables]) -> Maker:
    """A maker that makes nothing without a model and prompts, or unless the configuration asks for it."""

    def made(study: Study) -> Tables:
        executor, prompts = study.executor, study.prompts
        if executor is None or prompts is None or not getattr(study.config, field):
            return {}
        return make(study, executor, prompts)

    return made


# By table, whose name is also that of the field which asks for it.
MECHANISMS: Final[Mapping[str, Maker]] = {
    name: _of_the_model(name, make)
    for name, make in {
        "localizers": _localizers,
        "defence": _defence,
        "interchange": _interchange,
        "contributions": _contributions,
        "ablated_heads": _ablated_heads,
        "languages": _languages,
        "readout": _readout,
        "harm": _harm,
    }.items()
}
