"""The dtypes of activations, and casts that never turn a finite number into Inf."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ot_lens.errors import ActivationError

DTYPES = ("float32", "bfloat16", "float16", "float64")


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype from its name; None stays None."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ActivationError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}.")
    resolved: torch.dtype = getattr(torch, name)
    return resolved


def as_dtype(
    values: Float[Tensor, "layer batch position d"], dtype: torch.dtype | None, layers: Sequence[int]
) -> Float[Tensor, "layer batch position d"]:
    """The values in a dtype, or unchanged for None; a finite value that overflows is an error."""
    if dtype is None or dtype == values.dtype:
        return values
    cast = values.to(dtype)
    lost = (values.isfinite() & ~cast.isfinite()).flatten(1).any(dim=1)
    if bool(lost.any()):
        at = int(lost.nonzero()[0])
        finite = values[at][values[at].isfinite()]
        name, most = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
        raise ActivationError(
            f"Activations at layer {layers[at]} reach {float(finite.abs().max()):.4g}, beyond the range of "
            f"{name} ({most:.4g}): use dtype='bfloat16' or 'float32'."
        )
    return cast


def check_captured(
    values: Float[Tensor, "layer batch position d"], label: str, layers: Sequence[int], prompts: Sequence[int]
) -> None:
    """Refuse what was captured of some prompts, given by number, if the model overflowed on one of them."""
    bad = ~values.isfinite().flatten(2).all(dim=2)
    if bool(bad.any()):
        layer = int(bad.any(dim=1).nonzero()[0])
        numbers = [prompts[int(i)] for i in bad[layer].nonzero()]
        raise ActivationError(
            f"{len(numbers)} of {len(prompts)} {label} activations of a batch hold NaN or Inf at layer "
            f"{layers[layer]}, the first of prompt {min(numbers)}: load the model in bfloat16 or float32, "
            "use a weaker edit, or drop those prompts."
        )


def check_finite(rows: Float[Tensor, "n d"], label: str, layer: int) -> None:
    """Refuse samples of a layer that hold NaN or Inf."""
    bad = int((~torch.isfinite(rows)).any(dim=-1).sum())
    if bad:
        raise ActivationError(
            f"{bad} of {rows.shape[0]} {label} activations at layer {layer} hold NaN or Inf: "
            "load the model in bfloat16 or float32, or drop those prompts."
        )
