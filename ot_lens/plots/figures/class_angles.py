"""Principal angles between the classes, by layer."""

from typing import Any

import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, described
from ot_lens.plots.rows import at_position, checked, counts, curve, null_of, some
from ot_lens.plots.style import NULL, Mark
from ot_lens.tables import select

COLUMNS = ("layer", "component", "angle")
ORDINALS = ("smallest", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
LOOKS = ("#7B5AA6", "circle", "solid"), ("#4C72B0", "square", "dash"), ("#B5762A", "diamond", "dot")


def component_mark(component: int, count: int) -> Mark:
    """The look of one principal angle among `count`."""
    color, marker, dash = LOOKS[min(component, len(LOOKS) - 1)]
    last = component == count - 1 and count > 1
    name = "largest" if last else ORDINALS[min(component, len(ORDINALS) - 1)]
    return Mark(f"{name} angle", color, marker, dash)


def class_angles(class_angles: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Principal angles between the leading subspaces of the two classes by layer, one panel per angle.

    Args:
        class_angles: The table of `geometry.class_angles`.
        position: Token position; the last in the table if None.

    Raises:
        TableError: If a column is missing or there is nothing to draw.
    """
    rows = some(at_position(checked(class_angles, "class_angles", COLUMNS), position), "angle", "angle")
    components = sorted(int(component) for component in rows["component"].unique())
    panels = [_panel(rows, component, len(components)) for component in components]
    return described(panels, "class_angles", columns=2)


def _panel(rows: pd.DataFrame, component: int, count: int) -> Panel:
    mark, name = component_mark(component, count), f"class_angle_{component}"
    angles = select(rows, component=component)
    line = Line(name, mark, curve(angles, value="angle"))
    return Panel(
        mark.label, LAYER, Axis("angle (degrees)", limits=(0.0, 90.0)), (*null_of(angles, name), line)
    )


def caption(class_angles: pd.DataFrame, **_: Any) -> str:
    """What `class_angles` shows."""
    k = class_angles["component"].nunique()
    return (
        f"Principal angles between the spaces of the {class_angles['component'].nunique()} leading "
        "principal components of harmful and of harmless activations, by layer"
        f"{', one panel per angle' if k > 1 else ''}. Coloured bands: 95 % bootstrap intervals over prompts. "
        f"Grey ({NULL.label}): mean (dotted) and 95 % band of the same angle between two samples that differ "
        "by chance alone; only an angle above it says that the classes vary along other directions. "
        f"n = {counts(class_angles)} prompts of both classes."
    )
