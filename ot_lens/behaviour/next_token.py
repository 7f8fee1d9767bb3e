"""Next-token distributions at the last prompt position, and their divergence."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import ActivationError
from ot_lens.models import TokenBatch, backend, batches, evaluating, in_memory
from ot_lens.prompts import Prompt


def next_token_logprobs(
    model: Any, prompts: Sequence[Prompt | str], *, batch_size: int = 64
) -> Float64[Tensor, "prompt d_vocab"]:
    """Log-probabilities of the first answer token, float64 on the CPU, under active interventions.

    Raises:
        PromptError: If prompts cannot be rendered.
        ActivationError: If the logits contain NaN, for example because an edit overflowed.
    """
    served = backend(model)
    rows: list[tuple[int, Tensor]] = []

    def last_logits(batch: TokenBatch) -> Float64[Tensor, "batch d_vocab"]:
        return served.logits(batch.tokens, batch.mask, keep=1)[:, -1].cpu().double()

    with evaluating(served.model):
        for whole in batches(served, prompts, batch_size):
            for batch, logits in in_memory(last_logits, whole):
                rows.extend(zip(batch.indices, logits.log_softmax(dim=-1), strict=True))
    logprobs = torch.stack([row for _, row in sorted(rows, key=lambda item: item[0])])
    bad = int(torch.isnan(logprobs).any(dim=-1).sum())
    if bad:
        raise ActivationError(
            f"The model's logits contain NaN for {bad} of {len(rows)} prompts: use bfloat16 or float32, "
            "or a weaker edit."
        )
    return logprobs


def kl_divergence(
    original: Float64[Tensor, "*row prompt d_vocab"], edited: Float64[Tensor, "*row prompt d_vocab"]
) -> Float64[Tensor, "*row prompt"]:
    """KL(original || edited) of next-token distributions, in nats, one value per prompt.

    Source: Arditi et al. 2024 (arXiv 2406.11717), appendix C.
    """
    # Tokens of probability zero contribute nothing, although their log-ratio is infinite.
    ratio = torch.where(original.isneginf(), torch.zeros_like(original), original - edited)
    return (original.exp() * ratio).sum(dim=-1).clamp(min=0)
