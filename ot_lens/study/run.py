"""A complete study: capture, fit, sweep, diagnose, draw, report. A stopped run continues where it was."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from ot_lens.errors import RunFolderError
from ot_lens.execution import Runner, open_executor
from ot_lens.geometry.quantities import registered
from ot_lens.io.files import locked, release
from ot_lens.localization import MethodSpec, as_methods
from ot_lens.localization.controls import with_references
from ot_lens.progress import Stage, silent
from ot_lens.study import sweeping
from ot_lens.study.config import StudyConfig
from ot_lens.study.diagnostics import CLAIMS, PAPER, geometry_tables
from ot_lens.study.drawing import drawing_options, write_page
from ot_lens.study.findings import findings
from ot_lens.study.folder import RunFolder
from ot_lens.study.manifest import file_hashes
from ot_lens.study.measuring import sweep_into
from ot_lens.study.preparation import Work, check_choices, import_extensions, prepare
from ot_lens.study.subject import Study
from ot_lens.study.weights import parameter_bytes
from ot_lens.transport import as_record, method_named


@dataclass(frozen=True, eq=False)
class StudyResult:
    """A finished run: its folder, its tables by name, the findings in sentences, and the HTML report."""

    path: Path
    tables: Mapping[str, pd.DataFrame]
    summary: Sequence[str]
    report: Path


def run_study(
    config: StudyConfig,
    out: str | Path,
    *,
    resume: bool = False,
    stage: Stage = silent,
    executor: str = "local",
    processes: int = 1,
    address: str | None = None,
    allow_code: bool = False,
) -> StudyResult:
    """Run a study into a folder.

    Args:
        config: The configuration.
        out: The run folder: new, empty, or with `resume` one that contains this same study.
        resume: Continue a stopped run, or return a finished one.
        stage: Shows progress: called with a name and the number of steps (None if they cannot be counted), it
            yields a function that takes steps done; see `ot_lens.progress.shown`.
        executor: Where the work is done, "local" or "ray"; the tables do not depend on it, and a run stopped
            with one can continue with the other.
        processes: How many processes on this machine share the work of the executor "local". Each loads the
            model and has as many threads as torch has here.
        address: Address of a Ray cluster; see `ot_lens.execution.open_executor`.
        allow_code: Import the modules with your own code that the configuration names.

    Raises:
        OtLensError: If the configuration cannot be carried out; nothing that was there is overwritten.
    """
    import_extensions(config, allow_code=allow_code)
    methods = as_methods(config.method_entries)
    check_choices(config)
    prompts, languages, path = sweeping.read_prompts(config), sweeping.read_languages(config), Path(out)
    existing = RunFolder.existing(path, config, resume=resume)  # before the model is loaded
    if existing is not None and existing.finished:
        release(path)
        return _result(existing)
    with ExitStack() as lock:

        def start() -> RunFolder:
            """Start or continue the run, with the folder locked against other processes."""
            lock.enter_context(locked(path))
            return RunFolder.start(path, config, resume=resume)

        if existing is not None and existing.measured:
            folder = start()
        else:
            size = parameter_bytes(config) if executor == "ray" else 0
            options: dict[str, Any] = {"parameter_bytes": size, "modules": config.modules}
            options["processes"] = processes
            with ExitStack() as opened:
                with stage("loading the model", None):
                    workers = opened.enter_context(
                        open_executor(executor, config.loading(), address=address, **options)
                    )
                    ready = workers.call(prepare, config, prompts, path)
                folder = start()
                prompts = sweeping.filter_prompts(
                    Runner(workers, sweeping.FolderCache(folder, sweeping.FILTERED)), prompts, config, stage
                )
                _measure(Work(folder, config, prompts, languages, workers, ready, stage), methods)
        for cached in (sweeping.FILTERED, sweeping.LEARNED):
            folder.drop(cached)
        _draw(folder, config, stage, processes)
        folder.save_manifest(finished=True, files=file_hashes(folder.path))
    return _result(folder)


def _measure(work: Work, methods: Sequence[MethodSpec]) -> None:
    """Do everything that needs the model."""
    folder, config, prompts, workers = work.folder, work.config, work.prompts, work.executor
    measured = with_references(methods, config.controls)
    folder.save_manifest(
        model=work.ready.record,
        measuring=work.ready.measuring,
        prompts=prompts.manifest(),
        languages={name: own.manifest() for name, own in work.languages.items()},
        executors=sorted({workers.name, *folder.manifest.get("executors", [])}),
        methods=[as_record(method_named(name)) for name in dict.fromkeys(m.name for m in measured)],
        diagnostics=[quantity.name for quantity in registered()],
    )
    acts = {split: sweeping.capture_split(work, split) for split in ("train", "test")}
    candidates, maps = sweeping.plan_into(work, acts["train"], methods)
    sweep_into(work, candidates, acts["train"])
    sweep = folder.read_table("localization")
    study = Study(folder, acts, maps, config, sweep, prompts=prompts, languages=work.languages)
    geometry_tables(study, workers, work.stage)
    folder.save_manifest(measured=True)


def _result(folder: RunFolder) -> StudyResult:
    tables = folder.tables()
    if "localization" not in tables:
        raise RunFolderError(f"{folder.path} has no localization table any more: start in a new folder.")
    sentences = findings(tables, folder.path)
    return StudyResult(folder.path, tables, sentences, folder.path / "report.html")


def _draw(folder: RunFolder, config: StudyConfig, stage: Stage, processes: int) -> None:
    from ot_lens.plots import draw_all

    tables, options = folder.tables(), drawing_options(folder, config.figure_style, stage, processes)
    draw_all(tables, folder.path / "figures", **options)
    for name, module in (("paper", PAPER), ("claims", CLAIMS)):
        if name in tables:
            import_module(module).export(tables[name], folder.path / "tables")
    with stage("report", None):
        write_page(folder, tables, folder.path / "report.html")
