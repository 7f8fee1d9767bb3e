"""Greedy completions of chat prompts in batches, token for token the same as one prompt at a time."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.models import (
    Backend,
    TokenBatch,
    backend,
    batches_of_rows,
    by_row,
    check_room,
    encode,
    read_answer,
    separator_length,
    template_of,
    thought_ends,
    thought_length,
)
from ot_lens.models.overflow import no_nan
from ot_lens.prompts import Prompt

THOUGHT_TOKENS = 4096
# Tokens that may separate a thought from the answer, such as white space.
SEPARATORS = 8


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: The answer, without special tokens and without the thought before it; "" if that never ended.
        n_tokens: Number of tokens generated, without the end-of-sequence token.
        truncated: Whether the token budget ended the answer rather than the model.
        tokens: Ids of the generated tokens with the one that ended the answer; empty for saved answers.
        thought: What a thinking model wrote before its answer; None if it did not think. Never judged.
        opened: Whether the tokens begin inside a thought, which the prompt opens.
    """

    text: str
    n_tokens: int
    truncated: bool
    tokens: tuple[int, ...] = field(default=(), repr=False, compare=False)
    thought: str | None = field(default=None, repr=False)
    opened: bool = field(default=False, repr=False, compare=False)


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
        PromptError: If prompts are empty, cannot be rendered, have no room for the budget in the model's
            context, or the budget is below 1.
    """
    served = backend(model)
    whole = batches_of_rows(served, encode(served, prompts, room=max_new_tokens), batch_size)
    opened = opened_thoughts(served, prompts)
    return answers(served, whole, max_new_tokens, opened, use_cache=use_cache, progress=progress)


def opened_thoughts(served: Backend, prompts: Sequence[Prompt | str]) -> list[bool]:
    """Whether each prompt, as rendered, ends inside a thought."""
    opens = template_of(served).opened
    return [opens and getattr(prompt, "thought", None) is None for prompt in prompts]


def answers(
    served: Backend,
    whole_batches: Iterable[TokenBatch],
    max_new_tokens: int,
    opened: Sequence[bool],
    *,
    use_cache: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Answer tokens of rendered prompts greedily; `opened` says of each whether it ends inside a thought."""
    stops = served.terminators
    rows = generated(served, whole_batches, max_new_tokens, stops, use_cache, progress)
    return [completion(served, ids, inside) for ids, inside in zip(rows, opened, strict=True)]


def generated(
    served: Backend,
    whole_batches: Iterable[TokenBatch],
    max_new_tokens: int,
    stops: Sequence[int],
    use_cache: bool = True,
    progress: Callable[[int], None] | None = None,
    editing: Callable[[TokenBatch], AbstractContextManager[Any]] = lambda _: nullcontext(),
    read: Callable[[TokenBatch], Any] | None = None,
) -> list[list[int]]:
    """The new tokens of each row, up to the one that stopped it.

    `editing` surrounds each batch; `read` gives what a Hugging Face model has read of it already.
    """
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")

    def generate(batch: TokenBatch) -> list[list[int]]:
        known = {"read": read(batch)} if read is not None else {}
        with editing(batch):
            new = served.generate(batch.tokens, batch.mask, max_new_tokens, stops, use_cache, **known)
            return new.tolist()

    with no_nan(served.hf_model or served.model, last_only=True):
        rows = by_row(served, whole_batches, generate, progress)
    ends = [next((i for i, token in enumerate(row) if token in stops), len(row)) for row in rows]
    return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]


def completion(served: Backend, given: Sequence[int], opened: bool) -> Completion:
    """The answer that generated tokens say; `opened`: they begin inside a thought."""
    truncated = not given or given[-1] not in served.terminators
    ids = given if truncated else given[:-1]
    answer = read_answer(served, ids, opened=opened)
    return Completion(answer.text, len(ids), truncated, tuple(given), answer.thought, opened)


def think(
    model: Any,
    prompts: Sequence[Prompt | str],
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
) -> tuple[Prompt, ...]:
    """Let a thinking model think greedily, under the interventions that are active: prompts with thoughts.

    A thought includes what closes it and what the model writes between it and the answer (white space,
    control tokens; in gpt-oss the header of the answer). It becomes part of the prompt for every measure:
    position -1 is where the answer begins, next-token measures read the answer's first token, and completions
    are the answer.

    Args:
        model: A hooked model whose prompts ask for thoughts (`load_model(thinking=True)`).
        prompts: Requests; if all of them have thoughts, they are returned as they are.
        max_new_tokens: Token budget of a thought; default: 4096, or what the model's context leaves.
        batch_size: Prompts per batch.

    Returns:
        The prompts in their order. One that the model answers without a thought has an empty one.

    Raises:
        PromptError: If the model's prompts ask for no thoughts, a thought does not end within the budget, or
            prompt and budget are longer than the model's context.
    """
    served = backend(model)
    thinking = template_of(served).thinking
    if thinking in (None, "off", "closed"):
        raise PromptError(
            f"The prompts of this model ask for no thoughts (thinking: {thinking or 'not in its template'}): "
            "its answers begin at position -1. load_model(thinking=True) asks for thoughts if the chat "
            "template knows of them."
        )
    given = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
    if all(prompt.thought is not None for prompt in given):
        return tuple(given)
    given = [replace(prompt, thought=None) for prompt in given]
    thoughts = _thoughts(served, encode(served, given), max_new_tokens, batch_size)
    return tuple(replace(p, thought=tuple(ids)) for p, ids in zip(given, thoughts, strict=True))


def _thoughts(
    served: Backend, rows: Sequence[Sequence[int]], budget: int | None, batch_size: int
) -> list[list[int]]:
    """The tokens between each rendered prompt and its answer."""
    if budget is None:
        room = served.n_ctx - max(map(len, rows)) - SEPARATORS if served.n_ctx else THOUGHT_TOKENS
        budget = max(1, min(THOUGHT_TOKENS, room))
    check_room(served, rows, budget + SEPARATORS)

    def continued(rows: Sequence[Sequence[int]], most: int, stops: Sequence[int]) -> list[list[int]]:
        return generated(served, batches_of_rows(served, rows, batch_size), most, stops)

    opened = template_of(served).opened
    written = continued(rows, budget, (*served.terminators, *thought_ends(served)))
    lengths = [thought_length(served, ids, opened=opened) for ids in written]
    endless = [i for i, length in enumerate(lengths) if length is None]
    if endless:
        raise PromptError(
            f"Prompt {endless[0]} does not end its thought within {budget} tokens ({len(endless)} of "
            f"{len(rows)} prompts): think(model, prompts, max_new_tokens=N) allows more; or drop them."
        )
    thoughts = [ids[:length] for ids, length in zip(written, lengths, strict=True)]
    ended = [i for i, ids in enumerate(thoughts) if ids]
    after = continued([[*rows[i], *thoughts[i]] for i in ended], SEPARATORS, served.terminators)
    for i, ids in zip(ended, after, strict=True):
        thoughts[i] += ids[: separator_length(served, ids)]
    return thoughts
