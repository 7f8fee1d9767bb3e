"""Refusal directions: choosing one, reading published ones, and comparing them.

Source: Arditi et al. 2024 (arXiv 2406.11717), section 2.3 and appendix C.
"""

from ot_lens.directions.comparison import compare_directions
from ot_lens.directions.published_run import RefusalDirectionRun, read_refusal_direction_run
from ot_lens.directions.readout import readout, vector_logits
from ot_lens.directions.scoring import score_directions
from ot_lens.directions.selection import FilterCount, Selection, select_direction

__all__ = [
    "FilterCount",
    "RefusalDirectionRun",
    "Selection",
    "compare_directions",
    "read_refusal_direction_run",
    "readout",
    "score_directions",
    "select_direction",
    "vector_logits",
]
