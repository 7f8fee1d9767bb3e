"""Components of a model: what each adds along a direction, and what is lost without it."""

from ot_lens.components.ablation import ablate_heads, has_heads, without_heads
from ot_lens.components.contributions import contributions, top_heads
from ot_lens.components.reading import Component, Reading, read_contributions

__all__ = [
    "Component",
    "Reading",
    "ablate_heads",
    "contributions",
    "has_heads",
    "read_contributions",
    "top_heads",
    "without_heads",
]
