"""Maps that move harmful activations: one file per method, with its fit and its record.

Every module of this package is imported, so that a new method is one new file.
"""

from importlib import import_module
from pkgutil import iter_modules

from ot_lens.transport.affine import AffineMap
from ot_lens.transport.entropic import EntropicMap, fit_entropic_ot
from ot_lens.transport.fitting import fit, fit_all
from ot_lens.transport.gaussian_ot import fit_gaussian_ot, fit_gaussian_ot_of_moments
from ot_lens.transport.info import FitInfo
from ot_lens.transport.leace import fit_leace
from ot_lens.transport.linear_act import fit_linear_act
from ot_lens.transport.methods import (
    FAMILIES,
    METHODS,
    PROJECTION,
    REFERENCES,
    TRANSPORT,
    Method,
    as_record,
    method_label,
    method_named,
    register_method,
    restore,
)
from ot_lens.transport.pca_ot import fit_pca_ot
from ot_lens.transport.projection import fit_ace, fit_directional_ablation
from ot_lens.transport.shift import fit_mean_shift
from ot_lens.transport.subspace import fit_subspace_ablation
from ot_lens.transport.support import SupportMask, restrict_to_support

__all__ = [
    "FAMILIES",
    "METHODS",
    "PROJECTION",
    "REFERENCES",
    "TRANSPORT",
    "AffineMap",
    "EntropicMap",
    "FitInfo",
    "Method",
    "SupportMask",
    "as_record",
    "fit",
    "fit_ace",
    "fit_all",
    "fit_directional_ablation",
    "fit_entropic_ot",
    "fit_gaussian_ot",
    "fit_gaussian_ot_of_moments",
    "fit_leace",
    "fit_linear_act",
    "fit_mean_shift",
    "fit_pca_ot",
    "fit_subspace_ablation",
    "method_label",
    "method_named",
    "register_method",
    "restore",
    "restrict_to_support",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
