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
    lists = {label: (_as_list(cache), _as_list(mask)) for label, (cache, mask) in caches.items()}
    layers = _common_layers([cache for group, _ in lists.values() for cache in group], hook)
    data = {}
    for label, (group, masks) in lists.items():
        if masks != [None] and len(masks) != len(group):
            raise ActivationError(f"{len(group)} {label} caches but {len(masks)} masks: pass one per cache.")
        batches = [
            _read_cache(cache, mask, layers, positions, hook, reduce)
            for cache, mask in zip(group, masks if masks != [None] else [None] * len(group), strict=True)
        ]
        data[label] = as_dtype(torch.cat(batches, dim=1), dtype, layers)
    return layers, data


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _common_layers(caches: Sequence[Any], hook: str) -> tuple[int, ...]:
    by_cache = []
    for cache in caches:
        names = [str(name).split(".") for name in cache.keys()]  # noqa: SIM118  ActivationCache iterates values
        by_cache.append(
            {int(p[1]) for p in names if len(p) == 3 and p[0] == "blocks" and p[2] == f"hook_{hook}"}
        )
    layers = set.intersection(*by_cache)
    if not layers:
        raise HookError(
            f"The caches share no blocks.*.hook_{hook}: call run_with_cache with a filter that keeps it."
        )
    return tuple(sorted(layers))


def _read_cache(
    cache: Any,
    mask: Any,
    layers: tuple[int, ...],
    positions: Sequence[int],
    hook: str,
    reduce: str | None,
) -> Float[Tensor, "layer batch position d"]:
    values = []
    for layer in layers:
        x = cache[f"blocks.{layer}.hook_{hook}"]
        x = x if x.ndim == 3 else x[None]
        rows = None if mask is None else torch.as_tensor(mask).reshape(-1, mask.shape[-1])
        if rows is not None and rows.shape != x.shape[:2]:
            raise ActivationError(
                f"A mask of shape {tuple(rows.shape)} does not match a cache of {x.shape[0]} prompts "
                f"and {x.shape[1]} positions."
            )
        values.append(gather(x, columns(x.shape[0], x.shape[1], rows, positions), reduce))
    return torch.stack(values).cpu()
