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
