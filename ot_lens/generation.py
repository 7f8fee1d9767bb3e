"""Greedy completions of chat prompts in batches, token for token the same as one prompt at a time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ot_lens.errors import PromptError
from ot_lens.models import Backend, TokenBatch, backend, batches, by_row, read_answer
from ot_lens.models.overflow import no_nan
from ot_lens.prompts import Prompt


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: The answer, without special tokens and without the thought before it; "" if that never ended.
        n_tokens: Number of tokens generated, without the end-of-sequence token.
        truncated: Whether the token budget ended the answer rather than the model.
        tokens: Ids of the generated tokens with the one that ended the answer; empty for saved answers.
        thought: What a thinking model wrote before its answer; None if it did not think. Never judged.
    """

    text: str
    n_tokens: int
    truncated: bool
    tokens: tuple[int, ...] = field(default=(), repr=False, compare=False)
    thought: str | None = field(default=None, repr=False)


def complete(
    model: Any,
    prompts: Sequence[Prompt | str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    use_cache: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Answer prompts greedily, under the interventions that are active.

    Args:
        model: A hooked model.
        prompts: Requests; the chat template is applied here.
        max_new_tokens: Token budget of each answer.
        batch_size: Prompts per batch.
        use_cache: Use the KV cache.
        progress: Called with the number of prompts just finished.

    Returns:
        One completion per prompt, in the order of `prompts`.

    Raises:
        PromptError: If prompts are empty, cannot be rendered, or the budget is below 1.
    """
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    served = backend(model)
    whole = batches(served, prompts, batch_size)
    return answers(served, whole, max_new_tokens, use_cache=use_cache, progress=progress)


def answers(
    served: Backend,
    whole_batches: Iterable[TokenBatch],
    max_new_tokens: int,
    *,
    use_cache: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Answer tokens of rendered prompts greedily."""
    stops = served.terminators

    def generate(batch: TokenBatch) -> list[Completion]:
        new = served.generate(batch.tokens, batch.mask, max_new_tokens, stops, use_cache)
        return [_completion(served, row, stops) for row in new]

    with no_nan(served.hf_model or served.model, last_only=True):
        return by_row(served, whole_batches, generate, progress)


def _completion(served: Backend, row: Int[Tensor, " new"], stops: Sequence[int]) -> Completion:
    ids = row.tolist()
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    given = tuple(ids if end is None else ids[: end + 1])
    answer = read_answer(served, ids[:end])
    return Completion(answer.text, len(ids[:end]), end is None, given, answer.thought)
