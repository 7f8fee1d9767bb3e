"""Optimal transport against projection in the plane of the first two principal components."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ot_lens.errors import TableError
from ot_lens.plots.canvas import canvas, style_named
from ot_lens.plots.rows import at_position, checked, counts, layers_of, numbers, some
from ot_lens.plots.style import CLASSES, Mark, method_mark, method_order, split_label

COLUMNS = ("layer", "prompt", "class", "state", "pc1", "pc2")
ELLIPSE_COLUMNS = ("layer", "class", "state", "mean1", "mean2", "cov11", "cov12", "cov22")
LEVEL = 0.95
MOST_ARROWS = 24
BEFORE = "before"


def ellipse_outline(
    row: Mapping[Any, Any], level: float = LEVEL, points: int = 120
) -> Float[np.ndarray, "points 2"]:
    """Outline of the set that holds `level` of a Gaussian with the row's mean and covariance.

    The squared Mahalanobis radius is the chi-square quantile with two degrees of freedom, -2 log(1 - level).
    A singular covariance, such as the one a projection leaves, gives a segment.
    """
    cov = np.array([[row["cov11"], row["cov12"]], [row["cov12"], row["cov22"]]], dtype=np.float64)
    values, vectors = np.linalg.eigh(cov)
    angle = np.linspace(0.0, 2 * np.pi, points)
    radii = np.sqrt(-2 * np.log(1 - level) * np.clip(values, 0.0, None))
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.array([row["mean1"], row["mean2"]], dtype=np.float64) + (circle * radii) @ vectors.T


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


def principal_plane(
    plane: pd.DataFrame,
    ellipses: pd.DataFrame,
    *,
    layer: int | None = None,
    states: Sequence[str] | None = None,
    position: int | str | None = None,
    style: str = "icml",
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Harmful, harmless and moved activations, one panel an edit, with 95 % ellipses and displacement arrows.

    Args:
        plane: points, the first table of `geometry.principal_plane`.
        ellipses: means and covariances, the second.
        layer: the middle layer of the table when None.
        states: edits to show; all of the table when None.
        position: token position; the last in the table when None.
        style: "icml", "neurips" or "wide".
        axes: one axes an edit, to draw into one's own layout.

    Raises:
        TableError: a column is missing, the layer is not in the table, or there is nothing to draw.
    """
    _, points, outlines = plane_rows(plane, ellipses, layer, position)
    shown = list(states) if states is not None else states_of(points)
    columns = max(len(shown), 1) if len(shown) <= 4 else 3
    shape = (-(-max(len(shown), 1) // columns), columns)
    limits = plane_limits(points, outlines)
    ratio = np.ptp(limits[1]) / np.ptp(limits[0])
    width = style_named(style).text * min(1.0, max(columns, 1.6) / 3)
    size = (width, shape[0] * (width - 0.4) / columns * ratio + 0.8)
    look: dict[str, Any] = {"layout": "compressed", "sharex": True, "sharey": True}
    with canvas(style, axes, shape, size, **look) as (figure, grid):
        for index, ax in enumerate(grid.flat):
            ax.set_visible(index < max(len(shown), 1))
            if index < max(len(shown), 1):
                draw_plane(ax, points, outlines, shown[index] if shown else None)
                ax.set(xlim=limits[0], ylim=limits[1], aspect="equal")
                ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
                ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        _labels(grid, len(shown), outlines)
        if axes is None:
            class_legend(figure, grid.flat[len(shown)] if 0 < len(shown) < grid.size else None)
    return figure


def draw_plane(
    ax: Axes,
    points: pd.DataFrame,
    outlines: pd.DataFrame,
    state: str | None,
    *,
    arrows: int = MOST_ARROWS,
    head: float = 8.0,
    title: bool = True,
) -> None:
    """Both classes of one layer, and one edit of them: points, ellipses, displacements.

    Args:
        ax: the axes.
        points: rows of one layer.
        outlines: rows of the same layer.
        state: the edit; None for both classes as they are.
        arrows: most prompts that are followed.
        head: size of the mean's arrow head in points.
        title: whether to write the edit's name above.
    """
    for label, mark in CLASSES.items():
        _cloud(ax, points, outlines, label, BEFORE, mark, faint=state is not None)
    if state is None:
        return
    mark = method_mark(state)
    _arrows(ax, points, state, arrows)
    _cloud(ax, points, outlines, "harmful", state, mark, faint=False)
    _outline(ax, outlines, "harmless", state, CLASSES["harmless"].color, ":")
    _mean_arrow(ax, outlines, state, head)
    if title:
        ax.set_title(mark.label, color=mark.color)


def _cloud(
    ax: Axes, points: pd.DataFrame, outlines: pd.DataFrame, label: str, state: str, mark: Mark, *, faint: bool
) -> None:
    here = points[(points["class"] == label) & (points["state"] == state)]
    # Open squares for harmless: on a grey print the shapes alone would be hard to tell at this size.
    hollow = label == "harmless"
    ax.plot(
        here["pc1"], here["pc2"], linestyle="none", marker=mark.mpl_marker, color=mark.color, markersize=2.4,
        markerfacecolor="none" if hollow else mark.color, markeredgewidth=0.5 if hollow else 0,
        alpha=0.45 if faint else 0.8, gid=f"points:{label}/{state}", zorder=2,
    )  # fmt: skip
    _outline(ax, outlines, label, state, mark.color, mark.mpl_dash if state == BEFORE else "-")


def _outline(ax: Axes, outlines: pd.DataFrame, label: str, state: str, color: str, dash: Any) -> None:
    for row in records(outlines[(outlines["class"] == label) & (outlines["state"] == state)]):
        x, y = ellipse_outline(row).T
        order = 4 if state == BEFORE else 3
        ax.plot(
            x, y, color=color, linestyle=dash, linewidth=1.1, gid=f"ellipse:{label}/{state}", zorder=order
        )


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


def _arrows(ax: Axes, points: pd.DataFrame, state: str, most: int) -> None:
    x, y, dx, dy = displacements(points, state, most).T
    ax.quiver(
        x, y, dx, dy, angles="xy", scale_units="xy", scale=1, color="#6B7280", units="inches", width=0.007,
        headwidth=4, headlength=5, headaxislength=4.5, alpha=0.8, zorder=2.5, gid=f"arrows:{state}",
    )  # fmt: skip


def _mean_arrow(ax: Axes, outlines: pd.DataFrame, state: str, head: float) -> None:
    harmful = outlines[outlines["class"] == "harmful"].set_index("state")[["mean1", "mean2"]]
    if {BEFORE, state} <= set(harmful.index):
        start, end = harmful.loc[BEFORE].to_numpy(float), harmful.loc[state].to_numpy(float)
        arrow = {"arrowstyle": "-|>", "color": "#222222", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
        arrow |= {"mutation_scale": head}
        ax.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=arrow, zorder=5)


def plane_limits(
    points: pd.DataFrame, outlines: pd.DataFrame, shape: float = 0.55
) -> list[tuple[float, float]]:
    """Limits that hold every point and outline; the panel is `shape` to 1 times as high as it is wide."""
    drawn = [ellipse_outline(row) for row in records(outlines)]
    xy = np.concatenate([points[["pc1", "pc2"]].to_numpy(float), *drawn])
    low, high = np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)
    half, centre = np.maximum((high - low) / 2, 1e-9) * 1.05, (high + low) / 2
    half = np.maximum(half, [half[1], shape * half[0]])
    return [(float(c - h), float(c + h)) for c, h in zip(centre, half, strict=True)]


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


def _labels(grid: np.ndarray, shown: int, outlines: pd.DataFrame) -> None:
    x, y = axis_titles(outlines)
    for index in range(max(shown, 1)):
        if index + grid.shape[1] >= shown:
            grid.flat[index].set_xlabel(x)
            grid.flat[index].tick_params(labelbottom=True)
    for ax in grid[:, 0]:
        ax.set_ylabel(y)


def class_legend(figure: Figure, free: Axes | None = None, columns: int = 4) -> None:
    """What the markers are: in the free cell of the grid if there is one, else under it."""
    kinds = [(mark.label, mark.mpl_marker, mark.color, mark.mpl_dash) for mark in CLASSES.values()]
    kinds.append(("harmful, moved (method's colour)", "D", "#666666", "-"))
    kinds.append(("harmless, moved the same way", "", CLASSES["harmless"].color, ":"))
    handles = [
        Line2D(
            [],
            [],
            linestyle=dash,
            linewidth=1.1,
            marker=marker,
            color=color,
            markersize=3.4,
            label=name,
            markerfacecolor="white" if marker == "s" else color,
        )
        for name, marker, color, dash in kinds
    ]
    if free is None:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        return
    free.set_visible(True)
    free.set_axis_off()
    free.legend(handles=handles, loc="center left")


def caption(plane: pd.DataFrame, ellipses: pd.DataFrame, *, layer: int | None = None, **_: Any) -> str:
    """What `principal_plane` shows."""
    chosen, _points, outlines = plane_rows(plane, ellipses, layer)
    return (
        f"Activations at layer {chosen} in the plane of the first two principal components of both classes "
        "together: harmful (circles), harmless (open squares), and the harmful ones as each edit moves them "
        "(method's marker). Ellipses hold 95 % of a Gaussian with the sample's mean and covariance; the "
        "dotted one is that of the harmless activations when the same edit is applied to them. Thin "
        f"arrows follow {MOST_ARROWS} prompts at most, the thick arrow the mean. Both axes have the same "
        f"scale. n = {counts(outlines)} prompts a class."
    )
