"""From the batched fit of a method to its function for one layer."""

import functools
from collections.abc import Callable
from inspect import Signature, signature
from typing import Any, Concatenate, ParamSpec, cast

from jaxtyping import Float64
from torch import Tensor

from ot_lens.linalg import check_pair
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.diagnosis import warn_if_poor
from ot_lens.transport.methods import Method, register

P = ParamSpec("P")
Batched = Callable[Concatenate[Tensor, Tensor, P], list[AffineMap]]
OfOneLayer = Callable[Concatenate[Tensor, Tensor, P], AffineMap]


def defines_method(
    name: str, label: str, family: str, **fields: Any
) -> Callable[[Callable[Concatenate[Tensor, Tensor, P], list[AffineMap]]], OfOneLayer[P]]:
    """Register a fit of `[L, n, d]` samples as a method; the decorated function fits one layer, `[n, d]`.

    Args:
        name: See `Method`, as for everything else.
        label: Name for people.
        family: Family.
        **fields: Further fields.
    """

    def decorate(batch: Callable[Concatenate[Tensor, Tensor, P], list[AffineMap]]) -> OfOneLayer[P]:
        @functools.wraps(batch)
        def fit_layer(H: Tensor, S: Tensor, *args: P.args, **kwargs: P.kwargs) -> AffineMap:
            source, target = check_pair(H, S)
            maps = batch(source.unsqueeze(0), target.unsqueeze(0), *args, **kwargs)
            warn_if_poor(maps)
            return maps[0]

        vars(fit_layer)["__signature__"] = _of_one_layer(signature(batch))
        register(Method(name, label, family, fit_layer, batch, **fields))
        return cast(OfOneLayer[P], fit_layer)

    return decorate


def _of_one_layer(batched: Signature) -> Signature:
    """The signature of a batched fit with the shapes of one layer."""
    H, S, *others = batched.parameters.values()
    H, S = H.replace(annotation=Float64[Tensor, "n_H d"]), S.replace(annotation=Float64[Tensor, "n_S d"])
    return Signature([H, S, *others], return_annotation=AffineMap)
