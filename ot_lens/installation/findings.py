"""One fact about the installation, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

State = Literal["ok", "absent", "doubtful", "broken"]
VERSIONS: Final = "versions"
EXTRA: Final = "extras"
MODELS: Final = "models"
MACHINE: Final = "machine"
CHECK: Final = "check"


@dataclass(frozen=True)
class Finding:
    """What was found of one item.

    Attributes:
        area: "versions", "extras", "models", "machine" or "check".
        item: What was looked at.
        found: What was found; of an extra, what it gives.
        state: "ok"; "absent", if something optional is not installed; "doubtful", if it may not work as it
            is; "broken", if the core cannot work.
        remedy: The command or setting that changes it, or "".
    """

    area: str
    item: str
    found: str
    state: State = "ok"
    remedy: str = ""


def broken(findings: Iterable[Finding]) -> list[Finding]:
    """The findings with which the core cannot work."""
    return [one for one in findings if one.state == "broken"]


def extras_command(findings: Iterable[Finding]) -> str:
    """The one command that installs all missing extras, or ""."""
    missing = [one.item for one in findings if one.area == EXTRA and one.state == "absent"]
    return f"pip install 'ot-lens[{','.join(missing)}]'" if missing else ""
