"""Running a study from the command line: progress, interruptions, and the results that are printed."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ot_lens.cli.console import err, progress, quiet_libraries, say
from ot_lens.cli.interruption import interruptible, same_command
from ot_lens.cli.results import print_estimate, print_result
from ot_lens.errors import CannotWriteError, ConfigError, RunFolderError
from ot_lens.io.untrusted import parse_yaml

if TYPE_CHECKING:
    from ot_lens.study import StudyConfig

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue a stopped run, or show a finished one again.")
]
Executor = Annotated[str, typer.Option(help="Where the work is done: local or ray.")]
Processes = Annotated[
    int,
    typer.Option(
        min=0,
        help="Processes on this machine that share the work, each with a copy of the model; 0: one a core on "
        "a CPU, as far as memory allows.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster: ray://HOST:10001 or auto; default: a cluster on this machine."),
]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="Measure for some seconds what each stage will take, and stop.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Import the modules that the configuration names.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a field of the configuration to a YAML value; repeatable."
    ),
]


def study_into(
    configure: "Callable[[Any], StudyConfig]",
    folder: Path,
    *,
    estimate: bool = False,
    processes: int = 1,
    **options: Any,
) -> None:
    """Run a study and print its findings; on interruption or a full disk, one line says how to continue.

    `configure(ot_lens.study)` is called inside, so that an interruption of it is handled too; `options` are
    those of `run_study`. With `estimate`, print what it will take instead.
    """
    with interruptible(lambda: _interrupted(folder)):
        with err.status("loading"):
            prepare_process(allow_code=options.get("allow_code", False))
            from ot_lens import study

            config = configure(study)
            quiet_libraries()
        count = processes or _one_a_core(config)
        if estimate:
            with progress() as stage, stage("estimating", None):
                costs = study.estimate_run(config, allow_code=options.get("allow_code", False))
            print_estimate(costs, count)
            return
        try:
            with progress() as stage:
                result = study.run_study(config, folder, stage=stage, processes=count, **options)
        except CannotWriteError as error:
            raise CannotWriteError(f"{error} {_stored(folder)}") from error
        print_result(result)


def _one_a_core(config: "StudyConfig") -> int:
    """How many processes have room, each with one thread unless the environment says how many."""
    import torch

    from ot_lens.execution import processes_that_fit
    from ot_lens.study.weights import parameter_bytes

    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    count = processes_that_fit(parameter_bytes(config), config.device)
    if count == 1:
        torch.set_num_threads(threads)
    return count


def prepare_process(*, allow_code: bool = False) -> None:
    """Silence the tokenizers; with `allow_code`, modules in the current folder can be imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if allow_code:
        sys.path.append(str(Path.cwd()))


def import_code_of(folder: Path) -> None:
    """Import the modules that the configuration of a run names."""
    from ot_lens.study import RunFolder
    from ot_lens.study.preparation import import_extensions

    prepare_process(allow_code=True)
    import_extensions(RunFolder.open(folder).config, allow_code=True)


def _interrupted(folder: Path) -> str:
    if not (folder / "manifest.json").is_file():
        return "interrupted before anything was measured: nothing was written."
    return f"interrupted: {_stored(folder)}"


def _stored(folder: Path) -> str:
    return f"all measurements so far are in {folder}; continue with: {same_command()}"


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """The value of each field; if one is given several times, the last counts."""
    overrides = {}
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not (separator and key.strip()):
            raise ConfigError(f"--set {setting!r}: give a field and its value, as in --set seed=3.")
        overrides[key.strip()] = parse_yaml(value, f"--set {key.strip()}", ConfigError)
    return overrides


def write_configuration(path: Path, config: "StudyConfig | None" = None) -> None:
    """Write a configuration, by default the default one, each field under its description."""
    from ot_lens.io.files import write_text
    from ot_lens.study import commented_yaml

    if path.exists():
        raise RunFolderError(f"{path} exists already and is not overwritten: choose another name.")
    write_text(path, commented_yaml(config))
    say(f"wrote {path}; run it with: ot-lens run {path}")
