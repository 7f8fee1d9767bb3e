"""The next token with every module replaced at every place, in one walk per batch or by plain hooks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from ot_lens.errors import HookError, SinglePassError, one_of
from ot_lens.models import Backend, HFBackend, Reversible, TokenBatch, backend, batches_of_rows, by_row
from ot_lens.patching.positions import Place
from ot_lens.patching.tails import ATTENTION, HOOK_OF, MLP, Tails
from ot_lens.single_pass import why_not
from ot_lens.single_pass.suffix import Change, Reduce, SuffixRecord, check_replay, suffix_sweep
from ot_lens.single_pass.walk import replayed

AUTO, SINGLE_PASS, HOOKS = "auto", "single_pass", "hooks"
ENGINES = (AUTO, SINGLE_PASS, HOOKS)

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Replacement:
    """What takes the place of a module's output: by layer and prompts, and where there is something."""

    module: str
    values: Callable[[int, Int[Tensor, " batch"]], Float[Tensor, "batch pos d"]]
    exists: Bool[Tensor, "prompt pos"]


@dataclass(frozen=True, eq=False)
class Sweep:
    """Everything that a sweep over some prompts needs; prompts are numbered in `rows` and `tails`."""

    model: Any
    rows: Sequence[Sequence[int]]
    tails: Tails
    places: Sequence[Place]
    reduce: Reduce
    batch_size: int

    @property
    def served(self) -> Backend:
        """The model's backend."""
        return backend(self.model)

    @property
    def count(self) -> int:
        """How many of the last tokens are read."""
        return int(self.places[0].mask.shape[1])

    def changes(
        self, replacements: Sequence[Replacement], prompts: Int[Tensor, " batch"], count: int
    ) -> list[Change]:
        """The tokens of each place that have something in their place."""
        exist = torch.stack([replacement.exists[prompts] for replacement in replacements])[..., -count:]
        return [Change.of(place.mask[prompts][:, -count:] & exist) for place in self.places]


@dataclass(frozen=True, eq=False)
class Swept:
    """Reduced next-token logits: with replacements (NaN where there was nothing to replace), and without."""

    values: Float64[Tensor, "replacement layer place prompt value"]
    own: Float64[Tensor, "prompt value"]
    engine: str


def sweep(
    setting: Sweep,
    numbers: Sequence[int],
    replacements: Sequence[Replacement],
    engine: str = AUTO,
    progress: Progress | None = None,
) -> Swept:
    """Sweep some prompts, in the single pass where the model allows.

    Raises:
        SinglePassError: If the single pass is asked for and does not serve the model.
        HookError: If there is no such engine.
    """
    one_of("engine", engine, ENGINES, HookError)
    reason = _why_not(setting)
    if engine == SINGLE_PASS and reason:
        raise SinglePassError(f"The single pass does not serve this sweep ({reason}): use engine='hooks'.")
    if engine != HOOKS and not reason:
        try:
            walked = partial(_walked, setting, replacements, set())
            return Swept(*_by_prompt(setting, numbers, walked, progress), SINGLE_PASS)
        except SinglePassError:
            if engine == SINGLE_PASS:
                raise
    hooked = partial(_hooked, setting, replacements)
    return Swept(*_by_prompt(setting, numbers, hooked, progress), HOOKS)


def _why_not(setting: Sweep) -> str | None:
    if not isinstance(setting.served, HFBackend):
        return "it replays Hugging Face models only"
    return why_not(setting.model, {})


def _by_prompt(
    setting: Sweep,
    numbers: Sequence[int],
    read: Callable[[TokenBatch, Int[Tensor, " batch"]], tuple[Tensor, Tensor]],
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """What `read` gives for each prompt, along the last axis but one."""
    every = torch.tensor(list(numbers))

    def of_batch(batch: TokenBatch) -> list[tuple[Tensor, Tensor]]:
        values, own = read(batch, every[list(batch.indices)])
        return list(zip(values.unbind(-2), own, strict=True))

    rows = [setting.rows[number] for number in numbers]
    found = by_row(
        setting.served, batches_of_rows(setting.served, rows, setting.batch_size), of_batch, progress
    )
    values, own = zip(*found, strict=True)
    return torch.stack(values, dim=-2), torch.stack(own)


def _walked(
    setting: Sweep,
    replacements: Sequence[Replacement],
    checked: set[bool],
    batch: TokenBatch,
    prompts: Int[Tensor, " batch"],
) -> tuple[Tensor, Tensor]:
    served = setting.served
    assert isinstance(served, HFBackend)
    count = min(setting.count, batch.tokens.shape[1])
    record = replayed(SuffixRecord, served, batch, count)
    padded = not bool(batch.mask.all())
    if padded not in checked:
        check_replay(record)
        checked.add(padded)
    changed = [_leaving(setting, record, replacements, layer, prompts) for layer in range(served.n_layers)]
    own = record.own_logits
    values = suffix_sweep(record, setting.changes(replacements, prompts, count), changed, setting.reduce)
    return values, setting.reduce(own[:, None], own)[:, 0].cpu()


def _leaving(
    setting: Sweep,
    record: SuffixRecord,
    replacements: Sequence[Replacement],
    layer: int,
    prompts: Int[Tensor, " batch"],
) -> Float[Tensor, "replacement batch pos d"]:
    """The stream that leaves a block where its output, or a part of it, is replaced at one token alone."""
    stream = record.streams[layer + 1]
    given = [one.values(layer, prompts)[:, -stream.shape[1] :].to(stream.device) for one in replacements]
    inside = [number for number, one in enumerate(replacements) if one.module == ATTENTION]
    if inside:
        found = _with_attention(setting.model, record, layer, torch.stack([given[i] for i in inside], dim=1))
        for number, leaving in zip(inside, found.unbind(1), strict=True):
            given[number] = leaving
    for number, one in enumerate(replacements):
        if one.module == MLP:
            own = setting.tails.of(HOOK_OF[MLP], layer, prompts)[:, -stream.shape[1] :].to(stream.device)
            given[number] = stream + (given[number].to(stream) - own)
    return torch.stack([x.to(stream) for x in given])


def _with_attention(
    model: Any, record: SuffixRecord, layer: int, given: Float[Tensor, "batch row pos d"]
) -> Float[Tensor, "batch row pos d"]:
    """A block's output with given outputs of its attention: the MLP sees each token by itself."""
    entering = record.streams[layer][:, None].expand(given.shape)
    point = backend(model).hook_point(layer, HOOK_OF[ATTENTION])

    def give(x: Tensor, hook: Any) -> Tensor:  # noqa: ARG001  passed by name
        return given.flatten(1, 2).to(x)

    with _edited(point, give):
        return replayed(record.block, layer, entering)


def _hooked(
    setting: Sweep, replacements: Sequence[Replacement], batch: TokenBatch, prompts: Int[Tensor, " batch"]
) -> tuple[Tensor, Tensor]:
    """A plain forward pass for each layer, place and replacement."""
    served, width = setting.served, batch.tokens.shape[1]
    count = min(setting.count, width)
    own = served.logits(batch.tokens, batch.mask, keep=1)[:, -1]
    plain = setting.reduce(own[:, None], own)[:, 0].cpu()
    places = setting.changes(replacements, prompts, count)
    shape = (len(replacements), served.n_layers, len(places), *plain.shape)
    values = torch.full(shape, torch.nan, dtype=torch.float64)
    for number, one in enumerate(replacements):
        for layer in range(served.n_layers):
            given = one.values(layer, prompts)[:, -count:]
            point = served.hook_point(layer, HOOK_OF[one.module])
            for place, change in enumerate(places):
                mask = change.mask[number]
                edit = partial(_replace, given, mask)
                with _edited(point, edit):
                    logits = served.logits(batch.tokens, batch.mask, keep=1)
                found = setting.reduce(logits[:, -1:], own)[:, 0].cpu()
                values[number, layer, place] = found.masked_fill(~mask.any(dim=1)[:, None], torch.nan)
    return values, plain


def _edited(point: Any, edit: Callable[..., Tensor]) -> Reversible[None]:
    return Reversible(lambda changes: changes.edit(point, edit))


def _replace(given: Tensor, mask: Tensor, x: Tensor, hook: Any) -> Tensor:  # noqa: ARG001  passed by name
    count = mask.shape[1]
    last = torch.where(mask[..., None].to(x.device), given.to(x), x[:, -count:])
    return torch.cat([x[:, :-count], last], dim=1)
