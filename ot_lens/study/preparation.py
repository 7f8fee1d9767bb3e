"""What a study needs from the model before it begins, wherever the model is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ot_lens.behaviour import LazyJudge
from ot_lens.behaviour.panel import PanelSettings
from ot_lens.execution import Executor
from ot_lens.localization import SweepSettings, sweep_settings
from ot_lens.models import backend, model_record
from ot_lens.prompts import ContrastSet
from ot_lens.study.checks import check_study
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder
from ot_lens.study.stage import Stage


@dataclass(frozen=True)
class Prepared:
    """A study that can be carried out: its sweep, and what the manifest says of model and measuring."""

    settings: SweepSettings
    record: dict[str, Any]
    measuring: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A study while it runs: its folder, configuration and prompts, where its model is, and progress."""

    folder: RunFolder
    config: StudyConfig
    prompts: ContrastSet
    executor: Executor
    ready: Prepared
    stage: Stage


def prepare(model: Any, config: StudyConfig, prompts: ContrastSet, run: Path) -> Prepared:
    """Check that a configuration fits the model and the prompts; raises an `OtLensError` if it does not."""
    settings = sweep_settings(
        model,
        config.measures,
        layers=config.layers,
        position=config.position,
        tokens=config.tokens,
        hook=config.hook,
        engine=config.engine,
        phrases=config.phrases,
        refusal_tokens=config.refusal_tokens,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
        judge=None if config.judge is None else LazyJudge(config.judge),
        swap=config.judge_memory == "swap",
        text=None if config.perplexity_text is None else Path(config.perplexity_text),
        completions=run / "completions" if config.keep_completions else None,
    )
    check_study(config, model, prompts, settings.layers)
    panel = settings.panel
    if panel.judge is not None:
        with panel.judge.in_place_of(backend(model).model, swap=panel.swap):
            pass  # errors of loading it surface before anything is measured
    return Prepared(settings, model_record(model), _measured_by(model, panel))


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
