"""Perplexity of a text, in windows."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import MIB, read_bounded
from ot_lens.models import Backend, TokenBatch, backend, batches_of_rows, evaluating, in_memory, prompt_width
from ot_lens.statistics.estimates import Estimate, perplexity

DEFAULT_WINDOW = 1024
MOST = 1024 * MIB


@dataclass(frozen=True, eq=False)
class TextLoss:
    """Negative log-likelihood of a text, window by window.

    Attributes:
        nll: Sum over the window's scored tokens, in nats.
        n_tokens: Number of those tokens; each token of the text is scored once.
        window: Tokens of a window, its BOS included.
        stride: Tokens from one window's start to the next.
    """

    nll: Float64[Tensor, " window"]
    n_tokens: Int[Tensor, " window"]
    window: int
    stride: int

    @property
    def loss(self) -> float:
        """Mean loss a token, in nats: what Hugging Face's models call the loss."""
        return float(self.nll.sum() / self.n_tokens.sum())

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss a token."""
        return math.exp(self.loss)

    def estimate(self, *, seed: int = 0) -> Estimate:
        """Perplexity with a bootstrap interval over windows, whose number is its n."""
        return perplexity(self.nll.numpy(), self.n_tokens.double().numpy(), seed=seed)


def text_loss(
    model: Any,
    text: str | Path,
    *,
    window: int | None = None,
    stride: int | None = None,
    bos: bool = True,
    batch_size: int = 4,
) -> TextLoss:
    """Loss of a plain text under interventions in force; without chat template, all of it counts as prompt.

    Windows overlap: of each only the tokens that no window before it scored are scored, with the others as
    their context, so that every token but the first (and with a BOS that one too) is scored exactly once.

    Args:
        model: A hooked model.
        text: The text itself, or the `Path` of a UTF-8 file.
        window: Tokens of a window; default: 1024, or the model's context where that is less.
        stride: New tokens of each window; default: half of them are context.
        bos: Begin each window with the tokenizer's BOS token, if it has one, as in training.
        batch_size: Windows a batch.

    Raises:
        PromptError: If the file cannot be read, the text is too short, or window and stride do not fit.
    """
    served = backend(model)
    first = [served.tokenizer.bos_token_id] if bos and served.tokenizer.bos_token_id is not None else []
    ids = served.tokenizer(_read(text), add_special_tokens=False, verbose=False)["input_ids"]
    if len(first) + len(ids) < 2:
        raise PromptError(f"the text has {len(ids)} tokens: a loss needs a token and one before it.")
    width = _window(window, served.n_ctx)
    room = width - len(first)
    step = max(1, room // 2) if stride is None else stride
    most = room if first else room - 1  # the first new token needs one before it
    if not 1 <= step <= most:
        raise PromptError(f"stride = {stride}: with a window of {width} it must lie in 1-{most}.")
    rows, scored = _windows(ids, first, room, step)
    nll = torch.zeros(len(rows), dtype=torch.float64)
    with evaluating(served.model):
        for whole in batches_of_rows(served, rows, batch_size):
            for batch, losses in in_memory(lambda part: _batch_loss(served, part, scored), whole):
                nll[list(batch.indices)] = losses
    return TextLoss(nll, torch.tensor(scored), width, step)


def _read(text: str | Path) -> str:
    if isinstance(text, str):
        if os.path.isfile(text):
            raise PromptError(f"{text!r} names a file: hand in Path({text!r}) to read it.")
        return text
    try:
        return read_bounded(text, MOST, PromptError).decode()
    except FileNotFoundError as error:
        raise PromptError(f"no file {str(text)!r}: check the path.") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{text}: not UTF-8 text ({error.reason} at byte {error.start}).") from error


def _window(window: int | None, n_ctx: int) -> int:
    width = min(DEFAULT_WINDOW, n_ctx or DEFAULT_WINDOW) if window is None else window
    if width < 2 or (n_ctx and width > n_ctx):
        raise PromptError(f"window = {window}: it must lie in 2-{n_ctx or 'any'}, the model's context.")
    return width


def _windows(ids: Sequence[int], first: list[int], room: int, step: int) -> tuple[list[list[int]], list[int]]:
    """Rows of tokens, and how many at the end of each are scored."""
    rows, scored, done = [], [], 0
    for start in range(0, len(ids), step):
        end = min(start + room, len(ids))
        rows.append([*first, *ids[start:end]])
        # Without a BOS nothing stands before the very first token, so it cannot be scored.
        scored.append(end - done - (0 if first or start else 1))
        done = end
        if end == len(ids):
            break
    return rows, scored


def _batch_loss(served: Backend, batch: TokenBatch, scored: Sequence[int]) -> Float64[Tensor, " window"]:
    with prompt_width(batch.tokens.shape[1]):
        logits = served.logits(batch.tokens, batch.mask)
    losses = [
        _row_loss(row[-scored[index] - 1 : -1], ids[-scored[index] :])
        for index, row, ids in zip(batch.indices, logits, batch.tokens, strict=True)
    ]
    return torch.stack(losses).cpu()


def _row_loss(logits: Float[Tensor, "pos d_vocab"], ids: Int[Tensor, " pos"]) -> Float64[Tensor, ""]:
    """Row by row: the float64 copy of a large vocabulary's logits is kept no longer than it is needed."""
    return torch.nn.functional.cross_entropy(logits.double(), ids, reduction="sum")
