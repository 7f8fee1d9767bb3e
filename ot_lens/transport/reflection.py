"""Householder reflection along the refusal direction."""

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import PROJECTION
from ot_lens.transport.projection import unit_directions


@defines_method(
    "reflection",
    "Reflection",
    PROJECTION,
    formula="x - 2 r rᵀ x",
    source="Householder 1958",
    group="Projection",
    colour="#6C6AD0",
    marker="diamond",
    dash="dot",
    order=44,
)
def fit_reflection(H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]) -> list[AffineMap]:
    """T(x) = x - 2 r^ r^T x (Householder 1958): keeps norms and undoes itself; half of it ablates r^.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: If the class means coincide.
    """
    columns = unit_directions(H, S)[0].unsqueeze(-1)
    return [AffineMap(-2 * r, r, torch.zeros_like(r[:, 0]), info=FitInfo(k=1)) for r in columns]
