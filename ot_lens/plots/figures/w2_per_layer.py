"""Bures-Wasserstein distance between the classes by layer, in its two parts."""

import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.description import LAYER, Area, Axis, Description, Line, Panel, described
from ot_lens.plots.rows import counts, curve, null_of, rows_of, unit_of
from ot_lens.plots.style import PARTS
from ot_lens.tables import select

TITLES = {"w2_squared": "$W_2^2$, both parts", "w2_location": "location part", "w2_bures": "Bures part"}


def parts(geometry: pd.DataFrame, position: int | str | None = None) -> dict[str, pd.DataFrame]:
    """Rows of W2 squared and of its two parts, as far as the table has them."""
    rows = rows_of(geometry, "geometry", position)
    known = {name: select(rows, quantity=name) for name in PARTS}
    known = {name: own for name, own in known.items() if own["value"].notna().any()}
    if not known:
        raise NothingToDrawError("The geometry table has no w2_squared, w2_location or w2_bures.")
    return known


def w2_per_layer(geometry: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """W2 squared by layer: the total, its location part and its Bures part, each with null band and interval.

    Args:
        geometry: The table of `diagnose`.
    """
    known = parts(geometry, position)
    y = Axis(f"squared distance ({unit_of(next(iter(known.values())))})", zero=True)
    tints = _shares(known) if set(known) == set(PARTS) else []
    panels = []
    for name, own in known.items():
        elements = (*null_of(own, name), Line(name, PARTS[name], curve(own)))
        panels.append(Panel(TITLES[name], LAYER, y, (*tints, *elements) if name == "w2_squared" else elements))
    return described(panels, "geometry", height=1.45)


def _shares(known: dict[str, pd.DataFrame]) -> list[Area]:
    """Tints under the total: the location part at the bottom, the Bures part on top of it."""
    location, total = curve(known["w2_location"]), curve(known["w2_squared"])
    edges = [0 * location.value, location.value, total.value]
    return [
        Area(name, location.x, low, high, PARTS[name].color, f"of which {PARTS[name].label.split()[0]}")
        for name, low, high in zip(("w2_location", "w2_bures"), edges, edges[1:], strict=False)
    ]


def caption(geometry: pd.DataFrame, **_: object) -> str:
    """What `w2_per_layer` shows."""
    rows = pd.concat(parts(geometry).values())
    return (
        "Squared Bures-Wasserstein (2-Wasserstein between Gaussians) distance between harmful and "
        "harmless activations at the last captured token position, by layer: the total, its location part "
        "(squared distance of the means) and its Bures part (difference in covariance). Coloured bands: "
        "95 % bootstrap intervals over prompts. Grey: mean (dotted) and 95 % band of the same quantity "
        "under permuted class labels; both parts are biased upward when n is small against the width, so "
        f"only what lies above the grey counts. n = {counts(rows)} prompts."
    )
