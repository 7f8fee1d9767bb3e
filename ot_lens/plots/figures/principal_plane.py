"""Optimal transport and projection in the plane of the first two principal components."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.errors import TableError
from ot_lens.plots.description import Arrows, Axis, Curve, Description, Ellipse, Key, Panel, Points, described
from ot_lens.plots.rows import at_position, checked, counts, layers_of, numbers, some, spread_out
from ot_lens.plots.style import CLASSES, Mark, method_mark, method_order, split_label
from ot_lens.tables import select

COLUMNS = ("layer", "prompt", "class", "state", "pc1", "pc2")
ELLIPSE_COLUMNS = ("layer", "class", "state", "mean1", "mean2", "cov11", "cov12", "cov22")
MOST_ARROWS, MOST_FRAMES = 24, 12
BEFORE = "before"
KEYS = (
    *(Key(m.label, m.color, m.marker, m.dash, hollow=m.marker == "square", size=3.4) for m in CLASSES.values()),
    Key("harmful, moved (method's colour)", "#666666", "diamond", "solid", size=3.4),
    Key("harmless, moved the same way", CLASSES["harmless"].color, dash="dot"),
)


def principal_plane(
    plane: pd.DataFrame,
    ellipses: pd.DataFrame,
    *,
    layer: int | None = None,
    states: Sequence[str] | None = None,
    position: int | str | None = None,
    slider: bool = False,
) -> Description:
    """Harmful, harmless and moved activations, one panel per edit, with 95 % ellipses and displacements.

    Args:
        plane: Points, the first table of `geometry.principal_plane`.
        ellipses: Means and covariances, the second.
        layer: The layer on paper, and first on a screen; the middle one if None.
        states: Edits to show; all of the table if None.
        position: Token position; the last in the table if None.
        slider: Whether to describe the other layers as well, for a slider on a screen.

    Raises:
        TableError: If a column is missing, the layer is not in the table, or there is nothing to draw.
    """
    chosen, points, _ = plane_rows(plane, ellipses, layer, position)
    edits: list[str] = list(states) if states is not None else states_of(points)
    others = spread_out(layers_of(plane), MOST_FRAMES) if slider else []
    frames = sorted({*others, chosen})
    panels: list[Panel] = []
    for frame in frames:
        _, here, outlines = plane_rows(plane, ellipses, frame, position)
        limits = plane_limits(here, outlines)
        titles = axis_titles(outlines)
        axes = (Axis(titles[0], limits=limits[0]), Axis(titles[1], limits=limits[1]))
        panels += [plane_panel(here, outlines, edit, frame, axes) for edit in edits or (None,)]
    columns = max(len(edits), 1) if len(edits) <= 4 else 3
    return described(
        panels, "plane", columns=columns, share="xy", keys=KEYS, collect=False, letters=False, slider="layer",
        frames=(chosen,), first=chosen,
    )  # fmt: skip


def plane_panel(
    points: pd.DataFrame,
    outlines: pd.DataFrame,
    state: str | None,
    layer: int,
    axes: tuple[Axis, Axis],
    arrows: int = MOST_ARROWS,
) -> Panel:
    """Both classes at one layer and one edit of them; None for both classes as they are."""
    elements: list[Any] = []
    for label, mark in CLASSES.items():
        elements += _cloud(points, outlines, label, BEFORE, mark, faint=state is not None)
    if state is None:
        return Panel("activations", *axes, tuple(elements), frame=layer, equal=True)
    mark = method_mark(state)
    elements.append(Arrows(f"arrows:{state}", displacements(points, state, arrows), group=mark.label))
    elements += _cloud(points, outlines, "harmful", state, mark, faint=False)
    elements += _outline(outlines, "harmless", state, CLASSES["harmless"].color, "dot", mark.label)
    elements += _mean_arrow(outlines, state, mark.label)
    return Panel(mark.label, *axes, tuple(elements), frame=layer, color=mark.color, equal=True)


def _cloud(
    points: pd.DataFrame, outlines: pd.DataFrame, label: str, state: str, mark: Mark, *, faint: bool
) -> list[Any]:
    here = select(points, **{"class": label}, state=state)
    missing = np.full(len(here), np.nan)
    curve = Curve(numbers(here["pc1"]), numbers(here["pc2"]), missing, missing)
    note = f"{label} prompt" if state == BEFORE else f"{label}, moved: prompt"
    ids = tuple(int(prompt) for prompt in here["prompt"])
    # Open squares for harmless: in a grey print the shapes alone would be hard to tell apart at this size.
    look: dict[str, Any] = {"hollow": label == "harmless", "faint": faint, "size": 2.4, "legend": False}
    dash = mark.dash if state == BEFORE else "solid"
    return [
        Points(f"points:{label}/{state}", mark, curve, notes=(note,), ids=ids, **look),
        *_outline(outlines, label, state, mark.color, dash, mark.label),
    ]


def ellipse(row: Mapping[Any, Any], name: str = "", color: str = "", dash: str = "solid", group: str = "") -> Ellipse:
    """The ellipse of one row."""
    cov = ((row["cov11"], row["cov12"]), (row["cov12"], row["cov22"]))
    return Ellipse(name, color, (row["mean1"], row["mean2"]), cov, dash, group)


def _outline(
    outlines: pd.DataFrame, label: str, state: str, color: str, dash: str, group: str
) -> list[Ellipse]:
    rows = records(select(outlines, **{"class": label}, state=state))
    return [ellipse(row, f"ellipse:{label}/{state}", color, dash, group) for row in rows]


def _mean_arrow(outlines: pd.DataFrame, state: str, group: str) -> list[Arrows]:
    harmful = select(outlines, **{"class": "harmful"}).set_index("state")[["mean1", "mean2"]]
    if not {BEFORE, state} <= set(harmful.index):
        return []
    start, end = (harmful.loc[name].to_numpy(float) for name in (BEFORE, state))
    return [Arrows(f"mean:{state}", np.concatenate([start, end - start])[None], thick=True, group=group)]


def records(outlines: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows with a finite covariance, as mappings."""
    return [row for row in outlines.to_dict("records") if np.isfinite([row["mean1"], row["cov11"]]).all()]


def states_of(plane: pd.DataFrame) -> list[str]:
    """Labels of the edits in the table, projections first."""
    labels = [str(state) for state in plane["state"].unique() if state != BEFORE]
    return sorted(labels, key=lambda label: method_order(*split_label(label)))


def plane_rows(
    plane: pd.DataFrame,
    ellipses: pd.DataFrame,
    layer: int | None,
    position: int | str | None = None,
) -> tuple[int, pd.DataFrame, pd.DataFrame]:
    """The layer (the middle one when None) and its rows of both tables.

    Raises:
        TableError: a column is missing, the layer is not in the table, or there is nothing to draw.
    """
    points = some(at_position(checked(plane, "plane", COLUMNS), position), "point", "pc1")
    layers = layers_of(points)
    chosen = layers[len(layers) // 2] if layer is None else layer
    if chosen not in layers:
        raise TableError(f"layer {chosen} is not in the plane table: it has {', '.join(map(str, layers))}")
    outlines = at_position(checked(ellipses, "plane_ellipses", ELLIPSE_COLUMNS), position)
    return chosen, points[points["layer"] == chosen], outlines[outlines["layer"] == chosen]


def displacements(points: pd.DataFrame, state: str, most: int = MOST_ARROWS) -> Float[np.ndarray, "arrows 4"]:
    """Rows (x, y, dx, dy) from where harmful prompts stood to where the edit puts them, `most` at most."""
    harmful = points[points["class"] == "harmful"]
    before, after = (
        harmful[harmful["state"] == name].set_index("prompt")[["pc1", "pc2"]].dropna()
        for name in (BEFORE, state)
    )
    both = before.index.intersection(after.index, sort=False)
    both = both[spread(len(both), most)]
    start, end = before.loc[both].to_numpy(float), after.loc[both].to_numpy(float)
    return np.concatenate([start, end - start], axis=1)


def spread(n: int, most: int) -> list[int]:
    """At most `most` of `n` indices, evenly."""
    return [round(i) for i in np.linspace(0, n - 1, min(n, most))]


def plane_limits(
    points: pd.DataFrame, outlines: pd.DataFrame, shape: float = 0.55
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits that hold every point and outline; the panel is `shape` to 1 times as high as it is wide."""
    drawn = [ellipse(row).outline() for row in records(outlines)]
    xy = np.concatenate([points[["pc1", "pc2"]].to_numpy(float), *drawn])
    low, high = np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)
    half, centre = np.maximum((high - low) / 2, 1e-9) * 1.05, (high + low) / 2
    half = np.maximum(half, [half[1], shape * half[0]])
    x, y = ((float(c - h), float(c + h)) for c, h in zip(centre, half, strict=True))
    return x, y


def axis_titles(outlines: pd.DataFrame) -> tuple[str, str]:
    """Axis titles with the share of variance each component explains, where the table has it."""
    titles = []
    for number in (1, 2):
        name = f"pc{number}_share"
        share = numbers(outlines[name])[:1] if name in outlines else np.empty(0)
        titles.append(
            f"PC {number} ({100 * share[0]:.0f} % of variance)"
            if np.isfinite(share).any()
            else f"PC {number}"
        )
    return titles[0], titles[1]


def caption(plane: pd.DataFrame, ellipses: pd.DataFrame, *, layer: int | None = None, **_: Any) -> str:
    """What `principal_plane` shows."""
    chosen, _points, outlines = plane_rows(plane, ellipses, layer)
    return (
        f"Activations at layer {chosen} in the plane of the first two principal components of both classes "
        "together: harmful (circles), harmless (open squares), and the harmful ones as each edit moves them "
        "(method's marker). Ellipses hold 95 % of a Gaussian with the sample's mean and covariance; the "
        "dotted one is that of the harmless activations when the same edit is applied to them. Thin "
        f"arrows follow {MOST_ARROWS} prompts at most, the thick arrow the mean. Both axes have the same "
        f"scale. n = {counts(outlines)} prompts per class."
    )
