"""Transport and projection in the principal plane, over the depth."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from ot_lens.plots.description import Description, Panel, described
from ot_lens.plots.figures.principal_plane import KEYS, layers_with, plane_panels, plane_tables, states_of
from ot_lens.plots.rows import counts, layers_of, spread_out
from ot_lens.plots.style import PROJECTION, TRANSPORT, method_mark

MOST_LAYERS, MOST_ARROWS = 5, 10


def rivals(plane: pd.DataFrame) -> list[str]:
    """The first projection and the transport of the highest rank in a table; without both, two edits."""
    states = states_of(plane)
    families = [method_mark(state).family for state in states]
    if PROJECTION in families and TRANSPORT in families:
        first = states[families.index(PROJECTION)]
        last = states[len(families) - 1 - families[::-1].index(TRANSPORT)]
        return [first, last]
    return states[:1] + states[1:][-1:]


def plane_by_depth(
    plane: pd.DataFrame,
    ellipses: pd.DataFrame,
    *,
    layers: Sequence[int] | None = None,
    states: Sequence[str] | None = None,
    position: int | str | None = None,
) -> Description:
    """Points, 95 % ellipses and displacements, one row per edit, one column per layer; a slider on a screen.

    Args:
        plane: Points, the first table of `geometry.principal_plane`, of several layers.
        ellipses: Means and covariances, the second.
        layers: Layers to show; five evenly over the table's if None.
        states: Edits to show; a projection and a transport if None.
    """
    points, outlines = plane_tables(plane, ellipses, position)
    frames = _depths(points) if layers is None else layers_with(points, layers)
    edits = rivals(points) if states is None else list(states)
    # Only what is drawn: each layer has limits of its own.
    columns = [
        plane_panels(points, outlines, layer, edits, shape=1.0, arrows=MOST_ARROWS) for layer in frames
    ]
    panels = [_short(column[row]) for row in range(max(1, len(edits))) for column in columns]
    return described(
        panels, "plane", columns=len(frames), share="columns", keys=KEYS, collect=False, letters=False,
        slider="layer", frames=tuple(frames), first=frames[0],
    )  # fmt: skip


def _depths(points: pd.DataFrame) -> list[int]:
    """Layers with points, five at most, evenly over the depth."""
    return spread_out(layers_of(points[points["pc1"].notna()]), MOST_LAYERS)


def _short(panel: Panel) -> Panel:
    """A panel without what changes from layer to layer in its titles."""
    x, y = (replace(axis, title=axis.title.partition(" (")[0]) for axis in (panel.x, panel.y))
    return replace(panel, x=x, y=y, color="")


def caption(plane: pd.DataFrame, ellipses: pd.DataFrame, **_: object) -> str:
    """What `plane_by_depth` shows."""
    points, outlines = plane_tables(plane, ellipses)
    shown = _depths(points)
    edits = " and ".join(method_mark(edit).label for edit in rivals(points)) or "no edit"
    return (
        "Harmful (circles) and harmless (open squares) activations of held-out prompts in the plane of the "
        f"first two principal components of both classes together, at layers {', '.join(map(str, shown))} "
        f"(columns), under {edits} (rows; the moved harmful activations in the method's marker). Ellipses "
        "hold 95 % of a Gaussian with the sample's mean and covariance; the dotted one is that of the "
        "harmless activations when the same edit is applied to them. Thin arrows follow "
        f"{MOST_ARROWS} prompts at most, the thick arrow the mean. Each layer has axes of its own, the same "
        f"scale along both. n = {counts(outlines)} prompts per class."
    )
