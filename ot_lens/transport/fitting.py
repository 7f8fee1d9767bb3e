"""Fits by name, for one layer or for all layers of a capture, and the definition of a built-in method."""

import functools
from collections.abc import Callable, Sequence
from inspect import Signature, signature
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError, OtLensError
from ot_lens.linalg import all_equal, check_pair
from ot_lens.samples import LayerBatch, LayerSamples, layer_batches
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.info import warn_if_poor
from ot_lens.transport.maps import ActivationMap
from ot_lens.transport.methods import Fit, Method, register, resolved
from ot_lens.transport.modifiers import modified, split_options

P = ParamSpec("P")
M = TypeVar("M", bound=ActivationMap)
Batched = Callable[Concatenate[Tensor, Tensor, P], list[M]]
OfOneLayer = Callable[Concatenate[Tensor, Tensor, P], M]
NOTHING_TO_MOVE = "all samples of both classes are identical here: the map is the identity"


def fit(method: str, H: Tensor, S: Tensor, **parameters: Any) -> ActivationMap:
    """Fit the method of that name to source samples H `[n_H, d]` and target samples S `[n_S, d]`.

    Parameters of any method: `within="null_space"` (and `variance`, see `null_space`), `gate="logistic"` or
    "threshold" (and `false_positive_rate`, see `gated`), `norm_preserving=True`.

    Raises:
        FitError: If there is no such method, or it is trained through the model; also what the method's own
            function raises.
    """
    known, own = resolved(method, parameters)
    source, target = check_pair(H, S)
    plain, options = split_options(known, own)
    return modified(fit_unmodified(known, source, target, **plain), known, source, target, options)


def fit_unmodified(known: Method, H: Tensor, S: Tensor, **parameters: Any) -> ActivationMap:
    """The map of a method for one layer before its modifiers."""
    return _checked(known, _fit_of(known)(H, S, **parameters))


def fit_all(
    acts: LayerSamples, method: str = "pca_ot", position: int | str | None = None, **parameters: Any
) -> dict[int, ActivationMap]:
    """Fit every captured layer with batched linear algebra.

    Where all samples of both classes are identical (the last token of a template at layer 0), the map is the
    identity and its `info.notes` say so.

    Args:
        acts: Activations of both classes.
        method: A built-in or registered method.
        position: Token position; may be omitted if only one was captured.
        **parameters: Parameters of the method, such as `k=2`, and those of any method (see `fit`).

    Raises:
        ActivationError: If samples cannot be used; the message names the layer.
        FitError: If there is no such method, it is trained through the model, or a layer cannot be fitted;
            the message names the layer.

    Warns:
        PoorFitWarning: Once, naming the layers whose fit is poor.
    """
    known, own = resolved(method, parameters)
    _fit_of(known)  # before layers where nothing varies, which need no fit
    maps: dict[int, ActivationMap] = {}
    for batch in layer_batches(acts, position):
        fitted = zip(batch.layers, _fit_batch(known, batch, own), strict=True)
        maps |= {
            layer: map_.labelled(layer=layer, position=batch.position, hook=acts.hook)
            for layer, map_ in fitted
        }
    warn_if_poor(map_.info for map_ in maps.values())
    return maps


def _fit_batch(known: Method, batch: LayerBatch, parameters: dict[str, Any]) -> list[ActivationMap]:
    identical = all_equal(batch.H, batch.S).tolist()
    moving = [index for index, constant in enumerate(identical) if not constant]
    H, S = (batch.H, batch.S) if len(moving) == len(identical) else (batch.H[moving], batch.S[moving])
    fitted = iter(_with_layer_named(known, H, S, [batch.layers[index] for index in moving], parameters))
    n_H, n_S = batch.H.shape[1], batch.S.shape[1]
    identity = AffineMap.identity(batch.H.shape[-1], device=batch.H.device).labelled(
        method=known.name, n_harmful=n_H, n_harmless=n_S, rank=0, notes=(NOTHING_TO_MOVE,)
    )
    return [identity if constant else next(fitted) for constant in identical]


def _with_layer_named(
    known: Method, H: Tensor, S: Tensor, layers: Sequence[int], parameters: dict[str, Any]
) -> list[ActivationMap]:
    """Fit together; only if that fails, one by one to find the layer that failed."""
    if not layers:
        return []
    try:
        return _fit_layers(known, H, S, parameters)
    except OtLensError:
        for index, layer in enumerate(layers):
            one = torch.tensor([index], device=H.device)
            try:
                _fit_layers(known, H[one], S[one], parameters)
            except OtLensError as error:
                raise type(error)(f"layer {layer}: {error}") from error
        raise


def _fit_layers(known: Method, H: Tensor, S: Tensor, parameters: dict[str, Any]) -> list[ActivationMap]:
    """One map per layer, layer by layer where there is no batched fit."""
    plain, options = split_options(known, parameters)
    if known.batch is not None:
        maps = known.batch(H, S, **plain)
    else:
        maps = [fit_unmodified(known, *pair, **plain) for pair in zip(H, S, strict=True)]
    return [modified(*layer, options) for layer in zip(maps, [known] * len(maps), H, S, strict=True)]


def _fit_of(known: Method) -> Fit:
    if known.learn is not None:
        raise FitError(
            f"Method {known.name!r} is trained through the model, not fitted to activations: use "
            f"localize(model, prompts, [{known.name!r}]), or the method's own function."
        )
    if known.fit is None:
        raise FitError(
            f"Method {known.name!r} is known from a run only: import the module that registers it."
        )
    return known.fit


def _checked(known: Method, fitted: object) -> ActivationMap:
    if not isinstance(fitted, ActivationMap):
        kind = type(fitted).__name__
        raise FitError(f"The fit of method {known.name!r} returned a {kind}: return an AffineMap.")
    if fitted.info.method is None:
        return fitted.labelled(method=known.name)
    return fitted


def defines_method(
    name: str, label: str, family: str, **fields: Any
) -> Callable[[Batched[P, M]], OfOneLayer[P, M]]:
    """Register a fit of `[L, n, d]` samples as a method; the decorated function fits one layer, `[n, d]`."""

    def decorate(batch: Batched[P, M]) -> OfOneLayer[P, M]:
        @functools.wraps(batch)
        def fit_layers(H: Tensor, S: Tensor, *args: P.args, **kwargs: P.kwargs) -> list[M]:
            described = {"method": name, "n_harmful": H.shape[1], "n_harmless": S.shape[1]}
            return [map_.labelled(**described) for map_ in batch(H, S, *args, **kwargs)]

        @functools.wraps(batch)
        def fit_layer(H: Tensor, S: Tensor, *args: P.args, **kwargs: P.kwargs) -> M:
            source, target = check_pair(H, S)
            (fitted,) = fit_layers(source.unsqueeze(0), target.unsqueeze(0), *args, **kwargs)
            warn_if_poor([fitted.info])
            return fitted

        first, second, *others = signature(batch).parameters.values()
        one = (
            first.replace(annotation=Float64[Tensor, "n_H d"]),
            second.replace(annotation=Float64[Tensor, "n_S d"]),
        )
        vars(fit_layer)["__signature__"] = Signature([*one, *others], return_annotation=ActivationMap)
        register(Method(name, label, family, fit_layer, fit_layers, **fields))
        return cast(OfOneLayer[P, M], fit_layer)

    return decorate
