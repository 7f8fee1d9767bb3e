"""Running a study from the command line: progress, what an interruption leaves, what is printed then."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ot_lens.cli.console import err, progress, quiet_libraries
from ot_lens.cli.interruption import interruptible, same_command
from ot_lens.cli.results import print_result
from ot_lens.errors import CannotWriteError

if TYPE_CHECKING:
    from ot_lens.study import StudyConfig

Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with a stopped run; a finished one is shown again.")
]
Executor = Annotated[str, typer.Option(help="Where the work is done: local or ray.")]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, ray://HOST:10001 or auto; default: one of this machine.")
]


def study_into(
    configure: "Callable[[], StudyConfig]",
    folder: Path,
    *,
    resume: bool,
    executor: str = "local",
    address: str | None = None,
) -> None:
    """Run a study and print what it found; an interruption ends in one line and exit code 130 or 143.

    Args:
        configure: Reads the study, once an interruption is provided for.
        folder: Its run folder.
        resume: Go on with a stopped run.
        executor: Where the model is run.
        address: Of a Ray cluster.

    Raises:
        OtLensError: If the study cannot be carried out; of a full disk it says how to go on.
    """
    with interruptible(lambda: _interrupted(folder)):
        with err.status("loading"):
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            config = configure()
            from ot_lens.study import run_study

            quiet_libraries()
        try:
            with progress() as stage:
                result = run_study(
                    config, folder, resume=resume, stage=stage, executor=executor, address=address
                )
        except CannotWriteError as error:
            raise CannotWriteError(f"{error} {_kept(folder)}") from error
        print_result(result)


def _interrupted(folder: Path) -> str:
    if not (folder / "manifest.json").is_file():
        return "interrupted before anything was measured: nothing was written."
    return f"interrupted: {_kept(folder)}"


def _kept(folder: Path) -> str:
    return f"all that was measured is kept in {folder}; go on with: {same_command()}"
