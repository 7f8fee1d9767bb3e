"""Activations from TransformerLens caches, as `run_with_cache` returns them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ot_lens.activations.numbers import as_dtype
from ot_lens.activations.positions import columns, gather
from ot_lens.errors import ActivationError, HookError


def both_caches(
    caches: Mapping[str, tuple[Any, Any]],
    hook: str,
    positions: Sequence[int],
    reduce: str | None,
    dtype: torch.dtype | None,
) -> tuple[tuple[int, ...], dict[str, Float[Tensor, "layer _ position d"]]]:
    """The layers that all caches hold, and each class's activations there; see `Activations.from_caches`."""
    pairs = {label: _pairs(label, cache, mask) for label, (cache, mask) in caches.items()}
    layers = _common_layers([cache for group in pairs.values() for cache, _ in group], hook)
    data = {}
    for label, group in pairs.items():
        batches = [
            torch.stack(
                [_read(cache[f"blocks.{layer}.hook_{hook}"], mask, positions, reduce) for layer in layers]
            )
            for cache, mask in group
        ]
        data[label] = as_dtype(torch.cat(batches, dim=1), dtype, layers)
    return layers, data


def _pairs(label: str, caches: Any, masks: Any) -> list[tuple[Any, Any]]:
    """Each cache with its mask, or with None."""
    caches, masks = (list(x) if isinstance(x, list | tuple) else [x] for x in (caches, masks))
    if masks == [None]:
        masks *= len(caches)
    if len(masks) != len(caches):
        raise ActivationError(f"{len(caches)} {label} caches but {len(masks)} masks: pass one per cache.")
    return list(zip(caches, masks, strict=True))


def _common_layers(caches: Sequence[Any], hook: str) -> tuple[int, ...]:
    by_cache = []
    for cache in caches:
        names = [str(name).split(".") for name in cache.keys()]  # noqa: SIM118  ActivationCache iterates values
        by_cache.append({int(p[1]) for p in names if p[0] == "blocks" and p[2:] == [f"hook_{hook}"]})
    layers = set.intersection(*by_cache)
    if not layers:
        raise HookError(
            f"The caches share no blocks.*.hook_{hook}: call run_with_cache with a filter that keeps it."
        )
    return tuple(sorted(layers))


def _read(
    x: Any, mask: Any, positions: Sequence[int], reduce: str | None
) -> Float[Tensor, "batch position d"]:
    x = x if x.ndim == 3 else x[None]
    rows = None if mask is None else torch.as_tensor(mask).reshape(-1, mask.shape[-1])
    if rows is not None and rows.shape != x.shape[:2]:
        raise ActivationError(
            f"A mask of shape {tuple(rows.shape)} does not match a cache of {x.shape[0]} prompts and "
            f"{x.shape[1]} positions."
        )
    return gather(x, columns(x.shape[0], x.shape[1], rows, positions), reduce).cpu()
