"""Distances, spectra and directions for the screen."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from ot_lens.plots.directions import MOST_NUMBERS, by_chance, cosine_matrix
from ot_lens.plots.distances import TITLES, parts, unit_of
from ot_lens.plots.rows import curve, layers_of, spread_out
from ot_lens.plots.screen.panels import Panel, add_layer_slider, add_legend, panel_figure, plain
from ot_lens.plots.screen.traces import band, hover_text, line, null_band, on_screen
from ot_lens.plots.spectra import positive
from ot_lens.plots.style import CLASSES, PARTS

MOST_LAYERS = 24


def w2_per_layer(geometry: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """W2 squared by layer and its two parts, each with null band and interval.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    found = parts(geometry, position)
    y = {"title": {"text": f"squared distance ({plain(unit_of(found))})"}, "rangemode": "tozero"}
    titles = [TITLES[name].replace("$W_2^2$", "W<sub>2</sub><sup>2</sup>") for name in found]
    panels = [Panel("", {"title": {"text": "layer"}, "tickformat": "d"}, y) for _ in titles]
    figure = panel_figure(panels, columns=3)
    for note, title in zip(figure.layout.annotations, titles, strict=True):
        note.text = f"<b>{title}</b>"
    for panel, (name, rows) in enumerate(found.items()):
        figure.add_traces(_part(name, rows, panel))
    return add_legend(figure)


def _part(name: str, rows: pd.DataFrame, panel: int) -> list[go.Scatter]:
    mark, drawn, traces = PARTS[name], curve(rows), []
    null = curve(rows, value="null_mean", band=("null_low", "null_high")) if "null_mean" in rows else None
    if null is not None and np.isfinite(null.value).any():
        traces += null_band(null, panel, legend=panel == 0)
    ordered = rows.sort_values("layer", kind="stable")
    hover = [
        f"layer {row['layer']}: {text}<br>permuted labels {row.get('null_mean', np.nan):.3g}"
        for row, text in zip(ordered.to_dict("records"), hover_text(mark.label, ordered), strict=True)
    ]
    return [*traces, band(drawn, mark.color, panel, mark.label), line(drawn, mark, panel, hover)]


def covariance_spectra(
    spectra: pd.DataFrame, *, layer: int | None = None, position: int | str | None = None
) -> go.Figure:
    """Eigenvalues of both class covariances; a slider goes through the layers.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    rows = positive(spectra, position)
    layers = spread_out(layers_of(rows), MOST_LAYERS)
    shown = layer if layer in layers else layers[len(layers) // 2]
    unit = str(rows["unit"].iloc[0]) if "unit" in rows else "squared activation units"
    axes = {"type": "log", "dtick": 1, "exponentformat": "power"}
    values = rows["eigenvalue"].to_numpy(float)
    span = [float(np.log10(values.min())) - 0.2, float(np.log10(values.max())) + 0.2]
    y = axes | {"title": {"text": f"eigenvalue ({plain(unit)})"}, "range": span}
    figure = panel_figure([Panel("", axes | {"title": {"text": "component"}}, y)], columns=1, row=340)
    owners: list[int] = []
    for here in layers:
        traces = _spectrum(rows[rows["layer"] == here])
        owners += [here] * len(traces)
        figure.add_traces(traces)
    if len(layers) > 1:
        add_layer_slider(figure, owners, layers, shown)
    return figure


def _spectrum(rows: pd.DataFrame) -> list[go.Scatter]:
    traces = []
    for label, mark in CLASSES.items():
        part = rows[rows["class"] == label]
        drawn = on_screen(curve(part, x="rank", value="eigenvalue"))
        hover = f"{label}, component %{{x}}<br>%{{y:.3g}}"
        hover += " [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>"
        ends = {"customdata": np.stack([drawn.low, drawn.high], axis=1), "hovertemplate": hover}
        traces += [band(drawn, mark.color, 0, label), line(drawn, mark, 0, None, mode="lines", **ends)]
    return traces


def direction_cosines(cosines: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """Heat map, layer by layer, of the cosine between refusal directions.

    Raises:
        TableError: a column is missing, or there is nothing to draw.
    """
    layers, matrix = cosine_matrix(cosines, position)
    names = [str(layer) for layer in layers]
    axis = {
        "title": {"text": "layer"},
        "type": "category",
        "nticks": 16,
        "constrain": "domain",
        "showgrid": False,
    }
    figure = panel_figure([Panel("", axis, axis | {"scaleanchor": "x1"})], columns=1, row=440)
    bounds, hover = _bounds(cosines, position)
    small = len(layers) <= MOST_NUMBERS
    figure.add_trace(
        go.Heatmap(
            x=names,
            y=names,
            z=matrix,
            zmin=-1,
            zmax=1,
            colorscale="RdBu",
            reversescale=True,
            colorbar={"title": {"text": "cosine"}, "thickness": 14, "len": 0.9},
            hovertemplate=hover,
            customdata=np.stack(bounds, axis=-1) if bounds else None,
            text=_cells(matrix, by_chance(cosines, matrix, position)) if small else None,
            texttemplate="%{text}" if small else None,
            textfont={"size": 11},
        )
    )
    return figure.update_layout(showlegend=False, plot_bgcolor="rgba(128,128,128,0.14)")


def _cells(
    matrix: Float[np.ndarray, "layers layers"], chance: Bool[np.ndarray, "layers layers"]
) -> list[list[str]]:
    """Numbers to write into the cells: bold where permuted labels do not explain them."""
    texts = [[f"{value:.2f}" if np.isfinite(value) else "" for value in row] for row in matrix]
    return [
        [text if by_luck else f"<b>{text}</b>" for text, by_luck in zip(*pair, strict=True)]
        for pair in zip(texts, chance, strict=True)
    ]


def _bounds(
    cosines: pd.DataFrame, position: int | str | None
) -> tuple[list[Float[np.ndarray, "layers layers"]], str]:
    """Ends of the interval and of the null band, where the table has them, and the hover text for them."""
    matrices: list[np.ndarray] = []
    text = "layers %{x} and %{y}: %{z:.3f}"
    for low, high, name in (("low", "high", "95 % interval"), ("null_low", "null_high", "permuted labels")):
        if low in cosines and high in cosines and cosines[low].notna().any():
            at = len(matrices)
            text += f"<br>{name} [%{{customdata[{at}]:.3f}}, %{{customdata[{at + 1}]:.3f}}]"
            matrices += [cosine_matrix(cosines, position, end)[1].astype(np.float32) for end in (low, high)]
    return matrices, text + "<extra></extra>"
