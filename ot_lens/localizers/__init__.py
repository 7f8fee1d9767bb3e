"""Localizers: which blocks make refusal, as against where an edit can change it."""

from ot_lens.localizers.bands import BAND, NOTHING, SPREAD, Band, Effects, find_band
from ot_lens.localizers.benchmark import benchmark_localizers, summary
from ot_lens.localizers.locate import base_of, effects_of, locate, locate_by_layer, located, table_of
from ot_lens.localizers.profiles import LOCALIZERS, Localizer, Setting

__all__ = [
    "BAND",
    "LOCALIZERS",
    "NOTHING",
    "SPREAD",
    "Band",
    "Effects",
    "Localizer",
    "Setting",
    "base_of",
    "benchmark_localizers",
    "effects_of",
    "find_band",
    "locate",
    "locate_by_layer",
    "located",
    "summary",
    "table_of",
]
