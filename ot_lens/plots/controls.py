"""What an edit at one layer does against edits that know nothing of the classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.curve_panels import curve_figure
from ot_lens.plots.panels import Band, CurvePanel, Reference, Series, without_empty
from ot_lens.plots.rows import checked, counts, curve, marked_methods
from ot_lens.plots.style import CONTROLS, Mark
from ot_lens.tables import controls_of, not_controls

COLUMNS = ("layer", "method", "k", "control", "value", "low", "high")
WHAT = {
    "random_subspace": "an edit of the same size in a random subspace",
    "permuted_labels": "the same fit on permuted class labels",
}
Y = "shift (nats)"


def control_panels(controls: pd.DataFrame) -> list[CurvePanel]:
    """One panel a method: its shift of the refusal score by layer, and where its controls land.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = checked(controls, "controls", COLUMNS)
    panels = without_empty([_panel(mark, part) for mark, part in marked_methods(rows)])
    if not panels:
        raise NothingToDrawError("no finite shift of the refusal score in the table")
    return panels


def _panel(mark: Mark, rows: pd.DataFrame) -> CurvePanel:
    real = not_controls(rows)
    bands = tuple(
        Band(f"{name}/{mark.label}", look, curve(controls_of(rows, name)))
        for name, look in CONTROLS.items()
        if len(controls_of(rows, name))
    )
    series = (Series(f"shift/{mark.label}", mark, curve(real)),)
    return CurvePanel(mark.label, Y, series, bands, (Reference(0.0, ""),))


def localization_controls(
    controls: pd.DataFrame, *, style: str = "icml", axes: Sequence[Axes] | np.ndarray | None = None
) -> Figure:
    """Shift of the refusal score by layer, one panel a method, with the range of its controls.

    Args:
        controls: the table of a study: real edits (control "") and the range of each kind of control.
        style: "icml", "neurips" or "wide".
        axes: one axes a method, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    return curve_figure(control_panels(controls), style=style, axes=axes, columns=3, height=0.92)


def caption(controls: pd.DataFrame, **_: Any) -> str:
    """What `localization_controls` shows."""
    control_panels(controls)
    drawn = controls_of(controls)
    kinds = [text for name, text in WHAT.items() if len(controls_of(drawn, name))]
    bands = (
        f" Hatched: mean (dotted) and range of {counts(drawn, 'draws')} draws of {', and of '.join(kinds)}; "
        f"an edit shows where refusal lives only where it leaves {'both bands' if kinds[1:] else 'the band'}."
        if kinds
        else ""
    )
    return (
        "Change of the refusal score of harmful prompts at the last prompt token under an edit at one layer, "
        f"by layer, a panel a method; negative: refusal weakens. Line and tint: mean and 95 % interval."
        f"{bands} n = {counts(not_controls(controls))} prompts."
    )
