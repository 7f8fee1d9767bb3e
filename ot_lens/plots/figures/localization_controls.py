"""What an edit at one layer does, compared with edits that ignore the classes."""

import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Band, Description, Line, Panel, Reference, described
from ot_lens.plots.rows import checked, counts, curve, marked_methods
from ot_lens.plots.style import CONTROLS, Mark
from ot_lens.tables import controls_of, not_controls

WHAT = {
    "random_subspace": "an edit of the same size in a random subspace",
    "permuted_labels": "the same fit on permuted class labels",
}


def localization_controls(controls: pd.DataFrame) -> Description:
    """Shift of the refusal score by layer, one panel per method, with the range of its controls.

    Args:
        controls: The table of a study: real edits (control "") and the range of each kind of control.
    """
    rows = checked(controls, "controls")
    panels = [_panel(mark, own) for mark, own in marked_methods(rows)]
    return described(panels, "controls", height=0.92)


def _panel(mark: Mark, rows: pd.DataFrame) -> Panel:
    bands = [
        Band(f"{kind}/{mark.label}", look, curve(drawn))
        for kind, look in CONTROLS.items()
        if len(drawn := controls_of(rows, kind))
    ]
    line = Line(f"shift/{mark.label}", mark, curve(not_controls(rows)))
    return Panel(mark.label, LAYER, Axis("shift (nats)"), (*bands, Reference(0.0, ""), line))


def caption(controls: pd.DataFrame, **_: object) -> str:
    """What `localization_controls` shows."""
    drawn = controls_of(controls)
    kinds = [text for name, text in WHAT.items() if len(controls_of(drawn, name))]
    bands = (
        f" Hatched: mean (dotted) and range of {counts(drawn, 'draws')} draws of {', and of '.join(kinds)}; "
        f"an edit shows where refusal can be changed only where it leaves {'both bands' if kinds[1:] else 'the band'}."
        if kinds
        else ""
    )
    return (
        "Change of the refusal score of harmful prompts at the last prompt token under an edit at one layer, "
        f"by layer, one panel per method; negative: refusal weakens. Line and tint: mean and 95 % interval."
        f"{bands} n = {counts(not_controls(controls))} prompts."
    )
