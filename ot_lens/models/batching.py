"""Padded token batches of like length, within a token budget, that halve themselves when memory runs out."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from ot_lens.errors import BatchHalvedWarning, ModelError, PromptError
from ot_lens.models.chat import encode
from ot_lens.models.protocol import Backend, pad_id
from ot_lens.prompts import Prompt

# Tokens of one batch, padding included: enough to fill an accelerator, about 2 GiB of KV cache at 8B.
TOKEN_BUDGET = 2**14
# Share of padding that the batches of one list stay under, all together.
MOST_PADDING = 0.10
# What torch's CPU allocator says; there is no class of its own for it.
_CPU_ALLOCATOR = ("DefaultCPUAllocator", "can't allocate memory")

T = TypeVar("T")


@dataclass(frozen=True)
class TokenBatch:
    """Left-padded tokens of some prompts.

    Attributes:
        indices: Which prompts, as indices into the list that was batched.
        tokens: Token ids [batch, pos].
        mask: 1 for real tokens [batch, pos].
    """

    indices: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]

    def halves(self) -> "tuple[TokenBatch, TokenBatch]":
        """The first and second half of the rows, at the padded width they have.

        Raises:
            ModelError: If there is one row only.
        """
        if len(self.indices) < 2:
            raise ModelError("a batch of one prompt cannot be halved.")
        cut = (len(self.indices) + 1) // 2
        first, second = slice(0, cut), slice(cut, None)
        return (
            TokenBatch(self.indices[first], self.tokens[first], self.mask[first]),
            TokenBatch(self.indices[second], self.tokens[second], self.mask[second]),
        )


def batches(
    served: Backend,
    prompts: Sequence[Prompt | str],
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
) -> Iterator[TokenBatch]:
    """Batches of rendered prompts of like length, longest first; each names the prompts it holds.

    See `batches_of_rows`.
    """
    return batches_of_rows(served, encode(served, prompts), batch_size, token_budget)


def batches_of_rows(
    served: Backend,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
) -> Iterator[TokenBatch]:
    """Batches of token rows of like length, longest first; each names the rows it holds.

    Longest first, so that a batch too large for the device fails at the start. The same rows are always
    batched alike, in whatever order they come.

    Args:
        served: The model that will run them.
        rows: Token ids of each prompt, unpadded.
        batch_size: Most rows of a batch.
        token_budget: Most tokens of a batch, padding included; a row longer than that is a batch of its own.

    Yields:
        Batches on the model's device; together they hold less than 10 % padding.

    Raises:
        PromptError: If `batch_size` or `token_budget` is below 1.
    """
    for name, value in (("batch_size", batch_size), ("token_budget", token_budget)):
        if value < 1:
            raise PromptError(f"{name} = {value}: it must be at least 1.")
    pad = pad_id(served.tokenizer)
    for chosen in groups_by_length([len(row) for row in rows], batch_size, token_budget, rows):
        tokens, mask = pad_left([rows[i] for i in chosen], pad)
        yield TokenBatch(tuple(chosen), tokens.to(served.device), mask.to(served.device))


def groups_by_length(
    lengths: Sequence[int],
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
    ties: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Indices of rows by descending length, cut where a batch is full or padding would reach its limit.

    The limit holds for the batches so far taken together: what one batch leaves unused the next may spend.

    Args:
        lengths: Tokens of each row.
        batch_size: Most rows of a batch.
        token_budget: Most tokens of a batch, padding included.
        ties: What orders rows of one length, such as their tokens, so that the order they come in changes no
            batch; default: their indices.

    Returns:
        The rows of each batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], list(ties[i]) if ties else [], i))
    groups: list[list[int]] = []
    cells = real = width = 0
    for index in order:
        length = lengths[index]
        joins = (
            bool(groups)
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


def pad_left(
    rows: Sequence[Sequence[int]], pad: int
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Left-pad rows of token ids; returns tokens and mask."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return tokens, mask


def in_memory(run: Callable[[TokenBatch], T], batch: TokenBatch) -> Iterator[tuple[TokenBatch, T]]:
    """Run a batch; where memory does not suffice, its halves, down to single prompts.

    Args:
        run: What to do with a batch. It is called again on parts of a batch that it failed on, so it must
            not leave anything behind when it fails.
        batch: The batch.

    Yields:
        The batch, or the parts of it that fitted, in order, each with what `run` returned.

    Raises:
        ModelError: If a single prompt does not fit.

    Warns:
        BatchHalvedWarning: Once, if the batch was cut.
    """
    waiting, warned = [batch], False
    while waiting:
        part = waiting.pop()
        done, reason = _attempt(run, part)
        if not reason:
            yield from ((part, result) for result in done)
            continue
        # Only here, outside the except block, does nothing hold the tensors of the failed run any more.
        _free(part.tokens.device)
        if len(part.indices) == 1:
            raise ModelError(
                f"one prompt of {part.tokens.shape[1]} tokens does not fit into memory ({reason}): load the "
                "model with dtype='bfloat16', quantization='nf4' or device_map='auto', or shorten the prompt."
            )
        first, second = part.halves()
        if not warned:
            _say_halved(part, first)
            warned = True
        waiting += [second, first]


def _attempt(run: Callable[[TokenBatch], T], batch: TokenBatch) -> tuple[list[T], str]:
    """What `run` returned, or why memory did not suffice."""
    try:
        return [run(batch)], ""
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and not any(w in text for w in _CPU_ALLOCATOR):
            raise
        return [], text.strip().partition("\n")[0] or type(error).__name__


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _say_halved(batch: TokenBatch, half: TokenBatch) -> None:
    warnings.warn(
        f"a batch of {len(batch.indices)} prompts of {batch.tokens.shape[1]} tokens does not fit into "
        f"memory: it runs as batches of {len(half.indices)} or fewer; a smaller batch_size saves the try.",
        BatchHalvedWarning,
        stacklevel=4,
    )
