"""What a training starts from: the activations of a layer and the difference of their means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, capture
from ot_lens.errors import FitError, OtLensTypeError
from ot_lens.learned.objective import Objective
from ot_lens.linalg import all_equal
from ot_lens.prompts import Contrast
from ot_lens.transport import AffineMap
from ot_lens.transport.fitting import NOTHING_TO_MOVE
from ot_lens.transport.projection import unit_directions


@dataclass(frozen=True, eq=False)
class Start:
    """Where a training starts."""

    objective: Objective
    unit: Float64[Tensor, " d"]  # the difference of the means
    displaced: Float64[Tensor, "n d"]  # harmful samples, from the harmless mean
    origin: Mapping[str, Any]  # of maps that are trained there


def extended(
    vectors: Float64[Tensor, "m d"], displaced: Float64[Tensor, "n d"], k: int
) -> Float64[Tensor, "k d"]:
    """The vectors and, to make k, the leading components of what they leave of the displacement."""
    m, d = vectors.shape
    most = min(d, len(displaced))
    if not m <= k <= most:
        raise FitError(
            f"k = {k} vectors of width {d} from {len(displaced)} prompts: choose {m} <= k <= {most}."
        )
    Q = torch.linalg.qr(vectors.T).Q
    left = displaced - (displaced @ Q) @ Q.T
    return torch.cat([vectors, torch.linalg.svd(left, full_matrices=False).Vh[: k - m]])


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
) -> Start:
    """The objective at a layer, and what training starts from there."""
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
    return Start(objective, unit, H - S.mean(0), origin)


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
