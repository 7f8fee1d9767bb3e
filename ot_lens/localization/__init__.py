"""The sweep: which layers, which map, which rank, measured on held-out prompts, in one tidy table."""

from ot_lens.execution.runner import Compute
from ot_lens.localization.candidates import (
    Candidate,
    candidates,
    listed,
)
from ot_lens.localization.controls import CONTROLS, controls, permuted, random_subspace, swapped
from ot_lens.localization.localize import localize, panel_settings
from ot_lens.localization.methods import RFA, Method, as_methods, fit_maps
from ot_lens.localization.plan import REVERSIBLE, SweepPlan, plan_by_pieces, plan_sweep, swept
from ot_lens.localization.search import SEARCHES, Found, confirmations, search
from ot_lens.localization.sequential import fit_sequentially
from ot_lens.localization.sweep import (
    Baseline,
    Measured,
    measure_units,
    measured_unedited,
    read_baseline,
    sweep,
    unfinished,
)
from ot_lens.localization.units import ENGINES, Measuring, Unit, units

__all__ = [
    "CONTROLS",
    "ENGINES",
    "REVERSIBLE",
    "RFA",
    "SEARCHES",
    "Baseline",
    "Candidate",
    "Compute",
    "Found",
    "Measured",
    "Measuring",
    "Method",
    "SweepPlan",
    "Unit",
    "as_methods",
    "candidates",
    "confirmations",
    "controls",
    "fit_maps",
    "fit_sequentially",
    "listed",
    "localize",
    "measure_units",
    "measured_unedited",
    "panel_settings",
    "permuted",
    "plan_by_pieces",
    "plan_sweep",
    "random_subspace",
    "read_baseline",
    "search",
    "swapped",
    "sweep",
    "swept",
    "unfinished",
    "units",
]
