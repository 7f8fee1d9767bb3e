"""Principal angles: between the classes by depth, and between layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.curve_panels import curve_figure
from ot_lens.plots.heat_panels import heat_figure
from ot_lens.plots.panels import CurvePanel, HeatPanel, Scale, Series, matrix_of, null_of, without_empty
from ot_lens.plots.rows import at_position, checked, counts, curve, some
from ot_lens.plots.style import CLASSES, NULL, Mark

COLUMNS = ("layer", "component", "angle")
LAYER_COLUMNS = ("layer_a", "layer_b", "class", "component", "angle")
ORDINALS = ("smallest", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
LOOKS = ("#7B5AA6", "circle", "solid"), ("#4C72B0", "square", "dash"), ("#B5762A", "diamond", "dot")
ANGLE = Scale("angle (degrees)", 0.0, 90.0, (0.0, 30.0, 60.0, 90.0))


def component_mark(component: int, count: int) -> Mark:
    """The look of one principal angle among `count`."""
    color, marker, dash = LOOKS[min(component, len(LOOKS) - 1)]
    last = component == count - 1 and count > 1
    name = "largest" if last else ORDINALS[min(component, len(ORDINALS) - 1)]
    return Mark(f"{name} angle", color, marker, dash)


def class_panels(class_angles: pd.DataFrame, position: int | str | None = None) -> list[CurvePanel]:
    """One panel for each principal angle between the classes.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = some(at_position(checked(class_angles, "class_angles", COLUMNS), position), "angle", "angle")
    components = sorted(int(component) for component in rows["component"].unique())
    panels = [_class_panel(rows, component, len(components)) for component in components]
    return without_empty(panels)


def _class_panel(rows: pd.DataFrame, component: int, count: int) -> CurvePanel:
    mark = component_mark(component, count)
    part = rows[rows["component"] == component]
    name = f"class_angle_{component}"
    series = Series(name, mark, curve(part, value="angle"))
    return CurvePanel(mark.label, "angle (degrees)", (series,), null_of(part, name), limits=(0.0, 90.0))


def class_angles(
    class_angles: pd.DataFrame,
    *,
    position: int | str | None = None,
    style: str = "icml",
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Principal angles between the leading subspaces of the two classes by layer, one panel an angle.

    Args:
        class_angles: the table of `geometry.class_angles`.
        position: token position; the last in the table when None.
        style: "icml", "neurips" or "wide".
        axes: one axes an angle, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    return curve_figure(class_panels(class_angles, position), style=style, axes=axes, columns=2)


def caption_classes(class_angles: pd.DataFrame, **_: Any) -> str:
    """What `class_angles` shows."""
    k = len(class_panels(class_angles))
    return (
        f"Principal angles between the spaces of the {class_angles['component'].nunique()} leading "
        "principal components of harmful and of harmless activations, by layer"
        f"{', one panel an angle' if k > 1 else ''}. Coloured bands: 95 % bootstrap intervals over prompts. "
        f"Grey ({NULL.label}): mean (dotted) and 95 % band of the same angle between two samples that differ "
        "by chance alone; only an angle above it says that the classes vary along other directions. "
        f"n = {counts(class_angles)} prompts of both classes."
    )


def layer_panels(layer_angles: pd.DataFrame, position: int | str | None = None) -> list[HeatPanel]:
    """One panel a class: the largest principal angle between the subspaces of two layers.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = some(at_position(checked(layer_angles, "layer_angles", LAYER_COLUMNS), position), "angle", "angle")
    rows = rows[rows["component"] == rows["component"].max()]
    layers = sorted({int(n) for name in ("layer_a", "layer_b") for n in rows[name].unique()})
    panels = [_layer_panel(rows[rows["class"] == label], label, layers) for label in CLASSES]
    panels = [panel for panel in panels if np.isfinite(panel.matrix).any()]
    if not panels:
        raise NothingToDrawError("no finite angle in the table")
    return panels


def _layer_panel(rows: pd.DataFrame, label: str, layers: list[int]) -> HeatPanel:
    names = [str(layer) for layer in layers]
    matrix = matrix_of(rows, "layer_a", "layer_b", "angle", (layers, layers))
    chance = None
    if "null_low" in rows:
        low = matrix_of(rows, "layer_a", "layer_b", "null_low", (layers, layers))
        chance = (matrix >= low) & ~np.eye(len(layers), dtype=bool)
    return HeatPanel(f"{label} activations", matrix, names, names, "layer", "layer", ANGLE, chance=chance)


def layer_angles(
    layer_angles: pd.DataFrame,
    *,
    position: int | str | None = None,
    style: str = "icml",
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Heat maps, layer by layer, of the largest principal angle between leading subspaces, one panel a class.

    Args:
        layer_angles: tables of `geometry.layer_angles`, of one class or of both.
        position: token position; the last in the table when None.
        style: "icml", "neurips" or "wide".
        axes: one axes a class, to draw into one's own layout.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    return heat_figure(layer_panels(layer_angles, position), style=style, axes=axes)


def caption_layers(layer_angles: pd.DataFrame, **_: Any) -> str:
    """What `layer_angles` shows."""
    blank = any(np.isnan(panel.matrix).any() for panel in layer_panels(layer_angles))
    return (
        "Largest principal angle between the spaces of the "
        f"{layer_angles['component'].nunique()} leading principal components at two layers, a panel a class. "
        "Bold, or outside the thin line: smaller than the 95 % band of two random subspaces of that "
        f"dimension. {'Grey: too few dimensions at that layer. ' if blank else ''}"
        f"n = {counts(layer_angles)} prompts a class; the table holds the bootstrap intervals."
    )
