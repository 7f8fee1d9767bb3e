"""Transport and projection in the principal plane, over the depth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ot_lens.plots.description import Axis, Description, Panel, described
from ot_lens.plots.figures.principal_plane import (
    BEFORE,
    COLUMNS,
    KEYS,
    plane_limits,
    plane_panel,
    plane_rows,
    states_of,
)
from ot_lens.plots.rows import at_position, checked, counts, layers_of, some, spread_out
from ot_lens.plots.style import PROJECTION, TRANSPORT, method_mark
from ot_lens.tables import select

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


def depths(plane: pd.DataFrame, position: int | str | None = None) -> list[int]:
    """Layers with points, five at most, evenly over the depth.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    points = some(at_position(checked(plane, "plane", COLUMNS), position), "point", "pc1")
    return spread_out(layers_of(points[points["pc1"].notna()]), MOST_LAYERS)


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
        position: Token position; the last in the table if None.

    Raises:
        TableError: If a column is missing, the layer is not in the table, or there is nothing to draw.
    """
    frames = depths(plane, position) if layers is None else list(layers)
    edits: list[str | None] = list(rivals(plane) if states is None else states) or [None]
    columns = [_column(plane_rows(plane, ellipses, layer, position), edits) for layer in frames]
    panels = [column[row] for row in range(len(edits)) for column in columns]
    return described(
        panels, "plane", columns=len(frames), share="columns", keys=KEYS, collect=False, letters=False,
        slider="layer", frames=tuple(frames), first=frames[0],
    )  # fmt: skip


def _column(rows: tuple[int, pd.DataFrame, pd.DataFrame], edits: list[str | None]) -> list[Panel]:
    """The edits at one layer, within common limits."""
    layer, *tables = rows
    points, outlines = (select(table, state=(BEFORE, *edits)) for table in tables)
    limits = plane_limits(points, outlines, shape=1.0)
    axes = (Axis("PC 1", limits=limits[0]), Axis("PC 2", limits=limits[1]))
    return [replace(plane_panel(points, outlines, e, layer, axes, MOST_ARROWS), color="") for e in edits]


def caption(plane: pd.DataFrame, ellipses: pd.DataFrame, **_: Any) -> str:
    """What `plane_by_depth` shows."""
    shown = depths(plane)
    edits = " and ".join(method_mark(edit).label for edit in rivals(plane)) or "no edit"
    return (
        "Harmful (circles) and harmless (open squares) activations of held-out prompts in the plane of the "
        f"first two principal components of both classes together, at layers {', '.join(map(str, shown))} "
        f"(columns), under {edits} (rows; the moved harmful activations in the method's marker). Ellipses "
        "hold 95 % of a Gaussian with the sample's mean and covariance; the dotted one is that of the "
        "harmless activations when the same edit is applied to them. Thin arrows follow "
        f"{MOST_ARROWS} prompts at most, the thick arrow the mean. Each layer has axes of its own, the same "
        f"scale along both. n = {counts(ellipses)} prompts per class."
    )
