"""The options of a capture, in one record."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ot_lens.activations.positions import Positions
from ot_lens.errors import HookError
from ot_lens.interventions import Edits
from ot_lens.models import TOKEN_BUDGET, check_layer


@dataclass(frozen=True, eq=False)
class CaptureSettings:
    """The options of `capture`, which describes them."""

    layers: str | Sequence[int] = "all"
    hook: str = "resid_pre"
    positions: Positions = (-1,)
    reduce: str | None = None
    dtype: torch.dtype | str | None = None
    edits: Edits = field(default_factory=dict)
    tokens: str = "all"
    batch_size: int = 64
    token_budget: int = TOKEN_BUDGET


def resolve_layers(layers: str | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Layer numbers, sorted, from "all" or a sequence.

    Raises:
        HookError: If there are none, or one does not exist.
    """
    if isinstance(layers, str):
        if layers != "all":
            raise HookError(f"layers must be 'all' or a list of layer numbers, got {layers!r}.")
        return tuple(range(n_layers))
    chosen = tuple(sorted(set(layers)))
    if not chosen:
        raise HookError("layers is empty: give 'all' or at least one layer number.")
    for layer in chosen:
        check_layer(layer, n_layers)
    return chosen
