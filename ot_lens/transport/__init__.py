"""Maps that move harmful activations: one file per method, with its fit and its record.

Every module of this package is imported, so that a new method is one new file.
"""

from importlib import import_module
from pkgutil import iter_modules

from ot_lens.transport.affine import AffineMap as AffineMap
from ot_lens.transport.entropic import EntropicMap as EntropicMap
from ot_lens.transport.entropic import fit_entropic_ot as fit_entropic_ot
from ot_lens.transport.fitting import fit as fit
from ot_lens.transport.fitting import fit_all as fit_all
from ot_lens.transport.gated import GatedMap as GatedMap
from ot_lens.transport.gating import gated as gated
from ot_lens.transport.gaussian_ot import fit_gaussian_ot as fit_gaussian_ot
from ot_lens.transport.gaussian_ot import fit_gaussian_ot_of_moments as fit_gaussian_ot_of_moments
from ot_lens.transport.info import FitInfo as FitInfo
from ot_lens.transport.inlp import fit_inlp as fit_inlp
from ot_lens.transport.interchange import InterchangeMap as InterchangeMap
from ot_lens.transport.interchange import fit_interchange as fit_interchange
from ot_lens.transport.leace import fit_leace as fit_leace
from ot_lens.transport.linear_act import fit_linear_act as fit_linear_act
from ot_lens.transport.maps import ActivationMap as ActivationMap
from ot_lens.transport.maps import load_map as load_map
from ot_lens.transport.methods import FAMILIES as FAMILIES
from ot_lens.transport.methods import METHODS as METHODS
from ot_lens.transport.methods import PROJECTION as PROJECTION
from ot_lens.transport.methods import REFERENCES as REFERENCES
from ot_lens.transport.methods import TRANSPORT as TRANSPORT
from ot_lens.transport.methods import Method as Method
from ot_lens.transport.methods import as_record as as_record
from ot_lens.transport.methods import find_method as find_method
from ot_lens.transport.methods import method_label as method_label
from ot_lens.transport.methods import method_named as method_named
from ot_lens.transport.methods import register_method as register_method
from ot_lens.transport.methods import resolved as resolved
from ot_lens.transport.methods import restore as restore
from ot_lens.transport.mixture_ot import fit_mixture_ot as fit_mixture_ot
from ot_lens.transport.norm_preserving import NormPreservingMap as NormPreservingMap
from ot_lens.transport.norm_preserving import norm_preserving as norm_preserving
from ot_lens.transport.null_space import null_space as null_space
from ot_lens.transport.pca_ot import fit_pca_ot as fit_pca_ot
from ot_lens.transport.projected import fit_projected_ablation as fit_projected_ablation
from ot_lens.transport.projection import fit_ace as fit_ace
from ot_lens.transport.projection import fit_directional_ablation as fit_directional_ablation
from ot_lens.transport.reflection import fit_reflection as fit_reflection
from ot_lens.transport.rotation import RotationMap as RotationMap
from ot_lens.transport.rotation import fit_rotation as fit_rotation
from ot_lens.transport.shift import fit_mean_shift as fit_mean_shift
from ot_lens.transport.som import fit_som as fit_som
from ot_lens.transport.subspace import fit_subspace_ablation as fit_subspace_ablation
from ot_lens.transport.support import SupportMask as SupportMask
from ot_lens.transport.support import restrict_to_support as restrict_to_support
from ot_lens.transport.weighted_ablation import fit_weighted_ablation as fit_weighted_ablation

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
