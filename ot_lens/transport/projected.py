"""Projected ablation: the refusal direction without its part along the harmless mean."""

from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import centring_rounding, mean_gap
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import PROJECTION
from ot_lens.transport.projection import ablation_of, unit_directions

# A direction that keeps less than this share of its length is parallel to the mean up to rounding.
PARALLEL = 1e-10


@defines_method(
    "projected_ablation",
    "Projected ablation",
    PROJECTION,
    formula="x - q qᵀ x, q = r less its part along μ_S",
    source="Lai 2025",
    group="Projection",
    colour="#C46AA8",
    marker="up",
    dash="dash",
    order=42,
)
def fit_projected_ablation(H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]) -> list[AffineMap]:
    """T(x) = x - q^ q^T x, q = r - m^ m^T r, m^ the unit harmless mean, so that T(mu_S) = mu_S.

    Source: Lai 2025, "Projected abliteration" (huggingface.co/blog/grimjim/projected-abliteration). Where the
    harmless mean is zero, q = r.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: If the class means coincide, or their difference is parallel to the harmless mean.
    """
    return [ablation_of(q.unsqueeze(1), FitInfo(k=1)) for q in projected_directions(H, S)]


def projected_directions(
    H: Float64[Tensor, "L n_H d"], S: Float64[Tensor, "L n_S d"]
) -> Float64[Tensor, "L d"]:
    """q^, the unit difference in means less its part along the harmless mean."""
    directions, mean = unit_directions(H, S)
    gap, rounding = mean_gap(H, S)
    size = mean.norm(dim=-1, keepdim=True)
    has_mean = size > centring_rounding(S.norm(dim=-1).amax(1, keepdim=True), S.shape[1])
    unit = (mean / size.masked_fill(~has_mean, 1.0)).masked_fill(~has_mean, 0.0)
    left = directions - unit * (unit * directions).sum(-1, keepdim=True)
    # Once more: what is left of a nearly parallel direction is orthogonal only up to its own rounding.
    left = left - unit * (unit * left).sum(-1, keepdim=True)
    length = left.norm(dim=-1, keepdim=True)
    if bool((length.squeeze(-1) <= PARALLEL + rounding / gap.norm(dim=-1)).any()):
        raise FitError(
            "The difference in means is parallel to the harmless mean (share left "
            f"{float(length.min()):.1e}): use directional_ablation, or another layer or position."
        )
    return left / length
