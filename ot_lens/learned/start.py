"""What a training starts from: the activations of a layer and the difference of their means."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, capture
from ot_lens.errors import OtLensTypeError
from ot_lens.learned.objective import Objective
from ot_lens.linalg import all_equal
from ot_lens.prompts import Contrast
from ot_lens.transport import AffineMap
from ot_lens.transport.fitting import NOTHING_TO_MOVE
from ot_lens.transport.projection import unit_directions


def objective_at(
    model: Any,
    prompts: Contrast,
    layer: int,
    acts: Activations | None,
    *,
    position: int,
    hook: str,
    refusal_tokens: Sequence[str | int] | None,
    batch_size: int,
) -> tuple[Objective, Float64[Tensor, " d"], dict[str, Any]]:
    """The objective at a layer, the unit difference of its means, and the origin of maps trained there."""
    if not isinstance(prompts, Contrast):
        raise OtLensTypeError(
            f"prompts must be one split (a Contrast), got a {type(prompts).__name__}: pass prompts.train."
        )
    if acts is None:
        acts = capture(model, prompts, layers=[layer], hook=hook, positions=[position], batch_size=batch_size)
    H, S = acts.harmful(layer, position), acts.harmless(layer, position)
    (unit,), _ = unit_directions(H[None], S[None])
    size = float((H.mean(0) - S.mean(0)).norm())
    objective = Objective(
        model, prompts, (layer, hook), size, refusal_tokens=refusal_tokens, batch_size=batch_size
    )
    origin = {
        "layer": layer,
        "position": position,
        "hook": hook,
        "n_harmful": acts.n_harmful,
        "n_harmless": acts.n_harmless,
    }
    return objective, unit, origin


def by_layer(
    acts: Activations, layers: Sequence[int], position: int, fit: Callable[[int], AffineMap]
) -> Mapping[int, AffineMap]:
    """A map for each layer; the identity where all samples are one point."""
    maps = {}
    for layer in layers:
        if bool(all_equal(acts.harmful(layer, position), acts.harmless(layer, position))):
            identity = AffineMap.identity(acts.d_model)
            maps[layer] = identity.labelled(rank=0, notes=(NOTHING_TO_MOVE,))
        else:
            maps[layer] = fit(layer)
    return maps
