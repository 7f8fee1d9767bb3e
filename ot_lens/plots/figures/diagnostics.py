"""Quantities of the geometry table that a user registered (`register_diagnostic`)."""

import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.geometry.quantities import BUILT_IN
from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, described
from ot_lens.plots.rows import counts, curve, null_of, rows_of, unit_of
from ot_lens.plots.style import Mark
from ot_lens.tables import select

COLOUR = "#7B5AA6"
OURS = {quantity.name for quantity in BUILT_IN}


def diagnostics(
    geometry: pd.DataFrame, *, quantity: str | None = None, position: int | str | None = None
) -> Description:
    """Each registered quantity by layer, with its interval and null band.

    Args:
        geometry: The table of `diagnose`.
        quantity: A quantity of the table, registered or not; all registered ones if None.
    """
    rows = rows_of(geometry, "geometry", position)
    known = dict.fromkeys(rows["quantity"])
    names = [name for name in known if (name not in OURS if quantity is None else name == quantity)]
    if not names:
        raise NothingToDrawError(f"The geometry table holds no {quantity or 'registered diagnostic'}.")
    return described([quantity_panel(select(rows, quantity=name), name) for name in names], "geometry")


def quantity_panel(rows: pd.DataFrame, name: str) -> Panel:
    """One quantity by layer."""
    title, unit = name.replace("_", " "), unit_of(rows, "")
    line = Line(name, Mark(title, COLOUR, "circle"), curve(rows))
    y = Axis(f"{title} ({unit})" if unit else title)
    return Panel(title, LAYER, y, (*null_of(rows, name), line))


def caption(geometry: pd.DataFrame, **_: object) -> str:
    """What `diagnostics` shows."""
    rows = geometry[~geometry["quantity"].isin(OURS)]
    names = ", ".join(name.replace("_", " ") for name in dict.fromkeys(rows["quantity"]))
    return (
        f"Registered diagnostics by layer: {names}. Coloured bands: 95 % bootstrap intervals over prompts. "
        "Grey: mean (dotted) and 95 % band of the same quantity under permuted class labels. "
        f"n = {counts(rows)} prompts."
    )
