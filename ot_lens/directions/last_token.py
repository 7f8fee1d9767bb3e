"""What a model computes at the last prompt token: next-token distributions and activations in one pass."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import nan_logits
from ot_lens.models import Backend, Reversible, TokenBatch, backend, batches, by_row
from ot_lens.prompts import Prompt


def read_last_token(
    model: Any, prompts: Sequence[Prompt | str], layers: Sequence[int], *, batch_size: int = 64
) -> tuple[Float64[Tensor, "prompt d_vocab"], Float64[Tensor, "layer prompt d"]]:
    """Log-probabilities of the first answer token and block outputs (resid_post), under active interventions.

    Raises:
        PromptError: If prompts cannot be rendered.
        ActivationError: If the logits contain NaN, for example because an edit overflowed.
    """
    served = backend(model)
    rows = by_row(served, batches(served, prompts, batch_size), partial(_read, served, layers))
    logprobs = torch.stack([logprobs for logprobs, _ in rows])
    bad = int(torch.isnan(logprobs).any(dim=-1).sum())
    if bad:
        raise nan_logits(bad, len(logprobs))
    return logprobs, torch.stack([activations for _, activations in rows], dim=1)


def _read(served: Backend, layers: Sequence[int], batch: TokenBatch) -> list[tuple[Tensor, Tensor]]:
    seen: dict[int, Tensor] = {}

    def listen(changes: Reversible[None]) -> None:
        for layer in layers:
            changes.edit(served.hook_point(layer, "resid_post"), partial(_keep, seen, layer))

    with Reversible(listen):
        logits = served.logits(batch.tokens, batch.mask, keep=1)[:, -1]
    activations = torch.stack([seen[layer] for layer in layers], dim=1)
    return list(zip(logits.cpu().double().log_softmax(dim=-1), activations, strict=True))


def _keep(seen: dict[int, Tensor], layer: int, x: Tensor, hook: Any) -> None:  # noqa: ARG001  passed by name
    # Batches are padded on the left.
    seen[layer] = x[:, -1].detach().cpu().double()
