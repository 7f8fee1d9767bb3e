"""`ot-lens verify`: check a run against itself, one line per check."""

from typing import TYPE_CHECKING, Annotated

import typer

from ot_lens.cli.console import err, number, print_table, progress, quiet_libraries, say
from ot_lens.cli.study import AllowCode, RunArgument, TrustRemoteCode, prepare_process

if TYPE_CHECKING:
    import pandas as pd

DIFFERENT = 1


def verify(
    folder: RunArgument,
    sample: Annotated[
        int, typer.Option(min=1, help="Rows of each table to recompute with all their resamples.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed for choosing the rows.")] = 0,
    *,
    full: Annotated[bool, typer.Option("--full", help="Check every row and every figure.")] = False,
    model: Annotated[
        bool, typer.Option("--model/--no-model", help="Whether to measure with the model again.")
    ] = True,
    trust_remote_code: TrustRemoteCode = False,
    allow_code: AllowCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Recompute a sample of a run and compare: exit code 0 if everything agrees, 1 if not."""
    with err.status("loading"):
        prepare_process(allow_code=allow_code)
        from ot_lens.study.verify import holds, verify_run

        quiet_libraries()
    with progress() as stage:
        checks = verify_run(
            folder,
            sample=sample,
            seed=seed,
            full=full,
            model=model,
            trust_remote_code=trust_remote_code,
            allow_code=allow_code,
            stage=stage,
        )
    agrees = holds(checks)
    if as_json:
        typer.echo(checks.to_json(orient="records", lines=True), nl=False)
    else:
        _print(checks, agrees=agrees)
    if not agrees:
        raise typer.Exit(DIFFERENT)


def _print(checks: "pd.DataFrame", *, agrees: bool) -> None:
    from rich.text import Text

    colours = {"ok": "green", "differs": "red", "missing": "red", "not checked": "yellow"}
    print_table(
        ("item", "check", "n", "off by", "at most", "verdict"),
        [
            (
                row["item"],
                row["how"],
                f"{row['compared']}/{row['of']}" if row["of"] else "",
                number(row["deviation"], ".1g"),
                number(row["tolerance"], ".1g"),
                Text(row["verdict"], style=colours[row["verdict"]]),
            )
            for row in checks.to_dict("records")
        ],
        caption="n: rows, files or layers compared, of all; off by: largest deviation; at most: tolerance",
    )
    for row in checks[checks["note"] != ""].to_dict("records"):
        say(f"{row['item']}: {row['verdict']}: {row['note']}")
    counts = checks["verdict"].value_counts()
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    say(f"{'everything checked agrees' if agrees else 'the run differs'} ({summary})")
