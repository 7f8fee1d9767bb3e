"""What is installed on this machine, what is missing and what it would give, and whether the core works."""

from ot_lens.installation.examination import doctor, examine
from ot_lens.installation.findings import Finding, broken, extras_command
from ot_lens.installation.packages import EXTRAS

__all__ = ["EXTRAS", "Finding", "broken", "doctor", "examine", "extras_command"]
