"""Figures: a tidy table in, a figure out. Nothing is computed here but positions on the paper.

Matplotlib for paper in this package; plotly for the screen in `ot_lens.plots.screen`, not imported here.
"""

from ot_lens.plots.angles import class_angles, layer_angles
from ot_lens.plots.canvas import STYLES, Style, canvas, rc, styled
from ot_lens.plots.comparison import method_comparison, method_intervals
from ot_lens.plots.controls import localization_controls
from ot_lens.plots.depth import plane_by_depth
from ot_lens.plots.dimensions import effective_rank
from ot_lens.plots.directions import direction_cosines
from ot_lens.plots.distances import w2_per_layer
from ot_lens.plots.embedded import ground_truth
from ot_lens.plots.gallery import GALLERY, Drawn, draw_all, save
from ot_lens.plots.grids import pair_matrix, rank_by_layer, strength_by_layer
from ot_lens.plots.localization import localization_curve, localization_curves
from ot_lens.plots.measures import MEASURES, contenders
from ot_lens.plots.other_run import run_cosines
from ot_lens.plots.plane import principal_plane
from ot_lens.plots.quality import map_quality
from ot_lens.plots.spectra import covariance_spectra, spectra_by_depth
from ot_lens.plots.style import CLASSES, METHODS, Mark, method_mark
from ot_lens.plots.visibility import visibility_to_monitor

__all__ = [
    "CLASSES",
    "GALLERY",
    "MEASURES",
    "METHODS",
    "STYLES",
    "Drawn",
    "Mark",
    "Style",
    "canvas",
    "class_angles",
    "contenders",
    "covariance_spectra",
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
    "run_cosines",
    "save",
    "spectra_by_depth",
    "strength_by_layer",
    "styled",
    "visibility_to_monitor",
    "w2_per_layer",
]
