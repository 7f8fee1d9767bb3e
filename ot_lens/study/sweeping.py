"""The stages of a study that run the model: filter, capture, fit, sweep; a stopped one continues."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ot_lens.activations import Activations, capture
from ot_lens.behaviour import filter_by_behaviour
from ot_lens.execution import Runner
from ot_lens.localization import Candidate, MethodSpec, fit_sweep, plan_sweep
from ot_lens.progress import Stage, silent
from ot_lens.prompts import ContrastSet, load_prompts
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder
from ot_lens.study.preparation import Work, sweep_plan
from ot_lens.transport import ActivationMap, load_map

# Folders of cached results below tables/: what the filter keeps and the trained maps, needed as long as the
# model is; the measured candidates until all tables of them are written, and what planning them needed.
FILTERED = "filtered"
LEARNED = "learned"
PARTS = "parts"
PLANNED, VALIDATED, VARIED = (f"{PARTS}/{name}" for name in ("planned", "validation", "variants"))
Maps = Mapping[MethodSpec, Mapping[int, ActivationMap]]


class FolderCache:
    """A `RunCache` of tables, maps and lists of numbers, in a folder below tables/."""

    def __init__(self, folder: RunFolder, subfolder: str) -> None:
        self._folder, self._subfolder = folder, subfolder

    def __contains__(self, name: str) -> bool:
        return self._map(name).is_file() or self._folder.has_table(self._table(name))

    def __getitem__(self, name: str) -> Any:
        if self._map(name).is_file():
            return load_map(self._map(name))
        table = self._folder.read_table(self._table(name))
        return table["result"].tolist() if list(table.columns) == ["result"] else table

    def __setitem__(self, name: str, result: Any) -> None:
        if isinstance(result, ActivationMap):
            result.save(self._map(name))
            return
        table = result if isinstance(result, pd.DataFrame) else pd.DataFrame({"result": result})
        self._folder.write_table(self._table(name), table)

    def _table(self, name: str) -> str:
        """The table of a result, whose name may not be a file name."""
        return f"{self._subfolder}/{hashlib.sha256(name.encode()).hexdigest()[:20]}"

    def _map(self, name: str) -> Path:
        return self._folder.path / "tables" / f"{self._table(name)}.safetensors"


def read_prompts(config: StudyConfig) -> ContrastSet:
    """The prompts that a configuration names."""
    return _read(config.prompts, config)


def read_languages(config: StudyConfig) -> dict[str, ContrastSet]:
    """The prompts of every language that a configuration compares."""
    return {name: _read(source, config) for name, source in config.languages.items()}


def _read(source: str | Mapping[str, Any], config: StudyConfig) -> ContrastSet:
    return load_prompts(source, seed=config.seed, sample=config.sample, root=config.prompts_root)


def filter_prompts(
    runner: Runner, prompts: ContrastSet, config: StudyConfig, stage: Stage = silent
) -> ContrastSet:
    """Keep the training and validation prompts that the unedited model treats as their class says."""
    if config.filter == "off":
        return prompts
    count = sum(len(group) for split in (prompts.train, prompts.val) for _, group in split)
    with stage("filter by behaviour", count) as step:
        return filter_by_behaviour(
            runner,
            prompts,
            by=config.filter,
            tokens=config.refusal_tokens,
            phrases=config.phrases,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            progress=step,
        )


def capture_options(config: StudyConfig, layers: Sequence[int]) -> dict[str, Any]:
    """What a study captures of each split, as `capture` and `CaptureSettings` take it."""
    return {
        "layers": layers,
        "hook": config.hook,
        "positions": [config.position],
        "batch_size": config.batch_size,
        "dtype": config.activation_dtype,
    }


def capture_split(work: Work, split: str) -> Activations:
    """Activations of one split, stored in the run folder; this process alone writes there."""
    contrast = getattr(work.prompts, split)
    options = capture_options(work.config, work.ready.settings.layers)
    count = len(contrast.harmful) + len(contrast.harmless)
    with work.stage(f"activations, {split} prompts", count) as step:
        store = work.folder.path / "activations" / split
        return capture(Runner(work.executor), contrast, **options, store=store, progress=step)


def plan_into(work: Work, acts: Activations, methods: Sequence[MethodSpec]) -> tuple[list[Candidate], Maps]:
    """Fit the maps and write them; returns the candidates, none if all were measured, and the maps."""
    plan, settings, folder = sweep_plan(work.config), work.ready.settings, work.folder
    learning = Runner(work.executor, FolderCache(folder, LEARNED))
    maps = fit_sweep(acts, methods, settings, plan, work.stage, model=learning, prompts=work.prompts.train)
    for method, by_layer in maps.items():
        for layer, edit in by_layer.items():
            edit.save(map_path(folder.path, method, layer))
    candidates = []
    if any(not folder.has_table(name) for name in measured_tables(work.config)):
        runner = Runner(work.executor, FolderCache(folder, PLANNED))
        candidates = plan_sweep(runner, work.prompts, acts, methods, maps, settings, plan, work.stage)
    return candidates, maps


def measured_tables(config: StudyConfig) -> tuple[str, ...]:
    """Tables of what edits do, made from the same candidates."""
    tested = ("validation", "variants") if config.claims else ()
    return ("localization", *tested, *(("outcomes",) if config.outcomes else ()))


def map_folder(method: MethodSpec) -> str:
    """The folder of a method's maps, below maps/."""
    return "-".join(
        [method.name, *(f"{key}{_written(value)}" for key, value in sorted(method.params.items()))]
    )


def _written(value: Any) -> str:
    return "_".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def map_path(run: Path, method: MethodSpec, layer: int) -> Path:
    """The file of a map."""
    return run / "maps" / map_folder(method) / f"layer-{layer:03d}.safetensors"
