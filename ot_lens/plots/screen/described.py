"""The screen figures whose panels paper and screen share: each only chooses the renderer."""

import pandas as pd
import plotly.graph_objects as go

from ot_lens.plots import (
    angles,
    controls,
    dimensions,
    embedded,
    grids,
    other_run,
    quality,
    spectra,
    visibility,
)
from ot_lens.plots.screen.curve_panels import curve_screen
from ot_lens.plots.screen.heat_panels import heat_screen


def effective_rank(geometry: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """Effective rank and participation ratio of each class by layer; see `ot_lens.plots.effective_rank`."""
    return curve_screen(dimensions.dimension_panels(geometry, position), columns=2)


def class_angles(class_angles: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """Principal angles between the classes by layer; see `ot_lens.plots.class_angles`."""
    return curve_screen(angles.class_panels(class_angles, position), columns=2)


def layer_angles(layer_angles: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """Largest principal angle between layers, one panel a class; see `ot_lens.plots.layer_angles`."""
    return heat_screen(angles.layer_panels(layer_angles, position))


def localization_controls(controls_table: pd.DataFrame) -> go.Figure:
    """Shift of the refusal score against its controls; see `ot_lens.plots.localization_controls`."""
    return curve_screen(controls.control_panels(controls_table))


def map_quality(map_quality: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """Maps on held-out prompts, one panel a quantity; see `ot_lens.plots.map_quality`."""
    return curve_screen(quality.quality_panels(map_quality, position))


def visibility_to_monitor(visibility_table: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """How visible an edit is at the last layer; see `ot_lens.plots.visibility_to_monitor`."""
    return curve_screen(visibility.visibility_panels(visibility_table, position))


def ground_truth(ground_truth: pd.DataFrame) -> go.Figure:
    """Known by construction and measured; see `ot_lens.plots.ground_truth`."""
    return curve_screen(embedded.truth_panels(ground_truth))


def run_cosines(run_cosines: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """Refusal directions against another run's; see `ot_lens.plots.run_cosines`."""
    return heat_screen(other_run.run_panels(run_cosines, position), columns=1)


def pair_matrix(localization: pd.DataFrame) -> go.Figure:
    """Refusal score under edits at two layers; see `ot_lens.plots.pair_matrix`."""
    return heat_screen(grids.pair_panels(localization))


def rank_by_layer(localization: pd.DataFrame) -> go.Figure:
    """What PCA-OT does by layer and rank; see `ot_lens.plots.rank_by_layer`."""
    return heat_screen(grids.rank_panels(localization), columns=3)


def strength_by_layer(localization: pd.DataFrame) -> go.Figure:
    """Share refused by layer and strength; see `ot_lens.plots.strength_by_layer`."""
    return heat_screen(grids.strength_panels(localization), columns=3)


def spectra_by_depth(spectra_table: pd.DataFrame, *, position: int | str | None = None) -> go.Figure:
    """Both class spectra over the whole depth; see `ot_lens.plots.spectra_by_depth`."""
    return heat_screen(spectra.depth_panels(spectra_table, position))
