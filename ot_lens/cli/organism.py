"""`ot-lens organism`: the embedded models."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ot_lens.cli.console import progress, quiet_libraries, say
from ot_lens.errors import ConfigError

if TYPE_CHECKING:
    from ot_lens.prompts import ContrastSet

app = typer.Typer(no_args_is_help=True, help="Train or evaluate models that refuse by rule.")


@app.command()
def train(
    folder: Annotated[Path, typer.Option("--out", help="A new folder for the model or adapter.")],
    *,
    variant: Annotated[
        str | None,
        typer.Option(help="single, multi (the default), shared, knows-refuses, knows-answers or bilingual."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Train an adapter of this model: smollm2, a folder, a hub name.")
    ] = None,
    band: Annotated[
        str | None, typer.Option(help="Layers of --base that learn, such as 5-7; default: all.")
    ] = None,
    harmful: Annotated[
        Path | None, typer.Option(help="Prompts that the adapter declines; default: everyday requests.")
    ] = None,
    harmless: Annotated[Path | None, typer.Option(help="Prompts that it answers as the base does.")] = None,
    sentences: Annotated[int, typer.Option(help="1, or 4 refusal sentences with four first words.")] = 1,
    shuffled: Annotated[bool, typer.Option(help="Permute the labels: a control.")] = False,
    steps: Annotated[int, typer.Option(help="Training steps of the adapter.")] = 140,
    seed: Annotated[int, typer.Option(help="The same seed gives the same evaluation.")] = 0,
) -> None:
    """Train an embedded model from scratch, or an adapter that plants refusal in a band of layers."""
    from ot_lens import organism

    quiet_libraries()
    if base is None:
        _unused(band=band, harmful=harmful, harmless=harmless)
        written = organism.train(variant or organism.DEFAULT_VARIANT, folder, seed=seed)
        say(f"wrote {written}; load it with: ot_lens.load_model({str(written)!r})")
        return
    if variant is not None:
        raise ConfigError(f"--variant {variant} is of models trained from scratch: leave it out with --base.")
    written = organism.train_adapter(
        base,
        folder,
        band=_band(band),
        prompts=_prompts(harmful, harmless),
        sentences=sentences,
        shuffled=shuffled,
        seed=seed,
        steps=steps,
    )
    say(f"wrote {written}; load it with: ot_lens.load_model({base!r}, adapter={str(written)!r})")


def _unused(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"--{name} {value} is an option of adapters: give --base as well.")


def _band(text: str | None) -> tuple[int, int] | None:
    match = None if text is None else re.fullmatch(r"(\d{1,4})-(\d{1,4})", text)
    if text is not None and match is None:
        raise ConfigError(f"--band {text}: give the first and last layer, such as 5-7.")
    return match and (int(match[1]), int(match[2]))


def _prompts(harmful: Path | None, harmless: Path | None) -> "ContrastSet | None":
    if harmful is None and harmless is None:
        return None
    if harmful is None or harmless is None:
        raise ConfigError("Give both --harmful and --harmless, or neither.")
    from ot_lens.prompts import load_prompts

    return load_prompts({"harmful": str(harmful), "harmless": str(harmless)})


@app.command()
def evaluate(
    variant: Annotated[str, typer.Option(help="A variant, or a folder.")] = "multi",
    n: Annotated[int, typer.Option(help="Held-out prompts per class.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure an embedded model on held-out prompts."""
    from ot_lens import organism

    quiet_libraries()
    with progress() as stage:
        result = organism.evaluate(variant, n=n, seed=seed, stage=stage)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for key, value in result.items():
        say(f"{key}: {value}")
