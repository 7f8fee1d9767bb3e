"""`ot-lens doctor`: what is installed, what is missing, and whether the core works."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ot_lens.cli.console import err, print_table, quiet_libraries, say
from ot_lens.errors import InstallationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from ot_lens.installation import Finding

# Packages of the core that are listed whatever their state; the others, if something is wrong with them.
LISTED = (
    *("ot_lens", "python", "torch", "transformers", "transformer-lens", "numpy", "scipy", "pandas"),
    *("matplotlib", "plotly"),
)
COLOURS = {"ok": "green", "absent": "yellow", "doubtful": "yellow", "broken": "red"}


def doctor(
    folder: Annotated[Path, typer.Option("--out", help="Where runs are to be written.")] = Path("runs"),
) -> None:
    """Say what is installed, what is missing and what it would give, and try the core (some seconds)."""
    with err.status("looking"):
        from ot_lens.installation import broken, examine, extras_command

        quiet_libraries()
        findings = examine(folder)
    _print(findings)
    command = extras_command(findings)
    if command:
        say(f"All extras that are absent: {command}")
    faults = broken(findings)
    if faults:
        told = "; ".join(f"{one.item}: {one.found}" for one in faults)
        raise InstallationError(f"The core does not work ({told}): {faults[0].remedy}.")
    doubtful = ", ".join(one.item for one in findings if one.state == "doubtful")
    say(f"The core works; doubtful: {doubtful}." if doubtful else "The core works.")


def _print(findings: "Sequence[Finding]") -> None:
    seen = [one for one in findings if one.area != "versions" or one.item in LISTED or one.state != "ok"]
    areas = dict.fromkeys(one.area for one in seen)
    print_table(
        ("item", "found", "state"), *([_cells(one) for one in seen if one.area == area] for area in areas)
    )
    for one in seen:
        if one.remedy and one.area != "extras":
            say(f"{one.item}: {one.remedy}")


def _cells(one: "Finding") -> "tuple[str, str, Text]":
    from rich.text import Text

    return one.item, one.found, Text(one.state, style=COLOURS[one.state])
