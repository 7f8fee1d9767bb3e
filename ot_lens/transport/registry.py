"""Fits by name, for one layer or for all the layers of a capture."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ot_lens.errors import FitError, OtLensError
from ot_lens.linalg import all_equal
from ot_lens.samples import LayerBatch, LayerSamples, layer_batches
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.diagnosis import warn_if_poor
from ot_lens.transport.gaussian_ot import fit_gaussian_ot, gaussian_ot_batch
from ot_lens.transport.leace import fit_leace, leace_batch
from ot_lens.transport.linear_act import fit_linear_act, linear_act_batch
from ot_lens.transport.pca_ot import fit_pca_ot, pca_ot_batch
from ot_lens.transport.projection import (
    ace_batch,
    directional_ablation_batch,
    fit_ace,
    fit_directional_ablation,
)
from ot_lens.transport.shift import fit_mean_shift, mean_shift_batch
from ot_lens.transport.subspace import fit_subspace_ablation, subspace_ablation_batch

Batched = Callable[..., list[AffineMap]]

FITTERS: dict[str, Callable[..., AffineMap]] = {
    "mean_shift": fit_mean_shift,
    "directional_ablation": fit_directional_ablation,
    "ace": fit_ace,
    "linear_act": fit_linear_act,
    "pca_ot": fit_pca_ot,
    "gaussian_ot": fit_gaussian_ot,
    "subspace_ablation": fit_subspace_ablation,
    "leace": fit_leace,
}
BATCHED: dict[str, Batched] = {
    "mean_shift": mean_shift_batch,
    "directional_ablation": directional_ablation_batch,
    "ace": ace_batch,
    "linear_act": linear_act_batch,
    "pca_ot": pca_ot_batch,
    "gaussian_ot": gaussian_ot_batch,
    "subspace_ablation": subspace_ablation_batch,
    "leace": leace_batch,
}
NOTHING_TO_MOVE = "all samples of both classes are identical here: the map is the identity"


def fit(method: str, H: Tensor, S: Tensor, **parameters: Any) -> AffineMap:
    """Fit the map of that name to source samples H `[n_H, d]` and target samples S `[n_S, d]`.

    Raises:
        FitError: no such method; and what the method's own function raises.
    """
    return FITTERS[_known(method)](H, S, **parameters)


def fit_all(
    acts: LayerSamples, method: str = "pca_ot", position: int | str | None = None, **parameters: Any
) -> dict[int, AffineMap]:
    """Fit every captured layer with batched linear algebra.

    Where all samples of both classes are one point (the last token of a chat template at layer 0), the map is
    the identity and its `info.notes` say so.

    Args:
        acts: activations of both classes.
        method: a name in `FITTERS`.
        position: token position; may be left out when only one was captured.
        **parameters: of the method, e.g. `k=2`.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        FitError: no such method, or a layer that cannot be fitted; the message names the layer.

    Warns:
        PoorFitWarning: once, naming the layers whose fit is poor.
    """
    batched = BATCHED[_known(method)]
    maps: dict[int, AffineMap] = {}
    for batch in layer_batches(acts, position):
        fitted = zip(batch.layers, _fit_batch(batched, batch, method, parameters), strict=True)
        maps |= {
            layer: map_.labelled(layer=layer, position=batch.position, hook=acts.hook)
            for layer, map_ in fitted
        }
    warn_if_poor(list(maps.values()))
    return maps


def _known(method: str) -> str:
    if method not in FITTERS:
        raise FitError(f"method {method!r} is unknown: choose one of {', '.join(FITTERS)}")
    return method


def _fit_batch(
    batched: Batched, batch: LayerBatch, method: str, parameters: dict[str, Any]
) -> list[AffineMap]:
    still = all_equal(batch.H, batch.S).tolist()
    moving = [index for index, one_point in enumerate(still) if not one_point]
    whole = len(moving) == len(still)
    H, S = (batch.H, batch.S) if whole else (batch.H[moving], batch.S[moving])
    fitted = iter(_with_layer_named(batched, H, S, [batch.layers[index] for index in moving], parameters))
    n_H, n_S = batch.H.shape[1], batch.S.shape[1]
    identity = AffineMap.identity(batch.H.shape[-1], device=batch.H.device).labelled(
        method=method, n_harmful=n_H, n_harmless=n_S, rank=0, notes=(NOTHING_TO_MOVE,)
    )
    return [identity if one_point else next(fitted) for one_point in still]


def _with_layer_named(
    batched: Batched, H: Tensor, S: Tensor, layers: Sequence[int], parameters: dict[str, Any]
) -> list[AffineMap]:
    """Fit together; only when that fails, one by one to find out at which layer."""
    if not layers:
        return []
    try:
        return batched(H, S, **parameters)
    except OtLensError:
        for index, layer in enumerate(layers):
            one = torch.tensor([index], device=H.device)
            try:
                batched(H[one], S[one], **parameters)
            except OtLensError as error:
                raise type(error)(f"layer {layer}: {error}") from error
        raise
