"""Which candidates the single pass supports, and the sweep in batches within a memory budget."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.errors import SinglePassError
from ot_lens.interventions import AppliedMap, Edits
from ot_lens.linalg import float64
from ot_lens.models import Backend, HFBackend, TokenBatch, backend, batches_of_rows, by_row, encode
from ot_lens.prompts import Prompt
from ot_lens.single_pass.packed import PackedRecord, packing, parts
from ot_lens.single_pass.walk import Plan, Record, difference_of, replayed, rounding, run, walk

MEMORY_BUDGET = 2**30
# On a CPU a block is fastest on what fits its caches; an accelerator on as much as it can hold.
CPU_TOKENS = 1024

T = TypeVar("T")
# `Plan` of a walk whose changes are maps.
EditPlan = tuple[tuple[int, AppliedMap], ...]
Reduce = Callable[[Float[Tensor, "row batch d_vocab"], Float[Tensor, "batch d_vocab"]], Tensor]
# Of the unedited stream entering each block and leaving the last one.
Observe = Callable[[TokenBatch, Sequence[Float[Tensor, "batch pos d"]]], Float64[Tensor, "batch column"]]


def why_not(model: Any, edits: Edits, hook: str = "resid_pre") -> str | None:
    """Why the single pass does not read the next token under an edit; None if it does."""
    return _inside_a_block(edits, hook) or _hooked_by_the_user(backend(model))


def why_not_answered(model: Any, edits: Edits, tokens: str, hook: str = "resid_pre") -> str | None:
    """Why the single pass does not give the answers under an edit; None if it does."""
    served = backend(model)
    if not isinstance(served, HFBackend):
        return "answers are replayed on Hugging Face models only"
    # Edits inside all blocks share nothing with each other, and a CPU reads many tokens at once no faster
    # than one after the other.
    shares_nothing = served.device.type == "cpu" and tokens in ("all", "prompt")
    return _hooked_by_the_user(served) or (_inside_a_block(edits, hook) if shares_nothing else None)


def _inside_a_block(edits: Edits, hook: str) -> str | None:
    names = (site[1] if isinstance(site, tuple) else hook for site in edits)
    inside = next((name for name in names if name not in ("resid_pre", "resid_post")), None)
    return None if inside is None else f"an edit at {inside} is inside a block"


def _hooked_by_the_user(served: Backend) -> str | None:
    points = (served.hook_point(layer, "resid_pre") for layer in range(served.n_layers))
    return "the model has hooks of the user" if any(point.fwd_hooks for point in points) else None


def next_token_sweep(
    model: Any,
    prompts: Sequence[Prompt | str],
    candidates: Sequence[Edits],
    reduce: Reduce,
    *,
    tokens: str = "last",
    hook: str = "resid_pre",
    batch_size: int = 64,
    memory_budget: int = MEMORY_BUDGET,
) -> Float64[Tensor, "candidate prompt value"]:
    """Reduced next-token logits of every candidate, in one walk per batch.

    Args:
        model: A hooked model.
        prompts: Requests; the chat template is applied here.
        candidates: Edits of each candidate, at resid_pre or resid_post.
        reduce: From logits [row, batch, d_vocab] and the unedited ones [batch, d_vocab], float64, to numbers
            [row, batch, value]. The logits are never all in memory.
        tokens: Token scope: "all", "prompt" (the same for the next token), "last", or "generated" (which
            edits nothing before the first answer token).
        hook: Hook point of sites given by layer only.
        batch_size: Prompts per batch.
        memory_budget: Bytes available to the rows of a walk.

    Returns:
        Numbers [candidate, prompt, value], float64 on the CPU.

    Raises:
        SinglePassError: If the model cannot be replayed block by block. The first batches, with padding
            and without, are checked: rows without edits must reproduce the model's logits.
    """
    return observed_sweep(
        model,
        prompts,
        candidates,
        reduce,
        nothing,
        tokens=tokens,
        hook=hook,
        batch_size=batch_size,
        memory_budget=memory_budget,
    )[0]


class _ByPrompt(Sequence[Float[Tensor, "batch pos d"]]):
    """The streams of a record as the batch has its tokens, made when they are asked for."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __len__(self) -> int:
        return len(self._record.streams)

    def __getitem__(self, site: Any) -> Any:
        return self._record.by_prompt(self._record.streams[site])


def nothing(batch: TokenBatch, _streams: Sequence[Tensor]) -> Float64[Tensor, "batch column"]:
    """Observes nothing."""
    return torch.zeros(len(batch.indices), 0, dtype=torch.float64)


def observed_sweep(
    model: Any,
    prompts: Sequence[Prompt | str],
    candidates: Sequence[Edits],
    reduce: Reduce,
    observe: Observe,
    *,
    tokens: str,
    hook: str,
    batch_size: int = 64,
    memory_budget: int = MEMORY_BUDGET,
) -> tuple[Float64[Tensor, "candidate prompt value"], Float64[Tensor, "prompt column"]]:
    """`next_token_sweep`, and what is observed of each prompt's unedited stream in the same pass."""
    served = backend(model)
    plans = [() if tokens == "generated" else _plan(served, edits, hook) for edits in candidates]

    def sweep(batch: TokenBatch, record: Record) -> Iterable[tuple[Tensor, Tensor]]:
        values = swept(record, _on_device(plans, record.streams), reduce, memory_budget)
        return zip(values.unbind(1), observe(batch, _ByPrompt(record)), strict=True)

    rows = recorded_rows(served, prompts, sweep, last=tokens == "last", batch_size=batch_size)
    values, columns = zip(*rows, strict=True)
    return torch.stack(values, dim=1), torch.stack(columns)


def recorded_rows(
    served: Backend,
    prompts: Sequence[Prompt | str],
    read: Callable[[TokenBatch, Record], Iterable[T]],
    *,
    last: bool,
    batch_size: int,
) -> list[T]:
    """What `read` makes of each prompt, given the recorded pass of its batch.

    The first batches, with padding and without, are checked: the model must be replayed block by block. What
    prompts of a batch begin with is read once for all of them, where the model allows and enough is saved.
    """
    rows = encode(served, prompts)
    checked: set[bool] = set()

    def of_batch(batch: TokenBatch) -> Iterable[T]:
        record = run(served, batch, last=last)
        if _is_padded(batch) not in checked:
            _check(record)
            checked.add(_is_padded(batch))
        return read(batch, record)

    def packed(hugging_face: HFBackend, batch: TokenBatch) -> list[T]:
        found: list[T] = []
        for part in parts(hugging_face, batch):
            record = replayed(PackedRecord, hugging_face.hf_model, part)
            if not checked:
                _check(record)
                checked.add(True)
            found += read(part, record)
        return found

    packs = None if last else packing(served, rows)
    step = of_batch if packs is None else partial(packed, packs)
    return by_row(served, batches_of_rows(served, rows, batch_size), step)


def _is_padded(batch: TokenBatch) -> bool:
    # A model may hand a mask to its layers only where there is something to mask.
    return not bool(batch.mask.all())


def _plan(served: Backend, edits: Edits, hook: str) -> EditPlan:
    sites = []
    for site, edit in edits.items():
        layer, name = site if isinstance(site, tuple) else (site, hook)
        served.hook_point(layer, name)
        if edit.is_identity:
            continue
        sites.append((layer + (name == "resid_post"), edit))
    return tuple(sorted(sites, key=lambda item: item[0]))


def _check(record: Record) -> None:
    """Two rows without edits must both reproduce the model's logits."""
    rows = record.streams[0].expand(2, *record.streams[0].shape)
    for layer in range(len(record.streams) - 1):
        rows = replayed(record.block, layer, rows)
    difference = difference_of(replayed(record.logits, rows), record.own_logits)
    if not difference <= rounding(record.own_logits.dtype):
        raise SinglePassError(f"Replayed logits differ from the model's by {difference:.1e}.")


def swept(
    record: Record, plans: Sequence[Plan], reduce: Reduce, memory_budget: int = MEMORY_BUDGET
) -> Float64[Tensor, "plan batch value"]:
    """Reduced logits of every plan in one walk; those of an empty plan are the unedited model's."""
    own = float64(record.own_logits)
    stream = record.streams[0]
    # A block holds several tensors of a row's size at once; those of the MLP are a few times wider.
    chunk = max(1, memory_budget // (16 * stream.numel() * stream.element_size()))
    if stream.device.type == "cpu":
        chunk = min(chunk, max(1, CPU_TOKENS // stream.shape[:2].numel()))
    head = max(1, memory_budget // (8 * 4 * own.numel()))
    unedited = reduce(own[None], own)[0].cpu()
    results: list[Tensor] = [unedited] * len(plans)

    def finisher(numbers: Sequence[int]) -> Callable[[list[int], Tensor], None]:
        def finish(local: list[int], rows: Tensor) -> None:
            for start in range(0, len(local), head):
                logits = replayed(record.logits, rows[start : start + head]).to(own.device).double()
                reduced = reduce(logits, own).cpu()
                for offset, values in enumerate(reduced):
                    results[numbers[local[start + offset]]] = values

        return finish

    rows_in_budget = max(1, memory_budget // (4 * stream.numel() * stream.element_size()))
    edited = sorted((n for n, plan in enumerate(plans) if plan), key=lambda n: [s for s, _ in plans[n]])
    for start in range(0, len(edited), rows_in_budget):
        numbers = edited[start : start + rows_in_budget]
        walk(record, [plans[n] for n in numbers], finisher(numbers), chunk=chunk)
    return torch.stack(results)


def _on_device(plans: Sequence[EditPlan], streams: Sequence[Float[Tensor, "batch pos d"]]) -> list[EditPlan]:
    """The maps in the dtype of their computation, on the device of the stream they edit, still shared."""
    converted: dict[tuple[int, torch.device], AppliedMap] = {}

    def prepared(site: int, edit: AppliedMap) -> AppliedMap:
        stream = streams[site]
        dtype = torch.float32 if stream.dtype in (torch.float16, torch.bfloat16) else stream.dtype
        key = (id(edit), stream.device)
        if key not in converted:
            converted[key] = edit.to(device=stream.device, dtype=dtype)
        return converted[key]

    return [tuple((site, prepared(site, edit)) for site, edit in plan) for plan in plans]
