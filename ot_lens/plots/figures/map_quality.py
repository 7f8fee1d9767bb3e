"""How well fitted maps do on prompts they were not fitted on."""

import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, Reference, described
from ot_lens.plots.rows import by_label, counts, curve, finite, null_of, rows_of
from ot_lens.plots.style import BASELINE, Mark, method_mark
from ot_lens.tables import select

BEFORE = Mark("not moved", BASELINE.color, BASELINE.marker, BASELINE.dash)
OPTIMAL = Reference(1.0, "optimal cost")
# quantity -> title, y axis, with null band, reference, limits
PANELS = {
    "w2_after": ("$W_2^2$ left", "activation²", True, (), None),
    "mean_error": ("error of the mean", "activation²", True, (), None),
    "covariance_error": ("error of the covariance", "relative", True, (), None),
    "transport_cost": ("transport cost", "activation²", False, (), None),
    "cost_over_bound": ("cost over its bound", "ratio", False, (OPTIMAL,), (1.0, 1.2)),
    "outside_target": ("outside the target", "share of prompts", True, (), (0.0, 1.0)),
}


def map_quality(map_quality: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Push-forward error, transport cost against its bound, and extrapolation of maps on held-out prompts.

    Args:
        map_quality: Tables of `geometry.map_quality`, of one method or several.
    """
    rows = rows_of(map_quality, "map_quality", position)
    return described([_panel(rows, name) for name in PANELS], "map_quality")


def _panel(rows: pd.DataFrame, quantity: str) -> Panel:
    title, unit, with_null, references, limits = PANELS[quantity]
    edits = by_label(select(rows, quantity=quantity))
    lines = [Line(f"{quantity}/{label}", method_mark(label), curve(own)) for label, own in edits.items()]
    if quantity == "w2_after" and edits:
        before = select(rows, quantity="w2_before", method=next(iter(edits)))
        lines.insert(0, Line("w2_before", BEFORE, curve(before)))
    bands = [b for label, own in edits.items() for b in null_of(own, f"{quantity}/{label}") if with_null]
    if quantity == "cost_over_bound" and limits is not None:
        limits = (limits[0], max([limits[1], *finite(select(rows, quantity=quantity), "value", "high")]))
    return Panel(title, LAYER, Axis(unit, limits=limits), (*bands, *references, *lines))


def caption(map_quality: pd.DataFrame, **_: object) -> str:
    """What `map_quality` shows."""
    return (
        "Maps on held-out prompts, by layer: (a) the squared Gaussian W2 distance left between moved "
        "harmful and harmless activations (dashed: before the move); the error of the pushed-forward mean "
        "(squared distance) and covariance (Frobenius norm over that of the target); the mean squared "
        "displacement; that over the squared W2 between the samples and their images, which no map with "
        "those images can undercut; and the share of moved prompts outside the range of the harmless "
        "training prompts along a leading component. Tints: 95 % bootstrap intervals over prompts. Grey: "
        "mean (dotted) and 95 % band under permuted labels, overlaid bands, one per method: a "
        f"perfect map lands inside. n = {counts(map_quality)} prompts."
    )
