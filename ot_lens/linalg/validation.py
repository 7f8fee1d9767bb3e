"""Checks of samples, made by every public fit and distance.

They run before the shape annotations are checked, so that users read what is wrong and how to fix it.
"""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import ActivationError, OtLensTypeError
from ot_lens.linalg.precision import float64

P = ParamSpec("P")
R = TypeVar("R")

MIN_SAMPLES = 2


def check_samples(x: object, name: str = "x", *, least: int = MIN_SAMPLES) -> Float64[Tensor, "n d"]:
    """The samples as detached float64 `[n, d]`, if they are real and finite and there are enough of them."""
    form = _check_form(x, name, least).detach()
    checked = float64(form)
    _check_finite(form if checked.device == form.device else checked, name)
    return checked


def _check_form(x: object, name: str, least: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise OtLensTypeError(
            f"{name} is a {type(x).__name__}, not a torch.Tensor: convert it with torch.as_tensor."
        )
    if not x.dtype.is_floating_point:
        raise ActivationError(
            f"{name} has dtype {x.dtype}: samples must be real floating point, e.g. {name}.float()."
        )
    if x.ndim != 2:
        shape = list(x.shape)
        raise ActivationError(
            f"{name} has shape {shape}: expected [n, d], one sample per row. Choose a layer and a position."
        )
    if x.shape[0] < least:
        raise ActivationError(
            f"{name} has n = {x.shape[0]} rows: at least {least} samples per class are needed."
        )
    if x.shape[1] == 0:
        raise ActivationError(f"{name} has shape {list(x.shape)}: the samples have no coordinates.")
    return x


def _check_finite(x: Tensor, name: str) -> None:
    # NaN and Inf survive a sum, six times as fast as a check of every number; a sum may also overflow.
    if bool(torch.isfinite(x.sum(dtype=torch.float64))):
        return
    bad = ~torch.isfinite(x).all(dim=1)
    if bad.any():
        rows, first = int(bad.sum()), int(bad.nonzero()[0])
        raise ActivationError(
            f"{name} has NaN or Inf in {rows} of {x.shape[0]} rows (first: row {first}): "
            "drop those prompts or capture in bfloat16 or float32."
        )


def check_pair(
    H: object, S: object, *, names: tuple[str, str] = ("H", "S"), least: int = MIN_SAMPLES
) -> tuple[Float64[Tensor, "n_H d"], Float64[Tensor, "n_S d"]]:
    """Both classes checked; they must have one width and one device."""
    source, target = _check_form(H, names[0], least), _check_form(S, names[1], least)
    if source.shape[1] != target.shape[1]:
        raise ActivationError(
            f"The classes differ in width: {names[0]} has d = {source.shape[1]}, {names[1]} d = "
            f"{target.shape[1]}. Take both from one layer of one model."
        )
    if source.device != target.device:
        raise ActivationError(
            f"{names[0]} is on {source.device} and {names[1]} on {target.device}: move both to one device."
        )
    return check_samples(source, names[0], least=least), check_samples(target, names[1], least=least)


def checks_samples(
    function: Callable[Concatenate[Tensor, Tensor, P], R],
) -> Callable[Concatenate[Tensor, Tensor, P], R]:
    """Decorate a function of two classes of samples, which are checked and converted to float64 `[n, d]`."""

    @functools.wraps(function)
    def checked(H: Tensor, S: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        source, target = check_pair(H, S)
        return function(source, target, *args, **kwargs)

    return cast(Callable[Concatenate[Tensor, Tensor, P], R], checked)
