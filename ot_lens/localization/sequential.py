"""Sequential fitting: each map is fitted on activations already moved by the maps of lower layers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, capture
from ot_lens.execution import as_runner
from ot_lens.localization.methods import MethodSpec
from ot_lens.prompts import Contrast
from ot_lens.transport import AffineMap, fit_all


def fit_sequentially(
    model: Any,
    prompts: Contrast,
    methods: Sequence[MethodSpec],
    *,
    layers: Sequence[int],
    position: int = -1,
    hook: str = "resid_pre",
    tokens: str = "all",
    batch_size: int = 64,
    acts: Activations | None = None,
) -> dict[MethodSpec, dict[int, AffineMap]]:
    """Fit layer by layer from the bottom, each layer with the edits below it active.

    The harmless activations of every fit are unedited: the target is the model's own harmless distribution.

    Args:
        model: A hooked model, or a `Runner`, whose tasks are one layer of one method.
        prompts: Training split.
        methods: Methods; "rfa" has no sequential form and is left out.
        layers: The layers to edit together.
        position: Token position of the fit.
        hook: Hook point of the edits.
        tokens: Token scope of the edits.
        batch_size: Prompts per batch.
        acts: Unedited activations of `prompts`, if they were captured already.

    Returns:
        The map of every method at every layer.

    Raises:
        FitError: If a fit fails.
        HookError: If a layer or scope does not exist.
    """
    runner = as_runner(model)
    options: dict[str, Any] = {"hook": hook, "positions": [position], "batch_size": batch_size}
    if acts is None:
        acts = capture(runner, prompts, layers=layers, **options)
    maps: dict[MethodSpec, dict[int, AffineMap]] = {method: {} for method in methods if not method.everywhere}
    for layer in sorted(layers):
        tasks = {f"sequential|{m.label}|{layer}": (m, dict(below)) for m, below in maps.items()}
        target = acts.harmless(layer, position)[None, :, None]
        fitted = runner.map(_fit_above, tasks, prompts, target, layer, {**options, "tokens": tokens})
        for name, (method, _) in tasks.items():
            maps[method][layer] = fitted[name]
    return maps


def _fit_above(
    model: Any,
    prompts: Contrast,
    target: Float64[Tensor, "1 n 1 d"],
    layer: int,
    options: Mapping[str, Any],
    task: tuple[MethodSpec, Mapping[int, AffineMap]],
) -> AffineMap:
    """A method's map at a layer, fitted on activations that its maps below have moved."""
    method, below = task
    moved = capture(model, prompts, layers=[layer], edits=below, **options)
    data = {"harmful": moved.data["harmful"], "harmless": target}
    (position,) = options["positions"]
    return fit_all(replace(moved, data=data), method.name, position=position, **method.params)[layer]
