"""Localizers: which blocks make refusal, as against where an edit can change it."""

from ot_lens.localizers.bands import Band, Effects, find_band
from ot_lens.localizers.locate import locate, profiles, table_of
from ot_lens.localizers.profiles import LOCALIZERS, Localizer, Setting

__all__ = [
    "LOCALIZERS",
    "Band",
    "Effects",
    "Localizer",
    "Setting",
    "find_band",
    "locate",
    "profiles",
    "table_of",
]
