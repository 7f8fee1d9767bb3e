"""The figures for the screen, in plotly: from the same tables, in the same colours, as those on paper."""

from collections.abc import Callable, Mapping

import plotly.graph_objects as go

from ot_lens.plots.screen.comparison import method_comparison, method_intervals
from ot_lens.plots.screen.described import (
    class_angles,
    effective_rank,
    ground_truth,
    layer_angles,
    localization_controls,
    map_quality,
    pair_matrix,
    rank_by_layer,
    run_cosines,
    spectra_by_depth,
    strength_by_layer,
    visibility_to_monitor,
)
from ot_lens.plots.screen.geometry import covariance_spectra, direction_cosines, w2_per_layer
from ot_lens.plots.screen.localization import localization_curves
from ot_lens.plots.screen.panels import stacked
from ot_lens.plots.screen.plane import plane_by_depth, principal_plane

# By the name of the figure on paper, see `ot_lens.plots.GALLERY`.
SCREEN: Mapping[str, Callable[..., go.Figure]] = {
    "localization_curves": localization_curves,
    "localization_controls": localization_controls,
    "pair_matrix": pair_matrix,
    "rank_by_layer": rank_by_layer,
    "strength_by_layer": strength_by_layer,
    "method_comparison": method_comparison,
    "method_intervals": method_intervals,
    "principal_plane": principal_plane,
    "plane_by_depth": plane_by_depth,
    "map_quality": map_quality,
    "visibility": visibility_to_monitor,
    "w2_per_layer": w2_per_layer,
    "effective_rank": effective_rank,
    "spectra": covariance_spectra,
    "spectra_by_depth": spectra_by_depth,
    "direction_cosines": direction_cosines,
    "run_cosines": run_cosines,
    "class_angles": class_angles,
    "layer_angles": layer_angles,
    "ground_truth": ground_truth,
}

__all__ = [
    "SCREEN",
    "class_angles",
    "covariance_spectra",
    "direction_cosines",
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
    "spectra_by_depth",
    "stacked",
    "strength_by_layer",
    "visibility_to_monitor",
    "w2_per_layer",
]
