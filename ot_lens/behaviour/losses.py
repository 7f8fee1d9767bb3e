"""Losses under active interventions: of reference answers, given the rendered prompt, and of plain text."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from ot_lens.errors import PromptError, nan_logits
from ot_lens.io.untrusted import MIB, read_text
from ot_lens.linalg import float64
from ot_lens.models import (
    Backend,
    TokenBatch,
    backend,
    batches_of_rows,
    by_row,
    check_room,
    check_tokens,
    encode,
    end_of_turn,
    prompt_width,
)
from ot_lens.prompts import Prompt
from ot_lens.statistics import Estimate, perplexity

DEFAULT_WINDOW = 1024
MAX_TEXT = 1024 * MIB
# Logits of long answers fill memory long before their tokens do: bytes of one, and of those of a batch.
LOGIT_BYTES, LOGIT_BUDGET = 8, 1024 * MIB

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TokenLoss:
    """Negative log-likelihood of some tokens, summed per prompt or per window."""

    nll: Float64[Tensor, " row"]  # in nats
    n_tokens: Int[Tensor, " row"]

    @property
    def loss(self) -> float:
        """Mean loss per token, in nats: what Hugging Face's models call the loss."""
        return float(self.nll.sum() / self.n_tokens.sum())

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss per token."""
        return math.exp(self.loss)

    def estimate(self, *, seed: int = 0) -> Estimate:
        """Perplexity with a bootstrap interval over rows, whose number is its n."""
        return perplexity(self.nll.numpy(), self.n_tokens.double().numpy(), seed=seed)


@dataclass(frozen=True, eq=False)
class TextLoss(TokenLoss):
    """Loss of a text: one row per window; each token of the text is scored once."""

    window: int  # tokens per window, including BOS
    stride: int  # tokens from the start of one window to the next


def answer_loss(model: Any, prompts: Sequence[Prompt], *, batch_size: int = 64) -> TokenLoss:
    """Loss of each prompt's reference answer and of its end, under active interventions; one row per prompt.

    Prompts are padded left and answers right, so that every answer starts in the same column, which the token
    scopes of `intervene` are told.

    Raises:
        PromptError: If a prompt has no reference answer, or is longer with it than the model's context.
    """
    answers = reference_answers(model, prompts)
    nll = torch.stack([row.sum() for row in token_losses(model, prompts, answers, batch_size=batch_size)])
    return TokenLoss(nll, torch.tensor([len(answer) for answer in answers]))


def reference_answers(model: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Tokens of each prompt's reference answer and of its end."""
    missing = [i for i, p in enumerate(prompts) if not isinstance(p, Prompt) or not p.answer]
    if missing:
        raise PromptError(f"Prompt {missing[0]} has no reference answer, which perplexity needs.")
    return ended_tokens(model, [str(prompt.answer) for prompt in prompts])


def ended_tokens(model: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of complete answers, each with its end."""
    served = backend(model)
    end = end_of_turn(served)
    rows = [[*served.tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    for i, row in enumerate(rows):
        check_tokens(row, served.d_vocab, f"Answer {i}")
    return rows


def token_losses(
    model: Any, prompts: Sequence[Prompt | str], answers: Sequence[Sequence[int]], *, batch_size: int = 64
) -> list[Float64[Tensor, " token"]]:
    """Loss of every token of answers that are given as tokens; see `answer_loss`."""
    losses = over_answers(
        model, prompts, answers, lambda logprobs, row: -own_logprobs(logprobs, row), batch_size=batch_size
    )
    _checked(torch.stack([row.sum() for row in losses]))
    return losses


def own_logprobs(
    logprobs: Float64[Tensor, "token d_vocab"], row: Int[Tensor, " token"]
) -> Float64[Tensor, " token"]:
    """The log-probability of each token of an answer."""
    return logprobs.gather(-1, row[:, None])[:, 0]


def over_answers(
    model: Any,
    prompts: Sequence[Prompt | str],
    answers: Sequence[Sequence[int]],
    read: Callable[[Float64[Tensor, "token d_vocab"], Int[Tensor, " token"]], T],
    *,
    batch_size: int = 64,
) -> list[T]:
    """What `read` makes of the log-probabilities before each token of an answer, and its tokens."""
    served = backend(model)
    for i, answer in enumerate(answers):
        check_tokens(answer, served.d_vocab, f"Answer {i}")
    logits = LOGIT_BYTES * served.d_vocab * max(len(answer) for answer in answers)
    rows = encode(served, prompts)
    check_room(served, [[*row, *answer] for row, answer in zip(rows, answers, strict=True)])
    whole = batches_of_rows(served, rows, max(1, min(batch_size, LOGIT_BUDGET // logits)))
    return by_row(served, whole, lambda batch: _read_answers(served, batch, answers, read))


def _checked(nll: Float64[Tensor, " row"]) -> Float64[Tensor, " row"]:
    bad = int(nll.isnan().sum())
    if bad:
        raise nan_logits(bad, len(nll))
    return nll


def _read_answers(
    served: Backend,
    batch: TokenBatch,
    answers: Sequence[Sequence[int]],
    read: Callable[[Float64[Tensor, "token d_vocab"], Int[Tensor, " token"]], T],
) -> list[T]:
    rows = [torch.tensor(answers[index]) for index in batch.indices]
    targets = pad_sequence(rows, batch_first=True, padding_value=served.pad_id)
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    tokens = torch.cat([batch.tokens, targets.to(served.device)], dim=1)
    mask = torch.cat([batch.mask, real.to(served.device)], dim=1)
    with prompt_width(batch.tokens.shape[1]):
        logits = served.logits(tokens, mask, keep=targets.shape[1] + 1)
    # Row by row, so that only one float64 copy of a large vocabulary's logits exists at a time.
    return [
        read(of_row[: len(row)].cpu().double().log_softmax(dim=-1), row)
        for of_row, row in zip(logits, rows, strict=True)
    ]


def text_loss(
    model: Any,
    text: str | Path,
    *,
    window: int | None = None,
    stride: int | None = None,
    bos: bool = True,
    batch_size: int = 4,
) -> TextLoss:
    """Loss of a plain text under active interventions; no chat template, and all of it counts as prompt.

    Windows overlap: each scores only the tokens that no earlier window scored, with the others as context, so
    that every token (except the first, unless there is a BOS) is scored exactly once.

    Args:
        model: A hooked model.
        text: The text itself, or the `Path` of a UTF-8 file.
        window: Tokens per window; default: 1024, or the model's context if that is shorter.
        stride: New tokens per window; default: half of the window is context.
        bos: Start each window with the tokenizer's BOS token, if it has one, as in training.
        batch_size: Windows per batch.

    Raises:
        PromptError: If the file cannot be read, the text is too short, or window and stride do not fit.
    """
    served = backend(model)
    first = [served.tokenizer.bos_token_id] if bos and served.tokenizer.bos_token_id is not None else []
    ids = served.tokenizer(_content(text), add_special_tokens=False, verbose=False)["input_ids"]
    if len(first) + len(ids) < 2:
        raise PromptError(f"The text has {len(ids)} tokens: a loss needs a token and one before it.")
    width = _window(window, served.n_ctx)
    room = width - len(first)
    step = max(1, room // 2) if stride is None else stride
    limit = room if first else room - 1  # without BOS, the first new token needs one before it
    if not 1 <= step <= limit:
        raise PromptError(f"stride must be between 1 and {limit} for a window of {width}, got {stride}.")
    rows, scored = _windows(ids, first, room, step)
    whole = batches_of_rows(served, rows, batch_size)
    nll = torch.stack(by_row(served, whole, lambda batch: _window_losses(served, batch, scored)))
    return TextLoss(_checked(nll), torch.tensor(scored), width, step)


def _content(text: str | Path) -> str:
    if isinstance(text, Path):
        return read_text(text, MAX_TEXT, PromptError)
    if os.path.isfile(text):
        raise PromptError(f"{text!r} names a file: pass Path({text!r}) to read it.")
    return text


def _window(window: int | None, n_ctx: int) -> int:
    width = min(DEFAULT_WINDOW, n_ctx or DEFAULT_WINDOW) if window is None else window
    if width < 2 or (n_ctx and width > n_ctx):
        limit = f"and at most {n_ctx}, the model's context" if n_ctx else ""
        raise PromptError(f"window must be at least 2 {limit}, got {window}.")
    return width


def _windows(ids: Sequence[int], first: list[int], room: int, step: int) -> tuple[list[list[int]], list[int]]:
    """Rows of tokens, and how many at the end of each are scored."""
    rows, scored, done = [], [], 0
    for start in range(0, len(ids), step):
        end = min(start + room, len(ids))
        rows.append([*first, *ids[start:end]])
        # Without BOS, nothing precedes the first token.
        scored.append(end - done - (0 if first or start else 1))
        done = end
        if end == len(ids):
            break
    return rows, scored


def _window_losses(served: Backend, batch: TokenBatch, scored: Sequence[int]) -> list[Float64[Tensor, ""]]:
    with prompt_width(batch.tokens.shape[1]):
        logits = served.logits(batch.tokens, batch.mask)
    # Row by row, so that only one float64 copy of a large vocabulary's logits exists at a time.
    return [
        _summed_loss(row[-scored[index] - 1 : -1], ids[-scored[index] :])
        for index, row, ids in zip(batch.indices, logits, batch.tokens, strict=True)
    ]


def _summed_loss(logits: Float[Tensor, "pos d_vocab"], ids: Int[Tensor, " pos"]) -> Float64[Tensor, ""]:
    double = float64(logits)
    return cross_entropy(double, ids.to(double.device), reduction="sum").cpu()
