"""Next-token distributions at the last prompt position: refusal score and divergence."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.behaviour.refusal import declared
from ot_lens.errors import PromptError, nan_logits
from ot_lens.models import Backend, HFBackend, TokenBatch, backend, batches, by_row
from ot_lens.prompts import Prompt
from ot_lens.single_pass.packed import packed_logits, parts

# First words of a refusal of the common chat models, after Arditi et al. 2024, appendix A.2.
DEFAULT_REFUSAL_TOKENS = ("I", "As")
EPSILON = 1e-8


def next_token_logprobs(
    model: Any, prompts: Sequence[Prompt | str], *, batch_size: int = 64
) -> Float64[Tensor, "prompt d_vocab"]:
    """Log-probabilities of the first answer token, float64 on the CPU, under active interventions.

    Raises:
        PromptError: If prompts cannot be rendered.
        ActivationError: If the logits contain NaN, for example because an edit overflowed.
    """
    served = backend(model)

    def logits(batch: TokenBatch) -> Float[Tensor, "batch d_vocab"]:
        return served.logits(batch.tokens, batch.mask, keep=1)[:, -1]

    return _logprobs(served, prompts, batch_size, logits)


def packed_logprobs(
    served: HFBackend, prompts: Sequence[Prompt | str], batch_size: int
) -> Float64[Tensor, "prompt d_vocab"]:
    """The same with what all prompts begin with read once, in a model that `packing` gives, at scope "all".

    Raises:
        ActivationError: If the logits contain NaN.
    """

    def logits(batch: TokenBatch) -> Float[Tensor, "batch d_vocab"]:
        return torch.cat([packed_logits(served, part) for part in parts(served, batch)])

    return _logprobs(served, prompts, batch_size, logits)


def _logprobs(
    served: Backend,
    prompts: Sequence[Prompt | str],
    batch_size: int,
    logits: Callable[[TokenBatch], Float[Tensor, "batch d_vocab"]],
) -> Float64[Tensor, "prompt d_vocab"]:
    def read(batch: TokenBatch) -> Float64[Tensor, "batch d_vocab"]:
        return logits(batch).cpu().double().log_softmax(dim=-1)

    logprobs = torch.stack(by_row(served, batches(served, prompts, batch_size), read))
    bad = int(torch.isnan(logprobs).any(dim=-1).sum())
    if bad:
        raise nan_logits(bad, len(logprobs))
    return logprobs


def kl_divergence(
    original: Float64[Tensor, "*row prompt d_vocab"], edited: Float64[Tensor, "*row prompt d_vocab"]
) -> Float64[Tensor, "*row prompt"]:
    """KL(original || edited) of next-token distributions, in nats, one value per prompt.

    Source: Arditi et al. 2024 (arXiv 2406.11717), appendix C.
    """
    # Tokens of probability zero contribute nothing, although their log-ratio is infinite.
    ratio = torch.where(original.isneginf(), 0.0, original - edited)
    return (original.exp() * ratio).sum(dim=-1).clamp(min=0)


def refusal_token_ids(model: Any, tokens: Sequence[str | int] | None = None) -> tuple[int, ...]:
    """Ids of the tokens that begin a refusal.

    Args:
        model: A hooked model.
        tokens: Words or ids. Default: those that the model declares, else "I" and "As", if each is a single
            token of the vocabulary.

    Raises:
        PromptError: If a word is not a single token of the vocabulary, or an id lies outside it.
    """
    served = backend(model)
    chosen = declared(served).refusal_tokens if tokens is None else tokens
    if tokens is None and not chosen:
        chosen = [word for word in DEFAULT_REFUSAL_TOKENS if _single_id(served, word) is not None]
    if not chosen:
        raise PromptError("There are no refusal tokens: name at least one word that begins a refusal.")
    return token_ids(served, chosen, "Refusal")


def token_ids(served: Backend, tokens: Sequence[str | int], what: str) -> tuple[int, ...]:
    """Ids of words, each a single token of the vocabulary, and of ids; `what` names them in an error."""
    return tuple(sorted({_token_id(served, token, what) for token in tokens}))


def refusal_score(
    model: Any,
    prompts: Sequence[Prompt | str],
    *,
    tokens: Sequence[str | int] | None = None,
    batch_size: int = 64,
) -> Float64[Tensor, " prompt"]:
    """Refusal score of every prompt: log p_R - log(1 - p_R), in nats, under active interventions.

    Source: Arditi et al. 2024 (arXiv 2406.11717), eq. (8), with epsilon 1e-8 inside both logarithms.

    Args:
        model: A hooked model.
        prompts: Requests; the chat template is applied here.
        tokens: Refusal tokens R; see `refusal_token_ids`.
        batch_size: Prompts per batch.

    Raises:
        PromptError: If prompts cannot be rendered or a refusal token is unknown.
    """
    ids = refusal_token_ids(model, tokens)
    return score_from_logprobs(next_token_logprobs(model, prompts, batch_size=batch_size), ids)


def score_from_logprobs(
    logprobs: Float[Tensor, "prompt d_vocab"], token_ids: Sequence[int]
) -> Float64[Tensor, " prompt"]:
    """Refusal score from next-token log-probabilities; see `refusal_score`."""
    p = logprobs[:, list(token_ids)].double().exp().sum(dim=-1)
    return torch.log(p + EPSILON) - torch.log((1 - p).clamp(min=0) + EPSILON)


def _token_id(served: Backend, token: str | int, what: str) -> int:
    if isinstance(token, int):
        if not 0 <= token < served.d_vocab:
            raise PromptError(f"{what} token {token} is outside the vocabulary of {served.d_vocab} tokens.")
        return token
    single = _single_id(served, token)
    if single is None:
        raise PromptError(
            f"{what} token {token!r} is not a single token of this vocabulary: give the first token of what "
            "the model says, as a word or an id."
        )
    return single


def _single_id(served: Backend, word: str) -> int | None:
    """The id of a word that is one token of the vocabulary."""
    ids = list(served.tokenizer(word, add_special_tokens=False)["input_ids"])
    return ids[0] if len(ids) == 1 and ids[0] != served.tokenizer.unk_token_id else None
