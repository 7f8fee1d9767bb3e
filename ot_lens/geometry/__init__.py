"""Geometry of the two classes at every layer: tidy tables, each number with its null and its interval."""

from ot_lens.geometry.angles import class_angles, layer_angles
from ot_lens.geometry.categories import category_directions
from ot_lens.geometry.diagnose import diagnose
from ot_lens.geometry.directions import direction_cosines, layer_cosines, position_cosines, run_cosines
from ot_lens.geometry.plane import principal_plane
from ot_lens.geometry.quality import map_quality
from ot_lens.geometry.quantities import DIAGNOSTICS, Quantity, register_diagnostic
from ot_lens.geometry.spectra import spectra
from ot_lens.geometry.visibility import visibility

__all__ = [
    "DIAGNOSTICS",
    "Quantity",
    "category_directions",
    "class_angles",
    "diagnose",
    "direction_cosines",
    "layer_angles",
    "layer_cosines",
    "map_quality",
    "position_cosines",
    "principal_plane",
    "register_diagnostic",
    "run_cosines",
    "spectra",
    "visibility",
]
