"""`doctor`: everything that can be told about an installation."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ot_lens.installation.core import AGAIN, FAULTS, check_finding, model_findings
from ot_lens.installation.findings import CHECK, Finding, broken
from ot_lens.installation.machine import capacity_findings, machine_findings
from ot_lens.installation.packages import extra_findings, version_findings

if TYPE_CHECKING:
    import pandas as pd


def doctor(folder: str | Path = "runs") -> "pd.DataFrame":
    """What is installed, what is missing and what it would give, and whether the core works.

    Versions are read from the packages' metadata. The core is tried on the embedded model: it is loaded, a
    layer is captured, a map is fitted and applied, and the refusal score must change and change back.

    Args:
        folder: Where runs are to be written.

    Returns:
        One row per item: area ("versions", "extras", "models", "machine", "check"), item, found (of an extra:
        what it gives), state ("ok"; "absent": optional and not installed; "doubtful": outside the tested
        bounds, or not usable as it is; "broken": the core cannot work) and remedy.
    """
    import pandas as pd

    return pd.DataFrame([asdict(finding) for finding in examine(Path(folder))])


def examine(folder: Path) -> list[Finding]:
    """All findings; if a package of the core is missing, only those that need none of them."""
    findings = [*version_findings(), *extra_findings(), *machine_findings(folder)]
    if broken(findings):
        return findings
    try:
        findings += [*capacity_findings(), *model_findings()]
    except FAULTS as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        return [*findings, Finding(CHECK, "core", fault, "broken", AGAIN)]
    return [*findings, check_finding()]
