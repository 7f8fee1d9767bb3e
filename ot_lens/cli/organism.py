"""`ot-lens organism`: the embedded models."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ot_lens.cli.console import progress, quiet_libraries, say

app = typer.Typer(no_args_is_help=True, help="Train or evaluate an embedded model.")


@app.command()
def train(
    folder: Annotated[Path, typer.Option("--out", help="A new folder for the model.")],
    variant: Annotated[str, typer.Option(help="single, multi or shared.")] = "multi",
    seed: Annotated[int, typer.Option(help="The same seed gives the same evaluation.")] = 0,
) -> None:
    """Train an embedded model from scratch."""
    from ot_lens import organism

    quiet_libraries()
    written = organism.train(variant, folder, seed=seed)
    say(f"wrote {written}; load it with: ot_lens.load_model({str(written)!r})")


@app.command()
def evaluate(
    variant: Annotated[str, typer.Option(help="single, multi, shared, or a folder.")] = "multi",
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
