"""The sweep: which layers, which map, which rank, measured on held-out prompts, in one tidy table."""

from ot_lens.localization.candidates import Candidate, candidates, listed
from ot_lens.localization.controls import CONTROLS, controls, permuted, random_subspace, swapped
from ot_lens.localization.localize import localize
from ot_lens.localization.measure import Baseline, Measured, measure_baseline, measure_batches, measure_sweep
from ot_lens.localization.methods import MethodSpec, as_methods, fit_maps
from ot_lens.localization.plan import SweepPlan, fit_sweep, plan_sweep
from ot_lens.localization.search import SEARCHES, BestSet, search
from ot_lens.localization.sequential import fit_sequentially
from ot_lens.localization.settings import ENGINES, SweepSettings, candidate_batches, sweep_settings

__all__ = [
    "CONTROLS",
    "ENGINES",
    "SEARCHES",
    "Baseline",
    "BestSet",
    "Candidate",
    "Measured",
    "MethodSpec",
    "SweepPlan",
    "SweepSettings",
    "as_methods",
    "candidate_batches",
    "candidates",
    "controls",
    "fit_maps",
    "fit_sequentially",
    "fit_sweep",
    "listed",
    "localize",
    "measure_baseline",
    "measure_batches",
    "measure_sweep",
    "permuted",
    "plan_sweep",
    "random_subspace",
    "search",
    "swapped",
    "sweep_settings",
]
