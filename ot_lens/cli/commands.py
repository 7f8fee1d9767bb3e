"""The commands; every mistake of the user ends in one line and exit code 2."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ot_lens.cli import benchmark, organism, paper, study
from ot_lens.cli.console import complain, err, progress, quiet_libraries, say
from ot_lens.cli.doctor import doctor
from ot_lens.cli.verify import verify
from ot_lens.errors import OtLensError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Where does refusal live in a chat model, and what does optimal transport reveal about it?",
)
app.add_typer(organism.app, name="organism")
app.add_typer(paper.app, name="study")
app.add_typer(benchmark.app, name="benchmark")
app.command()(verify)
app.command()(doctor)


def main() -> None:
    """Run the command line; an error of ours or of the file system ends in one line and exit code 2."""
    try:
        app()
    except OtLensError as error:
        complain(" ".join(str(error).split()))
        sys.exit(2)
    except OSError as error:
        # A full disk or a missing permission, seen by a library.
        path = error.filename or "the file system"
        complain(f"{path}: {error.strerror or error}: check the disk and the folder.")
        sys.exit(2)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("runs/demo"),
    variant: Annotated[
        str, typer.Option(help="Embedded model: single, multi, shared or bilingual.")
    ] = "multi",
    processes: study.Processes = 0,
    resume: study.Resume = False,
    estimate: study.Estimate = False,
) -> None:
    """Run the complete study on the embedded model: sweep, geometry, figures, report."""
    # The longest answer of the embedded language has 13 tokens; four draws keep the demo within minutes.
    fields = {"model": f"organism:{variant}", "max_new_tokens": 16, "control_draws": 4}
    study.study_into(
        lambda package: package.StudyConfig(**fields),
        folder,
        processes=processes,
        resume=resume,
        estimate=estimate,
    )


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration; write one with 'ot-lens init'.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="The run folder; default runs/CONFIG_NAME.")
    ] = None,
    *,
    settings: study.Settings = None,
    executor: study.Executor = "local",
    processes: study.Processes = 1,
    address: study.Address = None,
    resume: study.Resume = False,
    estimate: study.Estimate = False,
    trust_remote_code: study.TrustRemoteCode = False,
    allow_code: study.AllowCode = False,
) -> None:
    """Run a study from its configuration into a run folder."""
    overrides = study.parse_settings(settings)
    study.study_into(
        lambda package: package.read_config(config, overrides=overrides, trust_remote_code=trust_remote_code),
        folder or Path("runs") / config.stem,
        estimate=estimate,
        resume=resume,
        executor=executor,
        processes=processes,
        address=address,
        allow_code=allow_code,
    )


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the configuration.")] = Path("study.yaml"),
) -> None:
    """Write a commented configuration."""
    study.write_configuration(path)


@app.command()
def figures(
    folder: study.RunArgument,
    destination: Annotated[Path | None, typer.Option("--out", help="Folder; default RUN/figures.")] = None,
    formats: Annotated[str, typer.Option("--format", help="Comma-separated: png, pdf, svg.")] = "png,pdf",
    style: Annotated[str, typer.Option(help="Column widths: icml, neurips or wide.")] = "icml",
    against: Annotated[
        Path | None, typer.Option(help="Another run; its refusal directions are compared first.")
    ] = None,
    allow_code: study.AllowCode = False,
) -> None:
    """Draw a run's figures again from its tables."""
    from ot_lens.study import compare_runs, draw_figures

    if allow_code:
        study.import_code_of(folder)
    if against is not None:
        compare_runs(folder, against)
    target = destination or folder / "figures"
    names = [name.strip() for name in formats.split(",")]
    with progress() as stage:
        drawn = draw_figures(folder, target, formats=names, style=style, stage=stage)
    say(f"{len(drawn)} files in {target}")
    for name, reason in drawn.skipped.items():
        say(f"not drawn: {name}: {reason}")


@app.command()
def explore(
    folder: study.RunArgument,
    compare: Annotated[Path | None, typer.Option(help="A second run, shown side by side.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own exposes the page to others.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any free one.")] = 8050,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    model: Annotated[
        str | None, typer.Option(help="Model of the live panel; the embedded one is found without.")
    ] = None,
    allow_code: study.AllowCode = False,
) -> None:
    """Explore a run in the browser: layers, edits, the principal plane, a live model."""
    with err.status("loading"):
        study.prepare_process()
        from ot_lens.explorer import explore as serve

        quiet_libraries()
        if allow_code:
            study.import_code_of(folder)
    serve(folder, compare, host=host, port=port, browser=browser, model=model, say=say)
