"""What must hold before a study begins, and what it needs from the model, wherever the model is."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os.path import isfile
from pathlib import Path
from typing import Any

import torch

from ot_lens.behaviour import FILTERS, LazyJudge
from ot_lens.behaviour.panel import PanelSettings
from ot_lens.errors import ConfigError, PromptError, one_of
from ot_lens.execution import Executor
from ot_lens.execution.modules import import_modules
from ot_lens.localization import ENGINES, SEARCHES, SweepPlan, SweepSettings, sweep_settings
from ot_lens.localization.settings import SCOPES
from ot_lens.localization.variants import check_axes
from ot_lens.models import backend, control_tokens, encode, model_record
from ot_lens.progress import Stage
from ot_lens.prompts import ContrastSet
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder

CHOICES = {
    "tokens": SCOPES,
    "engine": ENGINES,
    "search": SEARCHES,
    "filter": ("off", *FILTERS),
    "judge_memory": ("together", "swap"),
    "activation_dtype": ("float32", "bfloat16", "float16", "float64"),
}
# Fields of the configuration that `sweep_settings` takes under the same names.
SWEPT = {
    "layers", "position", "tokens", "hook", "engine", "phrases", "refusal_tokens", "max_new_tokens",
    "batch_size", "seed", "outcomes",
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A study that can be carried out: its sweep, and what the manifest says of model and measuring."""

    settings: SweepSettings
    record: dict[str, Any]
    measuring: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A study while it runs: its folder, configuration, prompts, where its model is, and progress."""

    folder: RunFolder
    config: StudyConfig
    prompts: ContrastSet
    languages: Mapping[str, ContrastSet]
    executor: Executor
    ready: Prepared
    stage: Stage


def prepare(model: Any, config: StudyConfig, prompts: ContrastSet, run: Path) -> Prepared:
    """Check that a configuration fits the model and the prompts; raises an `OtLensError` if it does not."""
    settings = sweep_settings(
        model,
        config.measures,
        **config.model_dump(include=SWEPT),
        judge=None if config.judge is None else LazyJudge(config.judge),
        swap=config.judge_memory == "swap",
        text=None if config.perplexity_text is None else Path(config.perplexity_text),
        completions=run / "completions" if config.keep_completions else None,
    )
    check_study(config, model, prompts, settings)
    panel = settings.panel
    if panel.judge is not None:
        with panel.judge.in_place_of(backend(model).model, swap=panel.swap):
            pass  # errors of loading it surface before anything is measured
    served = backend(model)
    counts = {
        split: {label: sum(map(bool, control_tokens(served, group))) for label, group in contrast}
        for split, contrast in prompts.splits
    }
    measuring = {**_measured_by(model, panel), "prompts_with_control_tokens": counts}
    return Prepared(settings, model_record(model), measuring)


def _measured_by(model: Any, settings: PanelSettings) -> dict[str, Any]:
    """What decides a refusal, and the device whose rounding is in the numbers."""
    device, phrases = backend(model).device, settings.phrases
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "phrases": {"name": phrases.name, "version": phrases.version, "list": list(phrases.phrases)},
        "refusal_tokens": list(settings.refusal_tokens),
    }


def sweep_plan(config: StudyConfig) -> SweepPlan:
    """What the sweep tries, from the configuration."""
    choices = config.model_dump(include={entry.name for entry in fields(SweepPlan)})
    choices |= {name: tuple(value) for name, value in choices.items() if isinstance(value, list)}
    layer_sets = tuple(map(tuple, config.layer_sets))
    return SweepPlan(**choices | {"strengths": tuple(config.strength), "layer_sets": layer_sets})


def check_choices(config: StudyConfig) -> None:
    """Check the configuration by itself, before anything is loaded."""
    for name, allowed in CHOICES.items():
        if getattr(config, name) is not None:
            one_of(name, getattr(config, name), allowed)
    sweep_plan(config)
    _check_claims(config)
    _check_languages(config.languages)
    if config.judge is not None:
        LazyJudge(config.judge)
    text = config.perplexity_text
    if text is not None and not isfile(text):
        raise ConfigError(f"perplexity_text = {text!r}: there is no such file.")


def _check_languages(languages: Mapping[str, Any]) -> None:
    if len(languages) == 1:
        raise ConfigError(f"languages names {list(languages)} alone: give the prompts of at least two.")


def _check_claims(config: StudyConfig) -> None:
    check_axes(config.variants)
    for name, value in (("variants", config.variants), ("capability", config.capability)):
        if value and not config.claims:
            raise ConfigError(f"{name} = {value} needs the edits that claims chooses: add claims: true.")
    if config.claims and not config.outcomes:
        raise ConfigError("claims = true needs the scores of every prompt: add outcomes: true.")
    if config.capability and config.tokens != "all":
        raise ConfigError(
            f"capability needs tokens: all, got {config.tokens!r}: lm-eval knows no prompts and answers."
        )


def check_study(config: StudyConfig, model: Any, prompts: ContrastSet, settings: SweepSettings) -> None:
    """Check the configuration against model and prompts, before the run folder is made."""
    from ot_lens.plots.paper import style_named

    served, layers = backend(model), settings.layers
    served.hook_point(layers[0], config.hook)
    style_named(config.figure_style)
    for layers_of in config.layer_sets:
        outside = [layer for layer in layers_of if layer not in layers]
        if outside:
            raise ConfigError(f"layer_sets contains {layers_of}, but layer {outside[0]} is not in layers.")
    if config.plane_layer not in (None, *layers):
        raise ConfigError(f"plane_layer = {config.plane_layer} is not in layers, {list(layers)}.")
    for split, contrast in prompts.splits:
        answered = settings.panel.needs_answers if split == "test" else config.filter == "answers"
        for label, group in contrast:
            try:
                rows = encode(served, group, room=config.max_new_tokens if answered else 0)
            except PromptError as error:
                raise PromptError(f"The {label} {split} prompts: {error}") from error
            shortest = min(map(len, rows))
            if shortest < -config.position:
                raise ConfigError(
                    f"position = {config.position} is before the first token: the shortest of the {label} "
                    f"{split} prompts has {shortest} tokens."
                )


def import_extensions(config: StudyConfig, *, allow_code: bool) -> None:
    """Import the modules that a configuration names, so that they register what it uses.

    Only if `allow_code` is given: a file alone, which may come from a stranger, never makes code run.
    """
    if config.modules and not allow_code:
        raise ConfigError(
            f"The configuration imports code ({', '.join(config.modules)}): if you trust it, add "
            "--allow-code (in Python: allow_code=True)."
        )
    import_modules(config.modules)
