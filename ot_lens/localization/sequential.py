"""Sequential fitting: a later layer's map is fitted on activations already moved by the earlier ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, capture
from ot_lens.execution.runner import Compute, here
from ot_lens.localization.methods import RFA, Method
from ot_lens.prompts import Contrast
from ot_lens.transport import AffineMap, fit_all


def fit_sequentially(
    model: Any,
    prompts: Contrast,
    methods: Sequence[Method],
    *,
    layers: Sequence[int],
    position: int = -1,
    hook: str = "resid_pre",
    tokens: str = "all",
    batch_size: int = 64,
) -> dict[Method, dict[int, AffineMap]]:
    """Fit layer by layer from the bottom, each under the edits below it.

    The harmless prompts of the fit are captured without edits: the target is the model's own harmless
    distribution.

    Args:
        model: A hooked model.
        prompts: Training split.
        methods: Methods; "rfa" has no sequential form and is left out.
        layers: The layers to edit together.
        position: Token position of the fit.
        hook: Hook point of the edits.
        tokens: Token scope of the edits.
        batch_size: Prompts a batch.

    Raises:
        FitError: If a fit fails.
        HookError: If a layer or scope does not exist.
    """
    plain = capture(model, prompts, layers=layers, hook=hook, positions=[position], batch_size=batch_size)
    return sequential_by_pieces(
        here(model),
        prompts,
        plain,
        methods,
        layers=layers,
        position=position,
        hook=hook,
        tokens=tokens,
        batch_size=batch_size,
    )


def sequential_by_pieces(
    compute: Compute,
    prompts: Contrast,
    plain: Activations,
    methods: Sequence[Method],
    *,
    layers: Sequence[int],
    position: int,
    hook: str,
    tokens: str,
    batch_size: int,
) -> dict[Method, dict[int, AffineMap]]:
    """See `fit_sequentially`. A piece is one layer of one method.

    Args:
        compute: Computes the pieces.
        prompts: Training split.
        plain: Its activations without edits, at the hook point of the edits.
        methods: Methods; "rfa" is left out.
        layers: The layers to edit together.
        position: Token position of the fit.
        hook: Hook point of the edits.
        tokens: Token scope of the edits.
        batch_size: Prompts a batch.

    Raises:
        FitError: If a fit fails.
        HookError: If a layer or scope does not exist.
    """
    options = {"hook": hook, "positions": [position], "tokens": tokens, "batch_size": batch_size}
    found: dict[Method, dict[int, AffineMap]] = {method: {} for method in methods if method.name != RFA}
    for layer in sorted(layers):
        names = {method: f"sequential|{method.label}|{layer}" for method in found}
        pieces = {name: (method, dict(found[method])) for method, name in names.items()}
        target = plain.harmless(layer, position)[None, :, None]
        fitted = compute(fit_above, pieces, prompts, target, layer, options)
        for method, name in names.items():
            found[method][layer] = fitted[name]
    return found


def fit_above(
    model: Any,
    prompts: Contrast,
    target: Float64[Tensor, "1 n 1 d"],
    layer: int,
    options: Mapping[str, Any],
    piece: tuple[Method, Mapping[int, AffineMap]],
) -> AffineMap:
    """A method's map at a layer, fitted on activations moved by its maps below."""
    method, below = piece
    moved = capture(model, prompts, layers=[layer], edits=below, **options)
    data = {"harmful": moved.data["harmful"], "harmless": target}
    (position,) = options["positions"]
    return fit_all(replace(moved, data=data), method.fit_name, position=position, **method.params)[layer]
