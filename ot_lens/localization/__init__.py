"""The sweep: which layers, which map, which rank, measured on held-out prompts, in one tidy table."""

from ot_lens.execution.runner import Compute
from ot_lens.localization.candidates import (
    INDUCE,
    LISTED,
    REMOVE,
    SEARCHED,
    SETS,
    Candidate,
    candidates,
    layers_label,
    listed,
)
from ot_lens.localization.controls import CONTROLS, controls, permuted, random_subspace, swapped
from ot_lens.localization.localize import localize, panel_settings
from ot_lens.localization.methods import RFA, Method, as_methods, fit_maps
from ot_lens.localization.overview import overview
from ot_lens.localization.plan import REVERSIBLE, SweepPlan, plan_by_pieces, plan_sweep, swept
from ot_lens.localization.rows import COLUMNS, join
from ot_lens.localization.search import SEARCHES, Found, confirmations, search
from ot_lens.localization.sequential import fit_sequentially
from ot_lens.localization.sweep import (
    UNEDITED,
    Baseline,
    Measured,
    measure_units,
    measured_unedited,
    read_baseline,
    sweep,
    unfinished,
)
from ot_lens.localization.units import ENGINES, Measuring, Unit, units
from ot_lens.localization.verdict import OneDirection, one_direction, verdict

__all__ = [
    "COLUMNS",
    "CONTROLS",
    "ENGINES",
    "INDUCE",
    "LISTED",
    "REMOVE",
    "REVERSIBLE",
    "RFA",
    "SEARCHED",
    "SEARCHES",
    "SETS",
    "UNEDITED",
    "Baseline",
    "Candidate",
    "Compute",
    "Found",
    "Measured",
    "Measuring",
    "Method",
    "OneDirection",
    "SweepPlan",
    "Unit",
    "as_methods",
    "candidates",
    "confirmations",
    "controls",
    "fit_maps",
    "fit_sequentially",
    "join",
    "layers_label",
    "listed",
    "localize",
    "measure_units",
    "measured_unedited",
    "one_direction",
    "overview",
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
    "verdict",
]
