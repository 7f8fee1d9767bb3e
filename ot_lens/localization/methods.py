"""Methods of a sweep by name and parameters, and their maps at every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from ot_lens.activations import Activations
from ot_lens.errors import FitError, HookError, OtLensTypeError
from ot_lens.transport import AffineMap, fit_all, method_named


@dataclass(frozen=True)
class MethodSpec:
    """A method of the sweep: the name of a fit and its parameters.

    Attributes:
        name: A built-in or registered method (see `ot_lens.register_method`).
        params: Keyword arguments of its fit, such as {"k": 4}.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        """Hash by label: a mapping of parameters has none of its own."""
        return hash(self.label)

    @property
    def label(self) -> str:
        """Name and parameters, for people."""
        inside = ", ".join(f"{key} = {value}" for key, value in sorted(self.params.items()))
        return f"{self.name} ({inside})" if inside else self.name

    @property
    def everywhere(self) -> bool:
        """Whether the map of one layer edits every block."""
        return method_named(self.name).everywhere

    def k(self, fitted: Sequence[AffineMap]) -> int | None:
        """Rank for the table: as asked for; where it was left to the fit, the one that all its maps share."""
        fit = method_named(self.name).fit
        parameter = None if fit is None else signature(fit).parameters.get("k")
        if parameter is None:
            return None
        asked = self.params.get("k", parameter.default)
        used = {asked} if isinstance(asked, int) else {edit.info.k for edit in fitted}
        return used.pop() if len(used) == 1 else None


def as_methods(methods: Sequence[str | Mapping[str, Any] | MethodSpec]) -> list[MethodSpec]:
    """Methods from names, mappings {"name": ..., parameters} or `MethodSpec` objects.

    Raises:
        FitError: If a method is unknown or the list is empty.
        OtLensTypeError: If a single name is given in place of a list.
    """
    if isinstance(methods, str):
        raise OtLensTypeError(f"methods must be a list: write [{methods!r}].")
    found = [_as_method(item) for item in methods]
    if not found:
        raise FitError("methods is empty: name at least one.")
    return found


def _as_method(item: str | Mapping[str, Any] | MethodSpec) -> MethodSpec:
    if isinstance(item, Mapping):
        params = dict(item)
        method = MethodSpec(str(params.pop("name", "")), params)
    else:
        method = item if isinstance(item, MethodSpec) else MethodSpec(item)
    method_named(method.name)
    return method


def fit_maps(
    acts: Activations, methods: Sequence[MethodSpec], *, layers: Sequence[int], position: int
) -> dict[MethodSpec, dict[int, AffineMap]]:
    """Every method's map at every layer, each layer fitted on the unedited stream.

    Raises:
        FitError: If a fit fails.
        HookError: If a layer was not captured.
    """
    missing = [layer for layer in layers if layer not in acts.layers]
    if missing:
        raise HookError(f"layer {missing[0]} was not captured: capture it, or leave it out of layers.")
    fitted: dict[tuple[object, str], dict[int, AffineMap]] = {}
    maps = {}
    for method in methods:
        # Methods with the same batched fit, such as directional ablation and RFA, share its maps.
        key = (method_named(method.name).batch or method.name, repr(sorted(method.params.items())))
        if key not in fitted:
            fitted[key] = fit_all(acts, method.name, position=position, **method.params)
        maps[method] = {layer: fitted[key][layer] for layer in layers}
    return maps
