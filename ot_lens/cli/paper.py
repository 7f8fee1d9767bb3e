"""`ot-lens study`: named studies, and what one needs before it starts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ot_lens.cli import study
from ot_lens.cli.console import out, print_table
from ot_lens.errors import ConfigError

if TYPE_CHECKING:
    from ot_lens.paper_study.estimate import Estimate, Hardware
    from ot_lens.study import StudyConfig

app = typer.Typer(no_args_is_help=True, help="Named studies: the paper's, and one of SmolLM2.")


@app.command()
def paper(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="One of the paper's six by hub name, any other, a folder, or organism; repeatable: several "
            "models are one queue."
        ),
    ] = None,
    settings: study.Settings = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The run folder, of several models their parent; default runs/paper-MODEL."
        ),
    ] = None,
    estimate_only: Annotated[
        bool, typer.Option("--estimate", help="Print the memory and time needed, and stop.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write the configuration to this file, and stop.")
    ] = None,
    tflops: Annotated[float | None, typer.Option(help="Peak of your device, for the estimate.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Its memory bandwidth, TB/s.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start even if memory is short or weights must be downloaded.")
    ] = False,
    executor: study.Executor = "local",
    processes: study.Processes = 1,
    address: study.Address = None,
    resume: study.Resume = False,
    allow_code: study.AllowCode = False,
) -> None:
    """The study of arXiv 2603.04355: PCA-OT at one and two layers next to RFA and AcT, judged by HarmBench's.

    --set takes any field of the configuration, layer_rule (grid, validation, every or fixed) and mean_shift
    (full or subspace). The study first prints what it needs. If memory is short, or weights would have to be
    downloaded, it stops with exit code 2 unless --yes is given. Several models are studied one after the
    other, with --executor ray on one cluster; --resume leaves the finished ones as they are.
    """
    from ot_lens.execution import shared_cluster
    from ot_lens.models.sizes import published_models
    from ot_lens.paper_study.estimate import Hardware
    from ot_lens.paper_study.preset import paper_study

    overrides, hardware = study.parse_settings(settings), Hardware()
    names = [str(overrides.pop("model"))] if "model" in overrides else list(model or ())
    if tflops or bandwidth:
        hardware = Hardware("this device", tflops or hardware.tflops, bandwidth or hardware.bandwidth)
    if not names and not estimate_only:
        raise ConfigError("--model is missing: name one, or ask for --estimate of all six.")
    configs = [paper_study(name, **overrides) for name in names or published_models()]
    if write is not None:
        if len(configs) > 1:
            raise ConfigError(f"--write takes one model, got {', '.join(names)}: write one file each.")
        study.write_configuration(write, configs[0])
        return
    estimates = _print_estimates(configs, hardware)
    if estimate_only:
        return
    folders = _folders(names, folder)
    if not yes:
        _check_obstacles(configs, estimates, folders)
    options: dict[str, Any] = {"executor": executor, "processes": processes}
    options |= {"resume": resume, "allow_code": allow_code}
    with shared_cluster(executor, address, count=len(configs)) as place:
        for config, own in zip(configs, folders, strict=True):
            study.study_into(partial(_configured, config), own, address=place, **options)


def _configured(config: "StudyConfig", _package: Any) -> "StudyConfig":
    return config


def _folders(names: Sequence[str], out: Path | None) -> list[Path]:
    """The run folder of each model; one model's may have any name."""
    if out is not None and len(names) == 1:
        return [out]
    folders = [(out or Path("runs")) / f"paper-{Path(name).name.replace(':', '-')}" for name in names]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"--model names two models of one name, got {', '.join(names)}: study them apart.")
    return folders


def _check_obstacles(
    configs: "Sequence[StudyConfig]", estimates: "Sequence[Estimate]", folders: Sequence[Path]
) -> None:
    """Raise a ConfigError if a study should not start without asking."""
    from ot_lens.paper_study.estimate import available, obstacles

    reasons = [
        reason
        for config, needed, folder in zip(configs, estimates, folders, strict=True)
        for reason in obstacles(needed, available(config, folder), config)
    ]
    if reasons:
        raise ConfigError(f"not started: {'; '.join(dict.fromkeys(reasons))}. Add --yes to start anyway.")


@app.command()
def smollm2(
    *,
    adapter: Annotated[
        str, typer.Option(help="An adapter of the package: early, middle, late, spread and others.")
    ] = "early",
    settings: study.Settings = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The run folder; default runs/smollm2-ADAPTER.")
    ] = None,
    processes: study.Processes = 0,
    estimate: study.Estimate = False,
    resume: study.Resume = False,
) -> None:
    """A real language model that learnt in known layers to decline everyday requests (15 minutes)."""
    overrides = study.parse_settings(settings)
    study.study_into(
        lambda package: package.smollm2_study(adapter, **overrides),
        folder or Path("runs") / f"smollm2-{adapter}",
        processes=processes,
        estimate=estimate,
        resume=resume,
    )


def _print_estimates(configs: "list[StudyConfig]", hardware: "Hardware") -> "list[Estimate]":
    from ot_lens.paper_study.estimate import GB, assumptions, estimate

    estimates = [estimate(config, hardware) for config in configs]
    print_table(
        ("model", "param. 10^9", "weights", "working", "judge", "memory", "disk", "hours"),
        [
            (
                one.model.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-hf"),
                f"{one.parameters / 1e9:.3f}",
                *(f"{n / GB:.1f}" for n in (one.weights, one.cache + one.logits, one.judge, one.memory)),
                f"{one.disk / GB:.3f}",
                "{:.1f}-{:.1f}".format(*one.hours),
            )
            for one in estimates
        ],
        title="Needs of the paper's study: GB (10^9 bytes), hours",
        caption="working: KV cache of a batch of answers and next-token distributions; disk: activations",
    )
    out.print(assumptions(configs[0], hardware), markup=False, highlight=False)
    return estimates
