"""Padded token batches of like length, within a token budget, that halve themselves when memory runs out."""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from ot_lens.errors import BatchHalvedWarning, ModelError, PromptError
from ot_lens.models.backends import Backend
from ot_lens.models.chat import encode
from ot_lens.models.hooked import check_tokens, pad_left
from ot_lens.models.reversible import evaluating
from ot_lens.prompts import Prompt

# Tokens of one batch, padding included: enough to fill an accelerator, about 2 GiB of KV cache at 8B.
TOKEN_BUDGET = 2**14
# The batches of one list together stay below this share of padding.
MOST_PADDING = 0.10
# torch's CPU allocator raises a plain RuntimeError.
_CPU_ALLOCATOR = ("DefaultCPUAllocator", "can't allocate memory")

T = TypeVar("T")


@dataclass(frozen=True)
class TokenBatch:
    """Left-padded tokens of some prompts."""

    indices: tuple[int, ...]  # of these prompts in the list that was batched
    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]  # 1 for real tokens

    def halves(self) -> "list[TokenBatch]":
        """The first and second half of the rows, at the same padded width."""
        cut = (len(self.indices) + 1) // 2
        halves = slice(0, cut), slice(cut, None)
        return [TokenBatch(self.indices[half], self.tokens[half], self.mask[half]) for half in halves]


def token_batch(
    served: Backend, rows: Sequence[Sequence[int]], indices: Sequence[int] | None = None
) -> TokenBatch:
    """Rows of token ids as one batch on the model's device."""
    numbers = tuple(range(len(rows)) if indices is None else indices)
    for number, row in zip(numbers, rows, strict=True):
        check_tokens(row, served.d_vocab, f"Prompt {number}")
    tokens, mask = pad_left(rows, served.pad_id)
    return TokenBatch(numbers, tokens.to(served.device), mask.to(served.device))


def batches(
    served: Backend,
    prompts: Sequence[Prompt | str],
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
) -> Iterator[TokenBatch]:
    """Batches of rendered prompts; see `batches_of_rows`."""
    return batches_of_rows(served, encode(served, prompts), batch_size, token_budget)


def batches_of_rows(
    served: Backend,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
) -> Iterator[TokenBatch]:
    """Batches of token rows of similar length, longest first: one too large for the device fails at once."""
    for name, value in (("batch_size", batch_size), ("token_budget", token_budget)):
        if value < 1:
            raise PromptError(f"{name} must be at least 1, got {value}.")
    lengths = [len(row) for row in rows]
    for group in groups_by_length(lengths, batch_size, token_budget, rows, padded=served.pads):
        yield token_batch(served, [rows[i] for i in group], group)


def groups_by_length(
    lengths: Sequence[int],
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
    ties: Sequence[Sequence[int]] | None = None,
    padded: bool = True,
) -> list[list[int]]:
    """Indices of rows by descending length, split where a batch is full or has too much padding."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], list(ties[i]) if ties else [], i))
    groups: list[list[int]] = []
    cells = real = width = 0
    for index in order:
        length = lengths[index]
        joins = (
            bool(groups)
            and (padded or length == width)
            and len(groups[-1]) < batch_size
            and width * (len(groups[-1]) + 1) <= token_budget
            and (cells + width) - (real + length) < MOST_PADDING * (cells + width)
        )
        if joins:
            groups[-1].append(index)
        else:
            groups.append([index])
            width = length
        cells, real = cells + width, real + length
    return groups


def in_memory(run: Callable[[TokenBatch], T], batch: TokenBatch) -> Iterator[tuple[TokenBatch, T]]:
    """Run a batch; if memory runs out, its halves, down to single prompts, each with its result.

    `run` is called again on halves of a batch that it failed on, so a failure must leave nothing behind.
    """
    waiting, warned = [batch], False
    while waiting:
        part = waiting.pop()
        done, reason = _attempt(run, part)
        if not reason:
            yield from ((part, result) for result in done)
            continue
        # Only here, outside the except block, does nothing refer to the tensors of the failed run.
        gc.collect()
        if part.tokens.is_cuda:
            torch.cuda.empty_cache()
        if len(part.indices) == 1:
            raise ModelError(
                f"One prompt of {part.tokens.shape[1]} tokens does not fit into memory ({reason}): load the "
                "model with dtype='bfloat16', quantization='nf4' or device_map='auto', or shorten the prompt."
            )
        first, second = part.halves()
        if not warned:
            warnings.warn(
                f"A batch of {len(part.indices)} prompts of {part.tokens.shape[1]} tokens does not fit into "
                f"memory: it runs as batches of {len(first.indices)} or fewer; a smaller batch_size avoids "
                "this.",
                BatchHalvedWarning,
                stacklevel=3,
            )
            warned = True
        waiting += [second, first]


def by_row(
    served: Backend,
    whole_batches: Iterable[TokenBatch],
    run: Callable[[TokenBatch], Iterable[T]],
    progress: Callable[[int], None] | None = None,
) -> list[T]:
    """What `run` gives for each row of the batches, in the order of the rows, with the model evaluating."""
    results: dict[int, T] = {}
    with evaluating(served.model):
        for whole in whole_batches:
            for batch, values in in_memory(run, whole):
                results.update(zip(batch.indices, values, strict=True))
                if progress is not None:
                    progress(len(batch.indices))
    return [results[index] for index in range(len(results))]


def _attempt(run: Callable[[TokenBatch], T], batch: TokenBatch) -> tuple[list[T], str]:
    """The result, or the reason why memory did not suffice."""
    try:
        return [run(batch)], ""
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return [], str(error).strip().partition("\n")[0] or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _CPU_ALLOCATOR)
    )
