"""The single-pass sweep: next-token behaviour of every candidate at the cost of a few forward passes.

The prompts are run once. Then one walk goes up the blocks with a growing set of rows: each candidate's row
starts at the layer it edits. With scope "last" only the last position is recomputed; it attends to the cached
keys and values of the earlier ones.

Answers of every candidate come the same way: known answers are verified in one pass, and few are generated.
"""

from ot_lens.single_pass.answers import Answered, answer_sweep
from ot_lens.single_pass.engine import (
    Observe,
    next_token_sweep,
    nothing,
    observed_sweep,
    why_not,
    why_not_answered,
)

__all__ = [
    "Answered",
    "Observe",
    "answer_sweep",
    "next_token_sweep",
    "nothing",
    "observed_sweep",
    "why_not",
    "why_not_answered",
]
