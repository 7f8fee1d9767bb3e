"""Descriptions on a screen, with plotly: the same tables and colours as on paper."""

from ot_lens.plots.gallery import entry_named
from ot_lens.plots.screen.layout import stacked
from ot_lens.plots.screen.render import draw, showing

class_angles = showing(entry_named("class_angles"))
covariance_spectra = showing(entry_named("covariance_spectra"))
diagnostics = showing(entry_named("diagnostics"))
direction_cosines = showing(entry_named("direction_cosines"))
effective_rank = showing(entry_named("effective_rank"))
ground_truth = showing(entry_named("ground_truth"))
layer_angles = showing(entry_named("layer_angles"))
localization_controls = showing(entry_named("localization_controls"))
localization_curves = showing(entry_named("localization_curves"))
map_quality = showing(entry_named("map_quality"))
method_comparison = showing(entry_named("method_comparison"))
method_intervals = showing(entry_named("method_intervals"))
pair_matrix = showing(entry_named("pair_matrix"))
plane_by_depth = showing(entry_named("plane_by_depth"))
principal_plane = showing(entry_named("principal_plane"))
rank_by_layer = showing(entry_named("rank_by_layer"))
run_cosines = showing(entry_named("run_cosines"))
spectra_by_depth = showing(entry_named("spectra_by_depth"))
strength_by_layer = showing(entry_named("strength_by_layer"))
visibility_to_monitor = showing(entry_named("visibility_to_monitor"))
w2_per_layer = showing(entry_named("w2_per_layer"))

__all__ = [
    "class_angles",
    "covariance_spectra",
    "diagnostics",
    "direction_cosines",
    "draw",
    "effective_rank",
    "ground_truth",
    "layer_angles",
    "localization_controls",
    "localization_curves",
    "map_quality",
    "method_comparison",
    "method_intervals",
    "pair_matrix",
    "plane_by_depth",
    "principal_plane",
    "rank_by_layer",
    "run_cosines",
    "showing",
    "spectra_by_depth",
    "stacked",
    "strength_by_layer",
    "visibility_to_monitor",
    "w2_per_layer",
]
