"""Refusal directions: choosing one, reading published ones, and comparing them.

Source: Arditi et al. 2024 (arXiv 2406.11717), section 2.3 and appendix C.
"""

from ot_lens.directions.comparison import compare_directions
from ot_lens.directions.harm import harm_and_refusal
from ot_lens.directions.published_run import RefusalDirectionRun, read_refusal_direction_run
from ot_lens.directions.readout import readout, readout_vectors, tokens_written, vector_logits
from ot_lens.directions.scoring import score_directions
from ot_lens.directions.selection import FilterCount, Selection, select_direction

__all__ = [
    "FilterCount",
    "RefusalDirectionRun",
    "Selection",
    "compare_directions",
    "harm_and_refusal",
    "read_refusal_direction_run",
    "readout",
    "readout_vectors",
    "score_directions",
    "select_direction",
    "tokens_written",
    "vector_logits",
]
