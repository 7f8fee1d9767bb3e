"""`ot-lens study`: studies that are known by name; before one starts, what it will need."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ot_lens.cli.configuration import write_configuration
from ot_lens.cli.console import out
from ot_lens.cli.study import Address, Executor, Resume, study_into
from ot_lens.errors import ConfigError
from ot_lens.io.untrusted import parse_yaml

if TYPE_CHECKING:
    from ot_lens.paper_study.estimate import Estimate, Hardware
    from ot_lens.study import StudyConfig

app = typer.Typer(no_args_is_help=True, help="Studies known by name: the paper's.")


@app.callback()
def _named() -> None:
    """Keep `paper` a command of its own while it is the only one."""


@app.command()
def paper(
    *,
    model: Annotated[
        str | None, typer.Option(help="One of the paper's six by hub name, any other, a folder, or organism.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The run folder; default runs/paper-MODEL.")
    ] = None,
    estimate_only: Annotated[
        bool, typer.Option("--estimate", help="Print what it needs of memory and time, and stop.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write the configuration to this file, and stop.")
    ] = None,
    layer_rule: Annotated[
        str, typer.Option(help="validation: best layer and pair there; every: each of the band; fixed.")
    ] = "validation",
    mean_shift: Annotated[str, typer.Option(help="Lift of PCA-OT: full or subspace.")] = "full",
    tokens: Annotated[str, typer.Option(help="Token scope: all, prompt, last or generated.")] = "all",
    judge: Annotated[
        str,
        typer.Option(help="A preset, none, or a mapping as in the configuration; default: HarmBench's."),
    ] = "default",
    judge_memory: Annotated[
        str, typer.Option(help="together, or swap: by turns on the device.")
    ] = "together",
    perplexity_text: Annotated[
        Path | None, typer.Option(help="A text file whose perplexity is measured.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Another prompt set than the paper's.")] = None,
    prompts_root: Annotated[
        Path | None, typer.Option(help="Folder with the public prompt sets, instead of the network.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto: over all devices.")] = None,
    quantization: Annotated[str | None, typer.Option(help="int8 or nf4.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Token budget of an answer.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts a batch.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Peak of your device, for the estimate.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Its memory bandwidth, TB/s.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start although memory is short or weights must be downloaded.")
    ] = False,
    executor: Executor = "local",
    address: Address = None,
    resume: Resume = False,
) -> None:
    """The study of arXiv 2603.04355: PCA-OT at one and two layers beside RFA and AcT, judged by HarmBench's.

    It says first what it needs. Where memory is short, or weights would have to be downloaded, it stops with
    exit code 2 unless --yes is given.
    """
    from ot_lens.paper_study.preset import paper_study

    options = {
        "judge_memory": judge_memory,
        "perplexity_text": perplexity_text and str(perplexity_text),
        "prompts": prompts,
        "prompts_root": prompts_root and str(prompts_root),
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "quantization": quantization,
        "revision": revision,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    rules: dict[str, Any] = {
        "layer_rule": layer_rule,
        "mean_shift": mean_shift,
        "tokens": tokens,
        "judge": _judge(judge),
    }
    device_of = _hardware(tflops, bandwidth)
    if model is None:
        if not estimate_only:
            raise ConfigError("--model is missing: name one, or ask for --estimate of all six.")
        from ot_lens.paper_study.architecture import paper_models

        _print_estimates([paper_study(name, **rules, **given) for name in paper_models()], device_of)
        return
    config = paper_study(model, **rules, **given)
    folder = folder or Path("runs") / f"paper-{Path(model).name.replace(':', '-')}"
    if write is not None:
        write_configuration(write, config)
        return
    [found] = _print_estimates([config], device_of)
    if estimate_only:
        return
    if not yes:
        _refuse_what_does_not_fit(config, found, folder)
    study_into(lambda: config, folder, resume=resume, executor=executor, address=address)


def _judge(given: str) -> Any:
    """None, a name, or what a mapping in YAML says."""
    if given == "none":
        return None
    found = parse_yaml(given, "--judge", ConfigError)
    if not isinstance(found, str | dict):
        raise ConfigError(
            f"--judge {given!r}: give a preset, none, or a mapping such as '{{preset: harmbench}}'."
        )
    return found


def _hardware(tflops: float | None, bandwidth: float | None) -> "Hardware":
    from ot_lens.paper_study.estimate import Hardware

    if tflops is None and bandwidth is None:
        return Hardware()
    usual = Hardware()
    return Hardware("this device", tflops or usual.tflops, bandwidth or usual.bandwidth)


def _print_estimates(configs: "list[StudyConfig]", hardware: "Hardware") -> "list[Estimate]":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ot_lens.paper_study.estimate import GB, assumptions, estimate

    found = [estimate(config, hardware) for config in configs]
    # Narrow enough for a terminal of 80 columns, where rich would cut numbers short.
    table = Table(title="What the paper's study needs: GB (10^9 bytes), hours", box=SIMPLE_HEAD, padding=0)
    for name in ("model", "param. 10^9", "weights", "working", "judge", "memory", "disk", "hours"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    table.caption = "working: KV cache of a batch of answers and next-token distributions; disk: activations"
    for one in found:
        sizes = (one.weights, one.cache + one.logits, one.judge, one.memory, one.disk)
        table.add_row(
            one.model.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-hf"),
            f"{one.parameters / 1e9:.3f}",
            *(f"{size / GB:.1f}" for size in sizes[:-1]),
            f"{sizes[-1] / GB:.3f}",
            "{:.1f}-{:.1f}".format(*one.hours),
        )
    out.print(table)
    out.print(assumptions(configs[0], hardware), markup=False, highlight=False)
    return found


def _refuse_what_does_not_fit(config: "StudyConfig", found: "Estimate", folder: Path) -> None:
    from ot_lens.paper_study.resources import at_hand, obstacles

    reasons = obstacles(found, at_hand(config, folder), config)
    if reasons:
        raise ConfigError(f"not started: {'; '.join(reasons)}. Add --yes to start all the same.")
