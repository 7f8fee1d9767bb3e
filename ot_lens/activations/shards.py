"""A capture in shards, each computed independently of the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ot_lens.activations.key import capture_key
from ot_lens.activations.numbers import as_dtype, resolve_dtype
from ot_lens.activations.positions import check_length, columns, gather, labels, resolve_positions
from ot_lens.activations.settings import CaptureSettings, resolve_layers
from ot_lens.errors import OtLensTypeError, PromptError
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
from ot_lens.models.batching import groups_by_length
from ot_lens.prompts import Contrast, Prompt

# Prompts that are tokenized together while planning; only their lengths are kept.
TOKENIZED = 1024


class _StopForward(BaseException):
    """Ends a forward pass after the highest captured layer; never leaves this module."""


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
    """What a capture contains and its division into shards; the same arguments give the same plan.

    Attributes:
        key: What the activations depend on, as JSON values.
        shards: In the order of capture: harmful before harmless, long prompts first.
        layers: Layer numbers, ascending.
        positions: Indices from each prompt's end that are read.
        dtype: What values are cast to, or None for what the model computes in.
        settings: The options as they were given.
    """

    key: Mapping[str, Any]
    shards: tuple[Shard, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    dtype: torch.dtype | None
    settings: CaptureSettings

    @property
    def labels(self) -> tuple[int | str, ...]:
        """Labels of the position axis."""
        return labels(self.positions, self.settings.reduce)

    def count(self, label: str) -> int:
        """Number of prompts of a class."""
        return sum(len(shard.indices) for shard in self.shards if shard.label == label)


def plan_shards(model: Any, prompts: Contrast, settings: CaptureSettings) -> CapturePlan:
    """The shards of a capture.

    Raises:
        HookError: If a layer, hook point or position does not exist.
        PromptError: If prompts cannot be rendered.
        ActivationError: If activations cannot be kept in the dtype.
        OtLensTypeError: If `prompts` is not one split.
    """
    if not isinstance(prompts, Contrast):
        raise OtLensTypeError("capture takes one split: pass prompts.train, prompts.val or prompts.test.")
    served = backend(model)
    layers = resolve_layers(settings.layers, served.n_layers)
    served.hook_point(layers[-1], settings.hook)
    positions, dtype = resolve_positions(model, settings.positions), resolve_dtype(settings.dtype)
    key = capture_key(model, prompts, settings, layers, positions, dtype)
    shards: list[Shard] = []
    for label, group in prompts:
        lengths = _lengths(served, group)
        check_length(min(lengths), positions)
        groups = groups_by_length(lengths, settings.batch_size, settings.token_budget)
        shards += (Shard(f"{label}-{i:05d}", label, tuple(members)) for i, members in enumerate(groups))
    return CapturePlan(key, tuple(shards), layers, positions, dtype, settings)


def capture_shard(
    model: Any, prompts: Contrast, plan: CapturePlan, shard: Shard
) -> Float[Tensor, "layer batch position d"]:
    """The activations of one shard, on the CPU, its prompts in the order of `shard.indices`.

    They depend on the arguments only: batch and padded width are those of the shard, so that computing it
    again gives the same bytes on the same kind of machine.

    Raises:
        ActivationError: If a finite value overflows the plan's dtype.
        ModelError: If memory does not suffice for a single prompt.

    Warns:
        BatchHalvedWarning: If memory did not suffice for the whole batch.
    """
    served, settings = backend(model), plan.settings
    group = dict(prompts)[shard.label]
    batch = token_batch(served, encode(served, [group[i] for i in shard.indices]), shard.indices)
    with evaluating(served.model), intervene(model, settings.edits, settings.tokens):
        parts = [values for _, values in in_memory(lambda part: _read(served, part, plan), batch)]
    values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return as_dtype(values, plan.dtype, plan.layers)


def captured(
    model: Any, prompts: Contrast, plan: CapturePlan, shards: Sequence[Shard]
) -> Iterator[tuple[Shard, Float[Tensor, "layer batch position d"]]]:
    """Each of the shards with its activations, one at a time."""
    for shard in shards:
        yield shard, capture_shard(model, prompts, plan, shard)


def _lengths(served: Backend, prompts: Sequence[Prompt]) -> list[int]:
    """Number of tokens of every rendered prompt."""
    lengths: list[int] = []
    for start in range(0, max(len(prompts), 1), TOKENIZED):
        try:
            lengths += map(len, encode(served, prompts[start : start + TOKENIZED]))
        except PromptError:
            encode(served, prompts)  # names the prompt by its index among all
            raise
    return lengths


def _read(served: Backend, batch: TokenBatch, plan: CapturePlan) -> Float[Tensor, "layer batch position d"]:
    """One forward pass, which ends at the highest layer that is read."""
    seen: dict[int, Tensor] = {}
    rows, width = batch.mask.shape
    # Computed once and sent once to each device: a layer that waits for the device costs more than its read.
    at = {torch.device("cpu"): columns(rows, width, batch.mask.cpu(), plan.positions)}

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
