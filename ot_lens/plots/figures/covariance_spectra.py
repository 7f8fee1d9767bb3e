"""Covariance spectra of both classes, by layer."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Description, Line, Panel, described
from ot_lens.plots.rows import at_position, checked, counts, curve, layers_of, numbers, some, spread_out, unit_of
from ot_lens.plots.style import CLASSES
from ot_lens.tables import select

MOST_PANELS, MOST_FRAMES = 8, 24


def positive(spectra: pd.DataFrame, position: int | str | None = None) -> pd.DataFrame:
    """Rows with an eigenvalue that a logarithmic axis can show, with `rank` = component + 1."""
    rows = at_position(checked(spectra, "spectra"), position)
    rows = rows[numbers(rows["eigenvalue"]) > 0]
    return some(rows.assign(rank=rows["component"] + 1), "positive eigenvalue", "eigenvalue")


def covariance_spectra(
    spectra: pd.DataFrame,
    *,
    layers: Sequence[int] | None = None,
    layer: int | None = None,
    position: int | str | None = None,
    slider: bool = False,
) -> Description:
    """Eigenvalues of both class covariances, both axes logarithmic: one panel per layer, or a slider.

    Args:
        spectra: The table of `geometry.spectra`.
        layers: Layers on paper; eight evenly over the depth if None.
        layer: The layer that a screen shows first; the middle one if None.
        slider: Whether to describe the other layers as well, for a slider on a screen.
    """
    rows = positive(spectra, position)
    known = layers_of(rows)
    on_paper = tuple(layers) if layers is not None else tuple(spread_out(known, MOST_PANELS))
    frames = sorted({*(spread_out(known, MOST_FRAMES) if slider else ()), *on_paper})
    values = np.log10(numbers(select(rows, layer=frames)["eigenvalue"]))
    limits = (10 ** (float(values.min()) - 0.2), 10 ** (float(values.max()) + 0.2))
    y = Axis(f"eigenvalue ({unit_of(rows)})", "log", limits)
    first = layer if layer in frames else frames[len(frames) // 2]
    return described(
        [_panel(select(rows, layer=frame), frame, y) for frame in frames], "spectra", columns=4, share="xy",
        slider="layer", frames=on_paper, first=first, letters=False, height=1.15,
    )  # fmt: skip


def _panel(rows: pd.DataFrame, layer: int, y: Axis) -> Panel:
    lines = [
        Line(f"{label}/{layer}", mark, curve(own, x="rank", value="eigenvalue"), markers=False)
        for label, mark in CLASSES.items()
        if len(own := select(rows, **{"class": label}))
    ]
    return Panel("", Axis("component", "log"), y, tuple(lines), frame=layer)


def caption(spectra: pd.DataFrame, *, screen: bool = False, **_: object) -> str:
    """What `covariance_spectra` shows, on paper or on a screen."""
    rows = positive(spectra)
    layers = layers_of(rows)
    chosen = spread_out(layers, MOST_PANELS)
    which = f"{len(chosen)} of {len(layers)} layers, evenly over the depth"
    which = "the layer chosen with the slider" if screen else "each layer" if chosen == layers else which
    return (
        f"Eigenvalues of the covariance of harmful and of harmless activations in {which} ({unit_of(rows)}), "
        "in descending order; both axes are logarithmic. Bands: 95 % bootstrap intervals over prompts. n "
        f"= {counts(rows)} prompts per class; a sample covariance has at most n - 1 components. "
        "A layer whose activations do not vary is left out."
    )
