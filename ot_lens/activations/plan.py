"""The plan of a capture: its options, what its numbers depend on, and its division into shards."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ot_lens.activations.numbers import resolve_dtype
from ot_lens.activations.positions import (
    INSTRUCTION_LAST,
    OF_TEMPLATES,
    THOUGHT_END,
    Positions,
    check_length,
    labels,
    resolve_positions,
)
from ot_lens.errors import HookError, OtLensTypeError, PromptError
from ot_lens.generation import think
from ot_lens.interventions import Edits
from ot_lens.models import (
    TOKEN_BUDGET,
    Backend,
    backend,
    check_layer,
    encode,
    instruction_ends,
    model_record,
)
from ot_lens.models.batching import groups_by_length
from ot_lens.prompts import Contrast, Prompt

# Prompts that are tokenized together while planning; only their lengths are kept.
TOKENIZED = 1024
# Where a model runs changes only rounding: a capture may continue on another machine.
PLACES = ("device_map",)


@dataclass(frozen=True, eq=False)
class CaptureSettings:
    """The options of `capture`, which describes them."""

    layers: str | Sequence[int] = "all"
    hook: str = "resid_pre"
    positions: Positions = (-1,)
    reduce: str | None = None
    dtype: torch.dtype | str | None = None
    edits: Edits = field(default_factory=dict)
    tokens: str = "all"
    batch_size: int = 64
    token_budget: int = TOKEN_BUDGET


def resolve_layers(layers: str | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Layer numbers, sorted, from "all" or a sequence."""
    if isinstance(layers, str):
        if layers != "all":
            raise HookError(f"layers must be 'all' or a list of layer numbers, got {layers!r}.")
        return tuple(range(n_layers))
    chosen = tuple(sorted(set(layers)))
    if not chosen:
        raise HookError("layers is empty: give 'all' or at least one layer number.")
    for layer in chosen:
        check_layer(layer, n_layers)
    return chosen


@dataclass(frozen=True)
class Shard:
    """One batch of one class."""

    name: str  # unique in its capture, such as "harmful-00003"
    label: str
    indices: tuple[int, ...]  # of the prompts of that class, in the order of the batch


@dataclass(frozen=True, eq=False)
class CapturePlan:
    """What a capture contains and its division into shards; the same arguments give the same plan."""

    key: Mapping[str, Any]  # what the activations depend on, as JSON values
    shards: tuple[Shard, ...]  # harmful before harmless, long prompts first
    layers: tuple[int, ...]
    positions: tuple[int | str, ...]  # indices from each prompt's end, or names that have none
    dtype: torch.dtype | None  # None for what the model computes in
    settings: CaptureSettings
    thoughts: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)  # read after each prompt
    instructions: Mapping[str, Sequence[int]] = field(default_factory=dict)  # where each prompt's text ends

    @property
    def labels(self) -> tuple[int | str, ...]:
        """Labels of the position axis."""
        return labels(self.positions, self.settings.reduce)

    def thoughts_of(self, shard: Shard, indices: Sequence[int]) -> list[tuple[int, ...]]:
        """Tokens that are read after some prompts of a shard's class."""
        return [self.thoughts[shard.label][i] if self.thoughts else () for i in indices]

    def instructions_of(self, shard: Shard, indices: Sequence[int]) -> list[int]:
        """Indices of `INSTRUCTION_LAST` of some prompts of a shard's class; empty if it is not read."""
        return [self.instructions[shard.label][i] for i in indices] if self.instructions else []

    def count(self, label: str) -> int:
        """Number of prompts of a class."""
        return sum(len(shard.indices) for shard in self.shards if shard.label == label)


def plan_shards(model: Any, prompts: Contrast, settings: CaptureSettings) -> CapturePlan:
    """The shards of a capture."""
    if not isinstance(prompts, Contrast):
        raise OtLensTypeError("capture takes one split: pass prompts.train, prompts.val or prompts.test.")
    served = backend(model)
    layers = resolve_layers(settings.layers, served.n_layers)
    served.hook_point(layers[-1], settings.hook)
    positions, dtype = resolve_positions(model, settings.positions), resolve_dtype(settings.dtype)
    of_template = _of_template(settings.positions)
    if of_template and any(p.thought for _, group in prompts for p in group):
        raise HookError(f"Thoughts follow these prompts: capture {of_template!r} before `think`.")
    key = capture_key(model, prompts, settings, layers, positions, dtype)
    thoughts = _thoughts(model, prompts, settings) if THOUGHT_END in positions else {}
    if thoughts:
        key["thoughts_sha256"] = hashlib.sha256(json.dumps(thoughts).encode()).hexdigest()
    shards: list[Shard] = []
    for label, group in prompts:
        lengths = _lengths(served, group)
        check_length(min(lengths), positions)
        if thoughts:
            lengths = [n + len(thought) for n, thought in zip(lengths, thoughts[label], strict=True)]
        groups = groups_by_length(lengths, settings.batch_size, settings.token_budget, padded=served.pads)
        shards += (Shard(f"{label}-{i:05d}", label, tuple(members)) for i, members in enumerate(groups))
    per_prompt = INSTRUCTION_LAST in positions
    ends = {label: instruction_ends(served, group) for label, group in prompts} if per_prompt else {}
    return CapturePlan(key, tuple(shards), layers, positions, dtype, settings, thoughts, ends)


def _of_template(positions: Positions) -> str | None:
    """The first position that a template determines."""
    asked = [positions] if isinstance(positions, str | int) else positions
    return next((str(p) for p in asked if p in OF_TEMPLATES), None)


def _thoughts(
    model: Any, prompts: Contrast, settings: CaptureSettings
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """What the unedited model thinks, by class; nothing after prompts that have their thoughts already."""
    thoughts = {}
    for label, group in prompts:
        after = think(model, group, batch_size=settings.batch_size)
        pairs = zip(group, after, strict=True)
        thoughts[label] = tuple((p.thought or ()) if given.thought is None else () for given, p in pairs)
    return thoughts


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


def capture_key(
    model: Any,
    prompts: Contrast,
    settings: CaptureSettings,
    layers: tuple[int, ...],
    positions: tuple[int | str, ...],
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """The key of a capture; with its batching, because shards are batches and sums depend on padding."""
    record = {name: value for name, value in model_record(model).items() if name not in PLACES}
    resolved = {
        "layers": list(layers),
        "hook": settings.hook,
        "positions": list(labels(positions, settings.reduce)),
        "averaged": None if settings.reduce is None else list(positions),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "batch_size": settings.batch_size,
        "token_budget": settings.token_budget,
    }
    key: dict[str, Any] = {
        "model": record.pop("name"),
        "d_model": record.pop("d_model"),
        "prompts": prompts.sha256,
        **{f"model_{name}": value for name, value in record.items()},
        **{name: value for name, value in resolved.items() if value is not None},
    }
    if settings.edits:
        sites = sorted(settings.edits.items(), key=lambda item: str(item[0]))
        key["edits"] = [[str(site), _digest(edit)] for site, edit in sites]
        key["tokens"] = settings.tokens
    return key


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the entries in which two keys differ, in alphabetical order."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _digest(edit: Any) -> str:
    """Hash of every parameter of a map."""
    digest = hashlib.sha256(json.dumps([type(edit).__name__, edit.settings()], sort_keys=True).encode())
    for name, part in sorted(edit.tensors().items()):
        digest.update(name.encode() + part.detach().cpu().double().contiguous().numpy().tobytes() + b"|")
    return digest.hexdigest()
