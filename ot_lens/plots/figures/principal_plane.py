"""Optimal transport and projection in the plane of the first two principal components."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.errors import TableError
from ot_lens.plots.description import Arrows, Axis, Curve, Description, Ellipse, Key, Panel, Points, described
from ot_lens.plots.rows import at_position, checked, counts, layers_of, numbers, rows_of, spread_out
from ot_lens.plots.style import CLASSES, Mark, method_mark, method_order, split_label
from ot_lens.tables import select

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
        slider: Whether to describe the other layers as well, for a slider on a screen.
    """
    points, outlines = plane_tables(plane, ellipses, position)
    [chosen] = layers_with(points, [layer])
    edits = states_of(select(points, layer=chosen)) if states is None else list(states)
    frames = sorted({*(spread_out(layers_of(points), MOST_FRAMES) if slider else ()), chosen})
    panels = [panel for frame in frames for panel in plane_panels(points, outlines, frame, edits)]
    return described(
        panels, "plane", columns=max(len(edits), 1) if len(edits) <= 4 else 3, share="xy", keys=KEYS,
        collect=False, letters=False, slider="layer", frames=(chosen,), first=chosen,
    )  # fmt: skip


def plane_tables(
    plane: pd.DataFrame, ellipses: pd.DataFrame, position: int | str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points and ellipses at one token position."""
    return rows_of(plane, "plane", position), at_position(checked(ellipses, "plane_ellipses"), position)


def layers_with(points: pd.DataFrame, layers: Sequence[int | None]) -> list[int]:
    """The layers, the middle one of the table for None; all must have points."""
    known = layers_of(points)
    chosen = [known[len(known) // 2] if layer is None else layer for layer in layers]
    absent = [str(layer) for layer in chosen if layer not in known]
    if absent:
        raise TableError(
            f"Layer {', '.join(absent)} is not in the plane table: it has {', '.join(map(str, known))}."
        )
    return chosen


def states_of(plane: pd.DataFrame) -> list[str]:
    """Labels of the edits in the table, projections first."""
    labels = [str(state) for state in plane["state"].unique() if state != BEFORE]
    return sorted(labels, key=lambda label: method_order(*split_label(label)))


def plane_panels(
    points: pd.DataFrame,
    ellipses: pd.DataFrame,
    layer: int,
    edits: Sequence[str],
    *,
    shape: float = 0.55,
    arrows: int = MOST_ARROWS,
) -> list[Panel]:
    """One panel per edit at a layer, or one without an edit; `shape` to 1 times as high as wide."""
    here, outlines = select(points, layer=layer), select(ellipses, layer=layer)
    clouds = (_cloud(here, outlines, k, BEFORE, mark, faint=bool(edits)) for k, mark in CLASSES.items())
    classes = [element for cloud in clouds for element in cloud]
    drawn = {edit: classes + _edit(here, outlines, edit, arrows) for edit in edits} or {"activations": classes}
    limits = _limits([element for elements in drawn.values() for element in elements], shape)
    x, y = (Axis(f"PC {n + 1}{_share(outlines, n + 1)}", limits=limits[n]) for n in (0, 1))
    marks = {edit: method_mark(edit) if edits else Mark(edit, "", "") for edit in drawn}
    return [
        Panel(marks[edit].label, x, y, tuple(elements), frame=layer, color=marks[edit].color, equal=True)
        for edit, elements in drawn.items()
    ]


def _edit(points: pd.DataFrame, outlines: pd.DataFrame, state: str, arrows: int) -> list[Any]:
    """The harmful class as an edit moves it, and the outline of the harmless one, moved the same way."""
    mark = method_mark(state)
    return [
        Arrows(f"arrows:{state}", displacements(points, state, arrows), group=mark.label),
        *_cloud(points, outlines, "harmful", state, mark, faint=False),
        *_outline(outlines, "harmless", state, CLASSES["harmless"].color, "dot", mark.label),
        *_mean_arrow(outlines, state, mark.label),
    ]


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


def _outline(
    outlines: pd.DataFrame, label: str, state: str, color: str, dash: str, group: str
) -> list[Ellipse]:
    """The ellipse of one class in one state, if it has a covariance."""
    rows, name = select(outlines, **{"class": label}, state=state), f"ellipse:{label}/{state}"
    moments = rows[["mean1", "mean2", "cov11", "cov12", "cov22"]].dropna().to_numpy(float)
    return [
        Ellipse(name, color, (mean1, mean2), ((a, b), (b, c)), dash, group) for mean1, mean2, a, b, c in moments
    ]


def _mean_arrow(outlines: pd.DataFrame, state: str, group: str) -> list[Arrows]:
    harmful = select(outlines, **{"class": "harmful"}).set_index("state")[["mean1", "mean2"]]
    if not {BEFORE, state} <= set(harmful.index):
        return []
    start, end = (harmful.loc[name].to_numpy(float) for name in (BEFORE, state))
    return [Arrows(f"mean:{state}", np.concatenate([start, end - start])[None], thick=True, group=group)]


def displacements(points: pd.DataFrame, state: str, most: int = MOST_ARROWS) -> Float[np.ndarray, "arrows 4"]:
    """Rows (x, y, dx, dy) from where harmful prompts stood to where the edit puts them, `most` at most."""
    harmful = select(points, **{"class": "harmful"}).dropna(subset=["pc1", "pc2"])
    before, after = (select(harmful, state=name) for name in (BEFORE, state))
    _, first, second = np.intersect1d(before["prompt"], after["prompt"], return_indices=True)
    chosen = np.argsort(first)[spread_out(range(len(first)), most)]
    start = before[["pc1", "pc2"]].to_numpy(float)[first[chosen]]
    end = after[["pc1", "pc2"]].to_numpy(float)[second[chosen]]
    return np.concatenate([start, end - start], axis=1)


def _limits(elements: Sequence[Any], shape: float) -> list[tuple[float, float]]:
    """Limits of both axes that hold every point and outline."""
    drawn = [np.stack([e.curve.x, e.curve.value], axis=1) for e in elements if isinstance(e, Points)]
    xy = np.concatenate(drawn + [e.outline() for e in elements if isinstance(e, Ellipse)])
    low, high = np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)
    half, centre = np.maximum((high - low) / 2, 1e-9) * 1.05, (high + low) / 2
    half = np.maximum(half, [half[1], shape * half[0]])
    return [(float(c - h), float(c + h)) for c, h in zip(centre, half, strict=True)]


def _share(outlines: pd.DataFrame, number: int) -> str:
    """The share of variance that a component explains, where the table has it."""
    share = numbers(outlines.get(f"pc{number}_share", pd.Series(dtype=float)).iloc[:1])
    return f" ({100 * share[0]:.0f} % of variance)" if np.isfinite(share).any() else ""


def caption(plane: pd.DataFrame, ellipses: pd.DataFrame, *, layer: int | None = None, **_: object) -> str:
    """What `principal_plane` shows."""
    points, outlines = plane_tables(plane, ellipses)
    [chosen] = layers_with(points, [layer])
    return (
        f"Activations at layer {chosen} in the plane of the first two principal components of both classes "
        "together: harmful (circles), harmless (open squares), and the harmful ones as each edit moves them "
        "(method's marker). Ellipses hold 95 % of a Gaussian with the sample's mean and covariance; the "
        "dotted one is that of the harmless activations when the same edit is applied to them. Thin "
        f"arrows follow {MOST_ARROWS} prompts at most, the thick arrow the mean. Both axes have the same "
        f"scale. n = {counts(select(outlines, layer=chosen))} prompts per class."
    )
