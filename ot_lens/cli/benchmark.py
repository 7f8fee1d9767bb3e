"""`ot-lens benchmark`: methods against models on which the truth is known."""

from pathlib import Path
from typing import Annotated

import typer

from ot_lens.cli.console import print_table, progress, quiet_libraries, say

app = typer.Typer(no_args_is_help=True, help="Measure methods against a known truth.")


@app.callback()
def _group() -> None:
    """Measure methods against a known truth."""


@app.command()
def localizers(
    names: Annotated[
        list[str] | None, typer.Argument(help="Adapters of SmolLM2, such as early; default: all.")
    ] = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Write every row to this Parquet file.")] = None,
    n: Annotated[int, typer.Option(help="Held-out prompts per class.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of prompts, resamples and permutations.")] = 0,
) -> None:
    """Which localizer finds the layers in which refusal was planted: minutes for each model."""
    from ot_lens.localizers import benchmark_localizers, summary

    quiet_libraries()
    with progress() as stage:
        table = benchmark_localizers(names or None, n=n, seed=seed, stage=stage)
    if out is not None:
        table.to_parquet(out)
        say(f"wrote {out}")
    rows = [
        (
            row["localizer"],
            row["planted"],
            f"{row['value']:.0%}",
            f"{row['low']:.0%}-{row['high']:.0%}",
            str(row["n"]),
        )
        for row in summary(table).to_dict("records")
    ]
    print_table(("localizer", "planted", "right", "95 %", "n"), rows, title="Localizers against the truth")


@app.command()
def methods(
    model: Annotated[str, typer.Argument(help="A model that refuses, such as organism or smollm2:middle.")],
    *,
    prompts: Annotated[str | None, typer.Option(help="Prompt set; default: the model's own.")] = None,
    sample: Annotated[
        tuple[int, int, int], typer.Option(help="Prompts of each class that fit, choose layers, and measure.")
    ] = (128, 32, 64),
    out: Annotated[Path | None, typer.Option(help="Write every row to this Parquet file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts and intervals.")] = 0,
) -> None:
    """Every method at its best layer of one model: effect, price, domain, monitor, time. Prints Markdown."""
    from ot_lens.localization import compare_methods
    from ot_lens.localization.comparison import in_words, markdown
    from ot_lens.models import load_model
    from ot_lens.prompts import load_prompts

    quiet_libraries()
    with progress() as stage:
        chosen = load_prompts(prompts or model.partition(":")[0], sample=sample, seed=seed)
        table = compare_methods(load_model(model), chosen, seed=seed, stage=stage)
    if out is not None:
        table.to_parquet(out)
        say(f"wrote {out}")
    say(markdown(table))
    say(in_words(table))
