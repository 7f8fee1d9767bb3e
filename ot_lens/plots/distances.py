"""Bures-Wasserstein distance between the classes by depth, in its two parts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.canvas import canvas, style_named
from ot_lens.plots.lines import draw_band, draw_curve, layer_axis, letter, typeset
from ot_lens.plots.rows import Curve, at_position, checked, counts, curve, layers_of
from ot_lens.plots.style import NULL, PARTS

COLUMNS = ("layer", "quantity", "value")
TITLES = {"w2_squared": "$W_2^2$, both parts", "w2_location": "location part", "w2_bures": "Bures part"}


def parts(geometry: pd.DataFrame, position: int | str | None = None) -> dict[str, pd.DataFrame]:
    """Rows of W2 squared and of its two parts.

    Raises:
        NothingToDrawError: the table has none of the three.
    """
    rows = at_position(checked(geometry, "geometry", COLUMNS), position)
    found = {name: rows[rows["quantity"] == name] for name in PARTS}
    found = {name: part for name, part in found.items() if part["value"].notna().any()}
    if not found:
        raise NothingToDrawError("the geometry table has no w2_squared, w2_location or w2_bures")
    return found


def w2_per_layer(
    geometry: pd.DataFrame,
    *,
    position: int | str | None = None,
    style: str = "icml",
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """W2 squared by layer: the total, its location part and its Bures part, each with null band and interval.

    Args:
        geometry: the table of `diagnose`.
        position: token position; the last in the table when None.
        style: "icml", "neurips" or "wide".
        axes: one axes for each part in the table, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    found = parts(geometry, position)
    width = style_named(style).text
    with canvas(style, axes, (1, len(found)), (width, 0.3 * width), sharex=True) as (figure, grid):
        for index, (name, rows) in enumerate(found.items()):
            _panel(grid[0, index], name, rows)
            letter(grid[0, index], index, TITLES[name])
        if {"w2_location", "w2_bures"} < set(found):
            _shares(grid[0, 0], found)
        grid[0, 0].set_ylabel(typeset(f"squared distance ({unit_of(found)})"))
    return figure


def _panel(ax: Axes, name: str, rows: pd.DataFrame) -> None:
    null = curve(rows, value="null_mean", band=("null_low", "null_high")) if "null_mean" in rows else None
    draw_curve(ax, curve(rows), PARTS[name], name=name)
    if null is not None and np.isfinite(null.value).any():
        draw_band(ax, null, NULL, name=name, label=NULL.label)
    layer_axis(ax, layers_of(rows))
    ax.set_ylim(bottom=0.0)
    ax.legend(loc="upper left")


def _shares(ax: Axes, found: dict[str, pd.DataFrame]) -> None:
    """Tints under the total: the location part at the bottom, the Bures part on top of it."""
    location, total = curve(found["w2_location"]), curve(found["w2_squared"])
    for name, low, high in (
        ("w2_location", Curve(location.x, location.value * 0, location.value, location.value), location),
        ("w2_bures", location, total),
    ):
        ax.fill_between(
            location.x, low.value, high.value, color=PARTS[name].color, alpha=0.35, linewidth=0, zorder=0,
            label=f"of which {PARTS[name].label.split()[0]}", gid=f"share:{name}",
        )  # fmt: skip
    ax.legend(loc="upper left")


def unit_of(found: dict[str, pd.DataFrame]) -> str:
    """Unit of the distances."""
    rows = next(iter(found.values()))
    return str(rows["unit"].iloc[0]) if "unit" in rows else "squared activation units"


def caption(geometry: pd.DataFrame, **_: Any) -> str:
    """What `w2_per_layer` shows."""
    rows = pd.concat(parts(geometry).values())
    return (
        "Squared Bures-Wasserstein (2-Wasserstein between Gaussians) distance between harmful and "
        "harmless activations at the last captured token position, by layer: the total, its location part "
        "(squared distance of the means) and its Bures part (difference in covariance). Coloured bands: "
        "95 % bootstrap intervals over prompts. Grey: mean (dotted) and 95 % band of the same quantity "
        "under permuted class labels; both parts are biased upward when n is small against the width, so "
        f"only what stands above the grey counts. n = {counts(rows)} prompts."
    )
