"""Geometry of the two classes at every layer: tidy tables, each number with its null and its interval."""

from ot_lens.geometry.angles import class_angles as class_angles
from ot_lens.geometry.angles import layer_angles as layer_angles
from ot_lens.geometry.categories import category_directions as category_directions
from ot_lens.geometry.cka import linear_cka as linear_cka
from ot_lens.geometry.diagnose import diagnose as diagnose
from ot_lens.geometry.directions import direction_cosines as direction_cosines
from ot_lens.geometry.directions import layer_cosines as layer_cosines
from ot_lens.geometry.directions import position_cosines as position_cosines
from ot_lens.geometry.directions import run_cosines as run_cosines
from ot_lens.geometry.massive import RobustSamples as RobustSamples
from ot_lens.geometry.massive import massive_activations as massive_activations
from ot_lens.geometry.massive import robust_samples as robust_samples
from ot_lens.geometry.plane import principal_plane as principal_plane
from ot_lens.geometry.quality import map_quality as map_quality
from ot_lens.geometry.quantities import DIAGNOSTICS as DIAGNOSTICS
from ot_lens.geometry.quantities import Quantity as Quantity
from ot_lens.geometry.quantities import register_diagnostic as register_diagnostic
from ot_lens.geometry.similarity import projection_kernel as projection_kernel
from ot_lens.geometry.similarity import similarity as similarity
from ot_lens.geometry.spectra import spectra as spectra
from ot_lens.geometry.visibility import visibility as visibility
