"""Mean shift: the optimal map between Gaussians of equal covariance."""

from jaxtyping import Float64
from torch import Tensor

from ot_lens.linalg import mean_gap
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import TRANSPORT


@defines_method(
    "mean_shift",
    "Mean shift",
    TRANSPORT,
    formula="x + (μ_S - μ_H)",
    reversible=True,
    group="Shift, coordinate-wise",
    colour="#A87B00",
    marker="cross",
    dash="solid",
    order=60,
)
def fit_mean_shift(H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]) -> list[AffineMap]:
    """T(x) = x + (mu_S - mu_H).

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
    """
    none = H.new_zeros(H.shape[-1], 0)
    return [AffineMap(none, none, bias, info=FitInfo(k=0)) for bias in mean_gap(H, S)[0]]
