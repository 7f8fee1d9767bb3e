"""Edits by layer and strength."""

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.description import Description, described
from ot_lens.plots.figures.rank_by_layer import grid_panel
from ot_lens.plots.measures import REFUSES
from ot_lens.plots.rows import COLUMNS, checked, counts, marked_methods
from ot_lens.tables import at_one_setting, measured, real_edits, single_layers

MOST_PANELS = 9


def strength_by_layer(localization: pd.DataFrame) -> Description:
    """Share of harmful prompts refused, by layer (x) and strength of the edit (y), one panel per method.

    Args:
        localization: The table of `localize`, with at least two strengths.
    """
    table = checked(localization, "localization", (*COLUMNS["localization"], "strength"))
    sweep = single_layers(real_edits(table))
    sweep = at_one_setting(sweep.assign(level=sweep["strength"], strength=np.nan))
    strengths = sorted({float(t) for t in sweep["level"]})
    if len(strengths) < 2:
        raise NothingToDrawError("The localization table holds fewer than two strengths.")
    methods = [(mark, own) for mark, own in marked_methods(sweep) if own["level"].nunique() > 1]
    panels = [
        grid_panel(own, REFUSES, "level", strengths, "strength $t$", mark.label)
        for mark, own in methods[:MOST_PANELS]
    ]
    return described(panels, "localization", height=0.25 + 0.17 * len(strengths))


def caption(localization: pd.DataFrame, **_: object) -> str:
    """What `strength_by_layer` shows."""
    rows = measured(single_layers(real_edits(localization)), REFUSES.name, REFUSES.prompts)
    return (
        "Share of harmful prompts refused under x + t (T(x) - x) at one layer, by layer and strength t, "
        "one panel per method: t = 0 leaves the model as it is, t = 1 applies the whole map. Intervals are in the "
        f"table. n = {counts(rows)} prompts."
    )
