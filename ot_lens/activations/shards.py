"""A capture in pieces: what its shards are, and each shard by itself, independent of all the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ot_lens.activations.key import capture_key
from ot_lens.activations.numbers import as_dtype, resolve_dtype
from ot_lens.activations.positions import (
    Positions,
    check_length,
    columns,
    gather,
    labels,
    resolve_positions,
)
from ot_lens.errors import HookError, OtLensTypeError, PromptError
from ot_lens.interventions import Edits, intervene
from ot_lens.models import (
    TOKEN_BUDGET,
    Backend,
    Changes,
    TokenBatch,
    backend,
    encode,
    evaluating,
    in_memory,
    pad_id,
    pad_left,
)
from ot_lens.models.batching import groups_by_length
from ot_lens.prompts import Contrast, Prompt

# Prompts that are tokenized together while planning: their tokens are counted and dropped.
TOKENizED = 1024


class _StopForward(BaseException):
    """Ends a forward pass once the highest captured layer has been read; never leaves this module."""


@dataclass(frozen=True)
class Shard:
    """One batch of one class.

    Attributes:
        name: Unique in its capture, such as "harmful-00003".
        label: "harmful" or "harmless".
        indices: Which prompts of that class, in the order of the batch.
    """

    name: str
    label: str
    indices: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CapturePlan:
    """What a capture is of and how it falls into shards; the same arguments give the same plan.

    Attributes:
        key: What the activations depend on, JSON values only.
        shards: In the order of capture: harmful before harmless, long prompts first.
        layers: Layer numbers, ascending.
        hook: Hook point.
        positions: Indices from each prompt's end that are read.
        reduce: "mean" over those positions, or None.
        dtype: What values are cast to, or None for what the model computes in.
        edits: Maps in force while capturing.
        tokens: Token scope of those edits.
    """

    key: Mapping[str, Any]
    shards: tuple[Shard, ...]
    layers: tuple[int, ...]
    hook: str
    positions: tuple[int, ...]
    reduce: str | None = None
    dtype: torch.dtype | None = None
    edits: Edits = field(default_factory=dict)
    tokens: str = "all"

    @property
    def labels(self) -> tuple[int | str, ...]:
        """What the position axis of the activations holds."""
        return labels(self.positions, self.reduce)

    def count(self, label: str) -> int:
        """Number of prompts of a class."""
        return sum(len(shard.indices) for shard in self.shards if shard.label == label)


def plan_shards(
    model: Any,
    prompts: Contrast,
    *,
    layers: str | Sequence[int] = "all",
    hook: str = "resid_pre",
    positions: Positions = (-1,),
    reduce: str | None = None,
    dtype: torch.dtype | str | None = None,
    edits: Edits | None = None,
    tokens: str = "all",
    batch_size: int = 64,
    token_budget: int = TOKEN_BUDGET,
) -> CapturePlan:
    """The shards of a capture; the arguments are those of `capture`.

    Raises:
        HookError: If a layer, hook point or position does not exist.
        PromptError: If prompts cannot be rendered.
        ActivationError: If the dtype is none that activations are kept in.
        OtLensTypeError: If `prompts` is not one split.
    """
    if not isinstance(prompts, Contrast):
        raise OtLensTypeError("capture takes one split: hand in prompts.train, prompts.val or prompts.test.")
    served = backend(model)
    chosen = resolve_layers(layers, served.n_layers)
    served.hook_point(chosen[-1], hook)
    at, kind = resolve_positions(model, positions), resolve_dtype(dtype)
    key = capture_key(
        model,
        prompts,
        layers=list(chosen),
        hook=hook,
        positions=list(labels(at, reduce)),
        averaged=None if reduce is None else list(at),
        dtype=None if kind is None else str(kind).removeprefix("torch."),
        batch_size=batch_size,
        token_budget=token_budget,
        edits=edits or {},
        tokens=tokens,
    )
    shards: list[Shard] = []
    for label, group in prompts:
        lengths = _lengths(served, group)
        check_length(min(lengths), at)
        groups = groups_by_length(lengths, batch_size, token_budget)
        shards += (Shard(f"{label}-{i:05d}", label, tuple(members)) for i, members in enumerate(groups))
    return CapturePlan(key, tuple(shards), chosen, hook, at, reduce, kind, dict(edits or {}), tokens)


def capture_shard(
    model: Any, prompts: Contrast, plan: CapturePlan, shard: Shard
) -> Float[Tensor, "layer batch position d"]:
    """The activations of one shard, on the CPU, its prompts in the order of `shard.indices`.

    They depend on nothing but the arguments: batch and padded width are the shard's own, so that whoever
    computes it again gets the same bytes on the same kind of machine.

    Raises:
        ActivationError: If a finite value overflows the plan's dtype.
        ModelError: If memory does not suffice for a single prompt.

    Warns:
        BatchHalvedWarning: If memory did not suffice for the whole batch.
    """
    served = backend(model)
    group = dict(prompts)[shard.label]
    rows = encode(served, [group[i] for i in shard.indices])
    tokens, mask = pad_left(rows, pad_id(served.tokenizer))
    batch = TokenBatch(shard.indices, tokens.to(served.device), mask.to(served.device))
    with evaluating(served.model), intervene(model, plan.edits, plan.tokens):
        parts = [values for _, values in in_memory(lambda part: _read(served, part, plan), batch)]
    values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return as_dtype(values, plan.dtype, plan.layers)


def captured(
    model: Any, prompts: Contrast, plan: CapturePlan, shards: Sequence[Shard]
) -> Iterator[tuple[Shard, Float[Tensor, "layer batch position d"]]]:
    """Each of the shards with its activations, one at a time."""
    for shard in shards:
        yield shard, capture_shard(model, prompts, plan, shard)


def resolve_layers(layers: str | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Layer numbers, sorted, from "all" or a sequence.

    Raises:
        HookError: If there is none, or one does not exist.
    """
    if isinstance(layers, str):
        if layers != "all":
            raise HookError(f"layers = {layers!r}: give 'all' or a list of layer numbers.")
        return tuple(range(n_layers))
    chosen = tuple(sorted(set(layers)))
    if not chosen:
        raise HookError("layers is empty: give 'all' or at least one layer number.")
    for layer in chosen:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
            raise HookError(f"layer {layer!r} does not exist: this model has layers 0-{n_layers - 1}.")
    return chosen


def _lengths(served: Backend, prompts: Sequence[Prompt]) -> list[int]:
    """Tokens of every rendered prompt."""
    found: list[int] = []
    for start in range(0, max(len(prompts), 1), TOKENizED):
        try:
            found += map(len, encode(served, prompts[start : start + TOKENizED]))
        except PromptError:
            encode(served, prompts)  # names the prompt by its place among all
            raise
    return found


def _read(served: Backend, batch: TokenBatch, plan: CapturePlan) -> Float[Tensor, "layer batch position d"]:
    """One forward pass, which ends at the highest layer asked for."""
    seen: dict[int, Tensor] = {}
    rows, width = batch.mask.shape
    # Found once and sent once to a device: a layer that waited for the device would cost more than its read.
    at = {torch.device("cpu"): columns(rows, width, batch.mask.cpu(), plan.positions)}

    def listen(changes: Changes[None]) -> None:
        for layer in plan.layers:
            changes.edit(served.hook_point(layer, plan.hook), _reader(seen, layer, at, plan))

    with Changes(listen), suppress(_StopForward):
        served.logits(batch.tokens, batch.mask, keep=1)
    return torch.stack([seen[layer].cpu() for layer in plan.layers])


def _reader(
    seen: dict[int, Tensor],
    layer: int,
    at: dict[torch.device, Int[Tensor, "batch position"]],
    plan: CapturePlan,
) -> Callable[[Tensor, Any], None]:
    def read(x: Tensor, hook: Any) -> None:  # noqa: ARG001  TransformerLens passes it by name
        if x.device not in at:
            at[x.device] = at[torch.device("cpu")].to(x.device)
        taken = gather(x, at[x.device], plan.reduce)
        seen[layer] = taken.to(x.dtype) if plan.dtype is None else taken
        if len(seen) == len(plan.layers):
            raise _StopForward

    return read
