"""Linear algebra of samples: validation, Gram matrices, PSD roots. No d x d matrix is ever formed."""

from ot_lens.linalg.centring import EPS as EPS
from ot_lens.linalg.centring import Pooled as Pooled
from ot_lens.linalg.centring import all_equal as all_equal
from ot_lens.linalg.centring import centred as centred
from ot_lens.linalg.centring import centring_rounding as centring_rounding
from ot_lens.linalg.centring import mean_gap as mean_gap
from ot_lens.linalg.centring import unit_vectors as unit_vectors
from ot_lens.linalg.coupling import monotone_coupling as monotone_coupling
from ot_lens.linalg.decompositions import PooledPCA as PooledPCA
from ot_lens.linalg.decompositions import gram_spectrum as gram_spectrum
from ot_lens.linalg.decompositions import matrix_power as matrix_power
from ot_lens.linalg.decompositions import monge_matrix as monge_matrix
from ot_lens.linalg.decompositions import nuclear_norm as nuclear_norm
from ot_lens.linalg.decompositions import numerical_rank as numerical_rank
from ot_lens.linalg.decompositions import orthonormal_span as orthonormal_span
from ot_lens.linalg.decompositions import principal_axes as principal_axes
from ot_lens.linalg.decompositions import psd_eigen as psd_eigen
from ot_lens.linalg.precision import float64 as float64
from ot_lens.linalg.threads import mapped as mapped
from ot_lens.linalg.threads import one_thread as one_thread
from ot_lens.linalg.validation import check_pair as check_pair
from ot_lens.linalg.validation import check_samples as check_samples
from ot_lens.linalg.validation import checks_samples as checks_samples
