"""What the parameters of any method can do to its maps after the fit."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ot_lens.transport.gated import LOGISTIC, THRESHOLD
from ot_lens.transport.gating import gated
from ot_lens.transport.maps import ActivationMap
from ot_lens.transport.methods import MODIFIERS, Method
from ot_lens.transport.norm_preserving import norm_preserving
from ot_lens.transport.null_space import null_space

_APPLIED: Mapping[str, Callable[..., ActivationMap]] = {
    "null_space": null_space,
    "gated": lambda map_, H, S, **options: gated(map_, H, S, gate=LOGISTIC, **options),
    "gated_threshold": lambda map_, H, S, **options: gated(map_, H, S, gate=THRESHOLD, **options),
    "norm_preserving": lambda map_, _H, _S: norm_preserving(map_),
}


def split_options(
    known: Method, parameters: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The parameters of a method's own fit, and those of each of its modifiers."""
    options = {
        modifier: {name: parameters[name] for name in MODIFIERS[modifier].options if name in parameters}
        for modifier in known.modifiers
    }
    taken = {name for of_one in options.values() for name in of_one}
    return {name: value for name, value in parameters.items() if name not in taken}, options


def modified(
    fitted: ActivationMap, known: Method, H: Tensor, S: Tensor, options: Mapping[str, dict[str, Any]]
) -> ActivationMap:
    """A layer's map with the modifiers of its method, in their order."""
    for modifier in known.modifiers:
        fitted = _APPLIED[modifier](fitted, H, S, **options[modifier])
    return fitted.labelled(method=known.name) if known.modifiers else fitted
