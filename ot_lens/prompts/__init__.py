"""Contrast sets: harmful and harmless prompts in three splits, from files, datasets or presets."""

from ot_lens.prompts.data import CLASSES, SPLITS, Contrast, ContrastSet, Prompt, as_texts
from ot_lens.prompts.documents import relative_to
from ot_lens.prompts.loading import load_prompts
from ot_lens.prompts.presets import preset_table

__all__ = [
    "CLASSES",
    "SPLITS",
    "Contrast",
    "ContrastSet",
    "Prompt",
    "as_texts",
    "load_prompts",
    "preset_table",
    "relative_to",
]
