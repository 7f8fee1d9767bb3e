"""Optimal plans on a line."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def monotone_coupling(
    n: int, m: int, device: torch.device | str = "cpu"
) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"], Float64[Tensor, " p"]]:
    """The optimal plan between n and m sorted, equally weighted points: pairs i, j and their mass."""
    # Both step functions are cut at the union of i/n and j/m: exact in integers, on a line of length n * m.
    ends = (torch.arange(1, count + 1, device=device) * other for count, other in ((n, m), (m, n)))
    cuts = torch.cat(list(ends)).unique()
    starts = torch.cat([cuts.new_zeros(1), cuts[:-1]])
    mass = (cuts - starts).to(torch.float64) / (n * m)
    return starts // m, starts // n, mass
