"""Activations of a contrast: [layer, prompt, position, d_model] for each class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ot_lens.activations.numbers import as_dtype, check_captured, check_finite, resolve_dtype
from ot_lens.activations.positions import (
    INSTRUCTION_LAST,
    THOUGHT_END,
    Positions,
    captured_index,
    columns,
    gather,
    indices,
    labels,
)
from ot_lens.activations.stored import StoredActivations
from ot_lens.errors import ActivationError, HookError
from ot_lens.linalg import float64
from ot_lens.prompts import CLASSES


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations of harmful and harmless prompts at one hook point.

    Attributes:
        data: For each class a tensor [layer, prompt, position, d_model] in its dtype; for a store a mapping
            that reads a class on access.
        layers: The layers, in the order of the first axis.
        positions: Token positions counted from the prompt's end (-1 is the last real token), "first" (the
            first token), "instruction_last" (where its index depends on the prompt), "thought_end" (where the
            answer begins), or "mean".
        hook: The hook point ("resid_pre", ...).
        info: Their origin: model, prompt hashes, active edits.
    """

    data: dict[str, Float[Tensor, "layer _ position d_model"]] | StoredActivations
    layers: tuple[int, ...]
    positions: tuple[int | str, ...]
    hook: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes."""
        for label in CLASSES:
            if label not in self.data:
                raise ActivationError(f"No {label} activations: both classes are needed.")
            shape = self._shape(label)
            if len(shape) != 4 or shape[0] != len(self.layers) or shape[2] != len(self.positions):
                raise ActivationError(
                    f"The {label} activations have shape {shape}: expected "
                    f"[{len(self.layers)} layers, prompts, {len(self.positions)} positions, d_model]."
                )
        widths = [self._shape(label)[3] for label in CLASSES]
        if widths[0] != widths[1]:
            raise ActivationError(
                f"Harmful activations have width {widths[0]}, harmless {widths[1]}: "
                "capture both from the same model."
            )

    def __repr__(self) -> str:
        """Summary of shape and hook point."""
        return (
            f"Activations({self.hook}, layers {_span(self.layers)}, positions {list(self.positions)}, "
            f"{self.n_harmful} harmful + {self.n_harmless} harmless, d_model {self.d_model})"
        )

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        with pd.option_context("display.max_colwidth", None):
            return pd.Series(self._facts(), name="Activations").to_frame().to_html()

    def _facts(self) -> dict[str, str]:
        folder = self.data.folder if isinstance(self.data, StoredActivations) else None
        return {
            "model": str(self.info.get("model", "unknown")),
            "hook point": self.hook,
            "layers": _span(self.layers),
            "positions": ", ".join(map(str, self.positions)),
            "prompts": f"{self.n_harmful} harmful, {self.n_harmless} harmless",
            "d_model": str(self.d_model),
            "dtype": str(self.dtype).removeprefix("torch."),
            "size": f"{self.size() / 2**20:.1f} MiB {'on disk' if folder else 'in memory'}",
            "where": str(folder or "memory"),
        }

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._shape("harmful")[3]

    @property
    def n_harmful(self) -> int:
        """Number of harmful prompts."""
        return self._shape("harmful")[1]

    @property
    def n_harmless(self) -> int:
        """Number of harmless prompts."""
        return self._shape("harmless")[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored values; samples are returned in float64."""
        return self.data.dtype if isinstance(self.data, StoredActivations) else self.data["harmful"].dtype

    def size(self) -> int:
        """Bytes on disk, or in memory if they are not stored."""
        if isinstance(self.data, StoredActivations):
            return self.data.size()
        return sum(values.nbytes for values in self.data.values())

    def harmful(self, layer: int, position: int | str | None = None) -> Float64[Tensor, "n d_model"]:
        """Harmful samples at one layer and position, float64.

        Args:
            layer: A captured layer.
            position: A captured position; optional if there is only one.

        Raises:
            HookError: If the layer or position was not captured.
            ActivationError: If they hold NaN or Inf.
        """
        return self._samples("harmful", layer, position)

    def harmless(self, layer: int, position: int | str | None = None) -> Float64[Tensor, "n d_model"]:
        """Harmless samples at one layer and position, float64; see `harmful`."""
        return self._samples("harmless", layer, position)

    def stacked(self, label: str, position: int | str | None = None) -> Float64[Tensor, "layer n d_model"]:
        """All layers' samples of one class at one position, float64; see `harmful`."""
        return torch.stack([self._samples(label, layer, position) for layer in self.layers])

    def _samples(self, label: str, layer: int, position: int | str | None) -> Float64[Tensor, "n d_model"]:
        if layer not in self.layers:
            raise HookError(
                f"Layer {layer} was not captured: these activations hold layers {_span(self.layers)}."
            )
        at = self.layers.index(layer), captured_index(self.positions, position)
        if isinstance(self.data, StoredActivations):
            samples = float64(self.data.rows(label, *at))
        else:
            samples = float64(self.data[label][at[0], :, at[1]])
        check_finite(samples, label, layer)
        return samples

    def _shape(self, label: str) -> tuple[int, ...]:
        data = self.data
        return data.shape(label) if isinstance(data, StoredActivations) else tuple(data[label].shape)

    @classmethod
    def from_caches(
        cls,
        *,
        harmful: Any,
        harmless: Any,
        positions: Positions = (-1,),
        reduce: str | None = None,
        hook: str = "resid_pre",
        dtype: torch.dtype | str | None = None,
        harmful_mask: Any = None,
        harmless_mask: Any = None,
    ) -> "Activations":
        """Activations from TransformerLens caches, as `run_with_cache` returns them.

        Args:
            harmful: An `ActivationCache` (or a mapping of hook names to tensors [batch, pos, d_model]), or a
                list of them, one per batch.
            harmless: The same for the harmless prompts.
            positions: Positions counted from each prompt's end, or "last"; for those after the instruction
                pass `resolve_positions(model, "post_instruction")`.
            reduce: "mean" for the mean over those positions, as the one position "mean".
            hook: Which hook point to read.
            dtype: As in `capture`.
            harmful_mask: Attention mask [batch, pos] of the harmful run (a list for a list of caches).
                Without one every token counts as real, which is correct only for prompts of equal length or
                left padding.
            harmless_mask: The same for the harmless run.

        Returns:
            Activations of the layers that both caches hold.

        Raises:
            HookError: If a cache lacks the hook point, or a position lies before a prompt's first token.
            ActivationError: If a mask does not match its cache, a finite value overflows the dtype, or
                a cache holds NaN or Inf.
        """
        at, kind = indices(positions), resolve_dtype(dtype)
        if THOUGHT_END in at:
            raise HookError(
                f"Caches do not show where a thought begins: run think(model, prompts) and pass positions=-1 "
                f"instead of {THOUGHT_END!r}."
            )
        if INSTRUCTION_LAST in at:
            raise HookError(
                f"Caches do not show where an instruction ends: pass resolve_positions(model, "
                f"{INSTRUCTION_LAST!r})."
            )
        caches = {"harmful": (harmful, harmful_mask), "harmless": (harmless, harmless_mask)}
        layers, data = _both_caches(caches, hook, at, reduce, kind)
        return cls(data, layers, labels(at, reduce), hook, {"source": "caches"})


def restricted(acts: Activations, layers: Sequence[int], position: int) -> Activations:
    """Some layers of activations at one position, in memory, in float64."""
    chosen = tuple(layer for layer in acts.layers if layer in layers)
    data = {
        label: torch.stack([getattr(acts, label)(layer, position) for layer in chosen]).unsqueeze(2)
        for label in CLASSES
    }
    return Activations(data, chosen, (position,), acts.hook, acts.info)


def _span(layers: Sequence[int]) -> str:
    consecutive = list(layers) == list(range(layers[0], layers[0] + len(layers)))
    return f"{layers[0]}-{layers[-1]}" if consecutive and len(layers) > 1 else ", ".join(map(str, layers))


def _both_caches(
    caches: Mapping[str, tuple[Any, Any]],
    hook: str,
    positions: Sequence[int | str],
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
        values = torch.cat(batches, dim=1)
        check_captured(values, label, layers, range(values.shape[1]))
        data[label] = as_dtype(values, dtype, layers)
    return layers, data


def _pairs(label: str, caches: Any, masks: Any) -> list[tuple[Any, Any]]:
    """Each cache with its mask, or with None."""
    caches, masks = (list(x) if isinstance(x, list | tuple) else [x] for x in (caches, masks))
    if len(masks) == 1 and masks[0] is None:
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
    x: Any, mask: Any, positions: Sequence[int | str], reduce: str | None
) -> Float[Tensor, "batch position d"]:
    x = _tensor(x, "a cache")
    x = x if x.ndim == 3 else x[None]
    if x.ndim != 3 or not x.dtype.is_floating_point:
        raise ActivationError(
            f"A cache entry must be floating point [batch, pos, d_model], got {x.dtype} {list(x.shape)}."
        )
    rows = None if mask is None else _mask(mask, x)
    return gather(x, columns(x.shape[0], x.shape[1], rows, positions), reduce).cpu()


def _mask(mask: Any, x: Float[Tensor, "batch pos d"]) -> Int[Tensor, "batch pos"]:
    """A mask of ones and zeros; not the kind added to attention scores, whose zeros are real tokens."""
    values = _tensor(mask, "a mask")
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else values
    if rows.shape != x.shape[:2]:
        raise ActivationError(
            f"A mask of shape {tuple(values.shape)} does not match a cache of {x.shape[0]} prompts and "
            f"{x.shape[1]} positions."
        )
    if not bool(((rows == 0) | (rows == 1)).all()):
        raise ActivationError(
            "A mask must hold 1 for real tokens and 0 for padding; this one has other values."
        )
    empty = (rows == 0).all(1).nonzero().flatten().tolist()
    if empty:
        raise ActivationError(f"Row {empty[0]} of a mask has no real token: leave out that prompt.")
    return rows.long()


def _tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ActivationError(
            f"{name} is a {type(values).__name__} that torch cannot read ({error}): pass a tensor or array."
        ) from error
