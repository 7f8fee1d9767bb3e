"""Linear algebra of samples: validation, Gram matrices, PSD roots. No d x d matrix is ever formed."""

from ot_lens.linalg.centring import (
    EPS,
    Pooled,
    all_equal,
    centred,
    centring_rounding,
    mean_gap,
    unit_vectors,
)
from ot_lens.linalg.coupling import monotone_coupling
from ot_lens.linalg.gram import gram_spectrum, numerical_rank, orthonormal_span, principal_axes
from ot_lens.linalg.psd import monge_matrix, nuclear_norm, psd_eigen, symmetric_part
from ot_lens.linalg.threads import mapped, one_thread
from ot_lens.linalg.validation import check_pair, check_samples, checks_samples

__all__ = [
    "EPS",
    "Pooled",
    "all_equal",
    "centred",
    "centring_rounding",
    "check_pair",
    "check_samples",
    "checks_samples",
    "gram_spectrum",
    "mapped",
    "mean_gap",
    "monge_matrix",
    "monotone_coupling",
    "nuclear_norm",
    "numerical_rank",
    "one_thread",
    "orthonormal_span",
    "principal_axes",
    "psd_eigen",
    "symmetric_part",
    "unit_vectors",
]
