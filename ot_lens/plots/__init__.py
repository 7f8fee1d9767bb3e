"""Figures: a table becomes a description, which is drawn on paper (matplotlib) or on a screen (plotly).

The functions here draw on paper: `w2_per_layer(geometry, style="icml")`. Their plotly counterparts are in
`ot_lens.plots.screen`, which is not imported here. Both take the tables and options of the functions in
`ot_lens.plots.figures`, which return the descriptions. No statistic is computed in this package.
"""

from ot_lens.plots.description import Description
from ot_lens.plots.figures.localization_curves import localization_curve as _localization_curve
from ot_lens.plots.gallery import GALLERY, Drawn, Entry, draw_all, entry_named, register_figure, save
from ot_lens.plots.measures import MEASURES, contenders
from ot_lens.plots.paper import STYLES, Style, canvas, drawing, rc, styled
from ot_lens.plots.style import CLASSES, METHODS, Mark, method_mark

class_angles = drawing(entry_named("class_angles").describe)
covariance_spectra = drawing(entry_named("covariance_spectra").describe)
diagnostics = drawing(entry_named("diagnostics").describe)
direction_cosines = drawing(entry_named("direction_cosines").describe)
effective_rank = drawing(entry_named("effective_rank").describe)
ground_truth = drawing(entry_named("ground_truth").describe)
layer_angles = drawing(entry_named("layer_angles").describe)
localization_controls = drawing(entry_named("localization_controls").describe)
localization_curves = drawing(entry_named("localization_curves").describe)
map_quality = drawing(entry_named("map_quality").describe)
method_comparison = drawing(entry_named("method_comparison").describe)
method_intervals = drawing(entry_named("method_intervals").describe)
pair_matrix = drawing(entry_named("pair_matrix").describe)
plane_by_depth = drawing(entry_named("plane_by_depth").describe)
principal_plane = drawing(entry_named("principal_plane").describe)
rank_by_layer = drawing(entry_named("rank_by_layer").describe)
run_cosines = drawing(entry_named("run_cosines").describe)
spectra_by_depth = drawing(entry_named("spectra_by_depth").describe)
strength_by_layer = drawing(entry_named("strength_by_layer").describe)
visibility_to_monitor = drawing(entry_named("visibility_to_monitor").describe)
w2_per_layer = drawing(entry_named("w2_per_layer").describe)
localization_curve = drawing(_localization_curve)

__all__ = [
    "CLASSES",
    "GALLERY",
    "MEASURES",
    "METHODS",
    "STYLES",
    "Description",
    "Drawn",
    "Entry",
    "Mark",
    "Style",
    "canvas",
    "class_angles",
    "contenders",
    "covariance_spectra",
    "diagnostics",
    "direction_cosines",
    "draw_all",
    "effective_rank",
    "ground_truth",
    "layer_angles",
    "localization_controls",
    "localization_curve",
    "localization_curves",
    "map_quality",
    "method_comparison",
    "method_intervals",
    "method_mark",
    "pair_matrix",
    "plane_by_depth",
    "principal_plane",
    "rank_by_layer",
    "rc",
    "register_figure",
    "run_cosines",
    "save",
    "spectra_by_depth",
    "strength_by_layer",
    "styled",
    "visibility_to_monitor",
    "w2_per_layer",
]
