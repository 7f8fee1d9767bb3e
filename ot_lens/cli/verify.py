"""`ot-lens verify`: a run checked against itself, one line a check."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ot_lens.cli.console import err, out, progress, quiet_libraries, say

if TYPE_CHECKING:
    import pandas as pd

DIFFERENT = 1


def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; it is only read.")],
    sample: Annotated[
        int, typer.Option(min=1, help="Rows of each table that are computed again with all their draws.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the choice of rows.")] = 0,
    *,
    full: Annotated[bool, typer.Option("--full", help="Every row, and every figure.")] = False,
    model: Annotated[
        bool, typer.Option("--model/--no-model", help="Whether the model is asked again.")
    ] = True,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Compute a sample of a run again and compare: exit code 0 if all holds, 1 if not."""
    with err.status("loading"):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from ot_lens.study.verify import holds, verify_run

        quiet_libraries()
    with progress() as stage:
        found = verify_run(
            folder,
            sample=sample,
            seed=seed,
            full=full,
            model=model,
            trust_remote_code=trust_remote_code,
            stage=stage,
        )
    if as_json:
        typer.echo(found.to_json(orient="records", lines=True), nl=False)
    else:
        _print(found)
    if not holds(found):
        raise typer.Exit(DIFFERENT)


def _print(found: "pd.DataFrame") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ot_lens.study.verify import holds

    colours = {"ok": "green", "differs": "red", "missing": "red", "not checked": "yellow"}
    table = Table(box=SIMPLE_HEAD, padding=0)
    # Narrow enough for a terminal of 80 columns, and nothing is cut short.
    for column in ("item", "check", "n", "off by", "at most", "verdict"):
        right = column in ("n", "off by", "at most")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    table.caption = "n: rows, files or layers compared, of all; off by: largest deviation; at most: tolerance"
    for row in found.to_dict("records"):
        count = f"{row['compared']}/{row['of']}" if row["of"] else ""
        table.add_row(
            Text(row["item"]),
            Text(row["how"]),
            count,
            *(_number(row[name]) for name in ("deviation", "tolerance")),
            Text(row["verdict"], style=colours[row["verdict"]]),
        )
    out.print(table)
    for row in found[found["note"] != ""].to_dict("records"):
        say(f"{row['item']}: {row['verdict']}: {row['note']}")
    counts = found["verdict"].value_counts()
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    say(f"{'all that was checked holds' if holds(found) else 'the run does not hold'} ({said})")


def _number(value: float) -> str:
    """A number, nothing where there is none."""
    return "" if value != value else f"{value:.1g}"  # noqa: PLR0124  only NaN differs from itself
