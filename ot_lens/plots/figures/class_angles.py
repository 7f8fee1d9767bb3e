"""Principal angles between the classes, by layer."""

import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, described
from ot_lens.plots.rows import counts, curve, null_of, rows_of
from ot_lens.plots.style import NULL, Mark
from ot_lens.tables import select

ORDINALS = ("smallest", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
LOOKS = ("#7B5AA6", "circle", "solid"), ("#4C72B0", "square", "dash"), ("#B5762A", "diamond", "dot")


def class_angles(class_angles: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Principal angles between the leading subspaces of the two classes by layer, one panel per angle.

    Args:
        class_angles: The table of `geometry.class_angles`.
    """
    rows = rows_of(class_angles, "class_angles", position)
    components = sorted({int(n) for n in rows["component"]})
    panels = [_panel(select(rows, component=n), n, len(components)) for n in components]
    return described(panels, "class_angles", columns=2)


def _panel(rows: pd.DataFrame, component: int, count: int) -> Panel:
    last = component == count - 1 and count > 1
    ordinal = "largest" if last else ORDINALS[min(component, len(ORDINALS) - 1)]
    mark, name = Mark(f"{ordinal} angle", *LOOKS[min(component, len(LOOKS) - 1)]), f"class_angle_{component}"
    y = Axis("angle (degrees)", limits=(0.0, 90.0))
    return Panel(mark.label, LAYER, y, (*null_of(rows, name), Line(name, mark, curve(rows, value="angle"))))


def caption(class_angles: pd.DataFrame, **_: object) -> str:
    """What `class_angles` shows."""
    k = class_angles["component"].nunique()
    return (
        f"Principal angles between the spaces of the {k} leading "
        "principal components of harmful and of harmless activations, by layer"
        f"{', one panel per angle' if k > 1 else ''}. Coloured bands: 95 % bootstrap intervals over prompts. "
        f"Grey ({NULL.label}): mean (dotted) and 95 % band of the same angle between two samples that differ "
        "by chance alone; only an angle above it says that the classes vary along other directions. "
        f"n = {counts(class_angles)} prompts of both classes."
    )
