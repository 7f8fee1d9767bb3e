"""A capture in shards, each computed independently of the others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ot_lens.activations.numbers import as_dtype, check_captured
from ot_lens.activations.plan import CapturePlan, Shard
from ot_lens.activations.positions import columns, gather
from ot_lens.interventions import intervene
from ot_lens.models import (
    Backend,
    Reversible,
    TokenBatch,
    backend,
    encode,
    evaluating,
    in_memory,
    token_batch,
)
from ot_lens.prompts import Contrast


class _StopForward(BaseException):
    """Ends a forward pass after the highest captured layer; never leaves this module."""


def capture_shard(
    model: Any, prompts: Contrast, plan: CapturePlan, shard: Shard
) -> Float[Tensor, "layer batch position d"]:
    """The activations of one shard, on the CPU: computed again, they have the same bytes."""
    served, settings = backend(model), plan.settings
    group = dict(prompts)[shard.label]
    rows = encode(served, [group[i] for i in shard.indices])
    thoughts = plan.thoughts_of(shard, shard.indices)
    rows = [[*row, *thought] for row, thought in zip(rows, thoughts, strict=True)]
    batch = token_batch(served, rows, shard.indices)
    with evaluating(served.model), intervene(model, settings.edits, settings.tokens):
        parts = [values for _, values in in_memory(lambda part: _read(served, part, plan, shard), batch)]
    values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    check_captured(values, shard.label, plan.layers, shard.indices)
    return as_dtype(values, plan.dtype, plan.layers)


def captured(
    model: Any, prompts: Contrast, plan: CapturePlan, shards: Sequence[Shard]
) -> Iterator[tuple[Shard, Float[Tensor, "layer batch position d"]]]:
    """Each of the shards with its activations, one at a time."""
    for shard in shards:
        yield shard, capture_shard(model, prompts, plan, shard)


def _read(
    served: Backend, batch: TokenBatch, plan: CapturePlan, shard: Shard
) -> Float[Tensor, "layer batch position d"]:
    """One forward pass, which ends at the highest layer that is read."""
    seen: dict[int, Tensor] = {}
    rows, width = batch.mask.shape
    thoughts = list(map(len, plan.thoughts_of(shard, batch.indices)))
    # Computed once and sent once to each device: a layer that waits for the device costs more than its read.
    ends = plan.instructions_of(shard, batch.indices)
    at = {torch.device("cpu"): columns(rows, width, batch.mask.cpu(), plan.positions, thoughts, ends)}

    def listen(changes: Reversible[None]) -> None:
        for layer in plan.layers:
            changes.edit(served.hook_point(layer, plan.settings.hook), _reader(seen, layer, at, plan))

    with Reversible(listen), suppress(_StopForward):
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
        values = gather(x, at[x.device], plan.settings.reduce)
        seen[layer] = values.to(x.dtype) if plan.dtype is None else values
        if len(seen) == len(plan.layers):
            raise _StopForward

    return read
