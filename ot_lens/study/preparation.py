"""What a study asks of the model before it begins, wherever the model is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ot_lens.activations import resolve_layers
from ot_lens.behaviour import LazyJudge, PanelSettings, filter_by_behaviour
from ot_lens.localization import panel_settings
from ot_lens.models import backend, model_record
from ot_lens.prompts import ContrastSet
from ot_lens.study.checks import check_study
from ot_lens.study.config import StudyConfig


@dataclass(frozen=True)
class Prepared:
    """A study that can be carried out.

    Attributes:
        layers: The layers swept.
        n_layers: Layers of the model.
        settings: The panel.
        record: What the manifest says of the model.
        measuring: What it says of how refusals are told, and of the device.
    """

    layers: tuple[int, ...]
    n_layers: int
    settings: PanelSettings
    record: dict[str, Any]
    measuring: dict[str, Any]


def prepare(model: Any, config: StudyConfig, prompts: ContrastSet, run: Path) -> Prepared:
    """Check that a configuration fits the model and the prompts.

    Args:
        model: A hooked model.
        config: The configuration.
        prompts: All splits.
        run: The run folder.

    Raises:
        OtLensError: If it does not.
    """
    n_layers = backend(model).n_layers
    layers = resolve_layers(config.layers, n_layers)
    settings = panel_settings(
        model,
        config.measures,
        config.phrases,
        config.refusal_tokens,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
        judge=None if config.judge is None else LazyJudge(config.judge),
        swap=config.judge_memory == "swap",
        text=None if config.perplexity_text is None else Path(config.perplexity_text),
        completions=run / "completions" if config.keep_completions else None,
    )
    check_study(config, model, prompts, layers)
    if settings.judge is not None:
        settings.judge.make_ready(backend(model).model, swap=settings.swap)
    return Prepared(layers, n_layers, settings, model_record(model), _measured_by(model, settings))


def _measured_by(model: Any, settings: PanelSettings) -> dict[str, Any]:
    """What decides a refusal, and the device whose rounding is in the numbers."""
    device = backend(model).device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    phrases = settings.phrases
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "phrases": {"name": phrases.name, "version": phrases.version, "list": list(phrases.phrases)},
        "refusal_tokens": list(settings.refusal_tokens),
    }


def filtered(model: Any, config: StudyConfig, prompts: ContrastSet) -> ContrastSet:
    """Training and validation prompts that the unedited model treats as of their class, as configured.

    Raises:
        PromptError: If none is left of a class.
    """
    return filter_by_behaviour(model, prompts, **filter_options(config))


def filter_options(config: StudyConfig) -> dict[str, Any]:
    """How a configuration has prompts filtered, as `filter_by_behaviour` takes it."""
    return {
        "by": config.filter,
        "tokens": config.refusal_tokens,
        "phrases": config.phrases,
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
    }
