"""The sweep: which layers, which map, which rank, measured on held-out prompts, in one tidy table."""

import ot_lens.learned  # noqa: F401  registers its methods
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.choices import layer_choices
from ot_lens.localization.comparison import compare_methods
from ot_lens.localization.defence import restore_refusal
from ot_lens.localization.languages import across_languages
from ot_lens.localization.localize import localize
from ot_lens.localization.measure import measure_sweep
from ot_lens.localization.methods import MethodSpec, as_methods, fit_maps, fit_sequentially
from ot_lens.localization.plan import fit_sweep, plan_sweep
from ot_lens.localization.search import search
from ot_lens.localization.settings import ENGINES, SEARCHES, SweepPlan, SweepSettings, sweep_settings

__all__ = [
    "ENGINES",
    "SEARCHES",
    "Candidate",
    "MethodSpec",
    "SweepPlan",
    "SweepSettings",
    "across_languages",
    "as_methods",
    "compare_methods",
    "fit_maps",
    "fit_sequentially",
    "fit_sweep",
    "layer_choices",
    "localize",
    "measure_sweep",
    "plan_sweep",
    "restore_refusal",
    "search",
    "sweep_settings",
]
