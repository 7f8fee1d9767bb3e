"""An answer token by token: how likely each one is, and how close to a refusal the model is before it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float64, Int
from torch import Tensor

from ot_lens.behaviour.coherence import answer_tokens
from ot_lens.behaviour.losses import over_answers, own_logprobs
from ot_lens.behaviour.next_token import refusal_token_ids, score_from_logprobs
from ot_lens.errors import PromptError, nan_logits
from ot_lens.generation import Completion
from ot_lens.models import backend
from ot_lens.prompts import Prompt


def token_scores(
    model: Any,
    prompts: Sequence[Prompt | str],
    completions: Sequence[Completion],
    *,
    refusal_tokens: Sequence[str | int] | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Score given answers token by token, under active interventions.

    Args:
        model: A hooked model.
        prompts: The requests.
        completions: One answer per request, of `complete`; saved ones are tokenized again.
        refusal_tokens: As in `refusal_token_ids`.
        batch_size: Prompts per batch.

    Returns:
        One row per prompt and token of its answer, the one that ended it included: prompt, position (0 is the
        first), token_id, token, log_probability (nats) and refusal_score (nats, of the next token before this
        one is given).

    Raises:
        PromptError: If there is not one answer per prompt, or a refusal token is unknown.
        ActivationError: If the model's logits contain NaN.
    """
    if len(prompts) != len(completions):
        raise PromptError(f"Got {len(prompts)} prompts but {len(completions)} completions.")
    refusal, tokenizer = refusal_token_ids(model, refusal_tokens), backend(model).tokenizer

    def read(logprobs: Float64[Tensor, "token d_vocab"], row: Int[Tensor, " token"]) -> pd.DataFrame:
        own = own_logprobs(logprobs, row)
        bad = int(own.isnan().sum())
        if bad:
            raise nan_logits(bad, len(row))
        ids = row.tolist()
        return pd.DataFrame(
            {
                "position": range(len(ids)),
                "token_id": ids,
                "token": [str(tokenizer.decode([i])) for i in ids],
                "log_probability": own.numpy(),
                "refusal_score": score_from_logprobs(logprobs, refusal).numpy(),
            }
        )

    answers = [answer_tokens(model, answer) for answer in completions]
    tables = over_answers(model, prompts, answers, read, batch_size=batch_size)
    for number, table in enumerate(tables):
        table.insert(0, "prompt", number)
    return pd.concat(tables, ignore_index=True)
