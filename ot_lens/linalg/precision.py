"""Double precision wherever the device has it."""

from functools import cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def float64(x: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """The values in float64, on their own device if it has float64 (Apple's MPS has not), else on the CPU."""
    return x.double() if _has_float64(x.device.type) else x.cpu().double()


@cache
def _has_float64(device_type: str) -> bool:
    try:
        torch.empty(0, dtype=torch.float64, device=device_type)
    except (TypeError, RuntimeError):
        return False
    return True
