"""Whether a monitor can see an edit: how far edited activations are from the model's own harmless ones."""

from dataclasses import replace

import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, described
from ot_lens.plots.rows import by_label, counts, curve, finite, layers_of, null_of, rows_of
from ot_lens.plots.style import BASELINE, NULL, method_mark
from ot_lens.tables import UNEDITED, baseline_of, edits_of, select

TITLES = {
    "mahalanobis": ("distance", "Mahalanobis"),
    "mahalanobis_auc": ("monitor: distance", "AUC"),
    "classifier_auc": ("monitor: classifier", "AUC"),
}
UNSEEN = replace(NULL, label="cannot be seen (null)")
HARMFUL = replace(BASELINE, label="harmful, no edit")


def visibility_to_monitor(visibility: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """How visible an edit is to a monitor at the last layer, by edited layer and method.

    Args:
        visibility: The table of a study: rows of `geometry.visibility` with the column edited_layer.
    """
    rows = rows_of(visibility, "visibility", position)
    last = select(rows, layer=rows["layer"].max())
    return described([_panel(last, name, *titles) for name, titles in TITLES.items()], "visibility")


def _panel(rows: pd.DataFrame, quantity: str, title: str, unit: str) -> Panel:
    own = select(rows, quantity=quantity)
    edits, plain = edits_of(own), baseline_of(own)
    layers, edited = layers_of(edits, "edited_layer"), by_label(edits)
    lines = [
        Line(f"{quantity}/{label}", method_mark(label), curve(part, x="edited_layer"))
        for label, part in edited.items()
    ]
    if len(plain):
        level = pd.concat([plain.assign(edited_layer=layer) for layer in layers or [0]])
        lines.insert(0, Line(f"{quantity}/{UNEDITED}", HARMFUL, curve(level, x="edited_layer")))
    bands = [
        band
        for label, part in edited.items()
        for band in null_of(part, f"{quantity}/{label}", UNSEEN, "edited_layer")
    ]
    limits = (min([0.4, *finite(own, "value", "low", "null_low")]), 1.0) if quantity.endswith("auc") else None
    return Panel(title, replace(LAYER, title="edited layer"), Axis(unit, limits=limits), (*bands, *lines))


def caption(visibility: pd.DataFrame, **_: object) -> str:
    """What `visibility_to_monitor` shows."""
    layer = int(visibility["layer"].max())
    return (
        "How visible an edit is to a monitor that reads the last prompt token at layer "
        f"{layer}, by edited layer: the mean Mahalanobis distance of edited harmful activations to the "
        "model's own harmless ones, how well that distance tells the two apart (AUC; a monitor that never "
        "saw an edit), and how well a classifier does that was trained on both (AUC; a monitor that knows "
        "the edit). Dashed: harmful prompts without an edit. Tints: 95 % intervals over held-out scores. "
        "Grey: mean (dotted) and 95 % band of held-out harmless prompts (distance) or of permuted labels "
        "(AUC), overlaid bands, one per method. An edit inside the grey cannot be seen. "
        f"n = {counts(visibility)} activations, edited and harmless."
    )
