"""Token positions: by index from a prompt's end, by name, or their mean."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ot_lens.errors import HookError, one_of
from ot_lens.models import backend, instruction_end, post_instruction_tokens
from ot_lens.samples import FIRST

THOUGHT_END = "thought_end"
INSTRUCTION_LAST = "instruction_last"
NAMED = ("last", "post_instruction", INSTRUCTION_LAST, FIRST, THOUGHT_END)
# Tokens that no index from the end has in all prompts; the instruction's last one has under most templates.
UNCOUNTED = (FIRST, THOUGHT_END, INSTRUCTION_LAST)
OF_TEMPLATES = ("post_instruction", INSTRUCTION_LAST)
REDUCTIONS = ("mean",)

Positions = str | int | Sequence[int | str]


def resolve_positions(model: Any, positions: Positions) -> tuple[int | str, ...]:
    """Positions as indices from a prompt's end, or names of those that have none.

    Args:
        model: A hooked model, whose chat template determines which positions follow the instruction.
        positions: "last" (-1), "post_instruction" (-m, ..., -1: the m tokens of the template after the
            instruction), one negative integer, "instruction_last" (the last token of the user's text: -m - 1
            where that is the same token in every prompt), "first" (of the rendered prompt, the special token
            that models begin with included), "thought_end", or several of these four.

    Raises:
        HookError: If a name is unknown, an index is not negative, or nothing follows the instruction.
        PromptError: If the last token of the user's text cannot be told.
    """
    if positions != "post_instruction":
        chosen = indices(positions)
        if INSTRUCTION_LAST not in chosen:
            return chosen
        end = instruction_end(backend(model))
        return indices([end if p == INSTRUCTION_LAST and end is not None else p for p in chosen])
    count = len(post_instruction_tokens(backend(model)))
    if count == 0:
        raise HookError(
            "This model's chat template has nothing after the instruction: give indices, such as [-1]."
        )
    return tuple(range(-count, 0))


def indices(positions: Positions) -> tuple[int | str, ...]:
    """Positions that do not depend on a model's template, as indices from a prompt's end."""
    if isinstance(positions, str) and positions not in UNCOUNTED:
        one_of("named position", positions, NAMED, HookError)
        if positions != "last":
            raise HookError(
                f"positions = {positions!r} depends on a model's template: "
                f"pass resolve_positions(model, {positions!r})."
            )
        return (-1,)
    chosen = (positions,) if isinstance(positions, int | str) else tuple(positions)
    if not chosen or any(not _is_position(p) for p in chosen):
        raise HookError(
            f"positions must be negative integers (-1 is the prompt's last token), {FIRST!r}, "
            f"{INSTRUCTION_LAST!r} or {THOUGHT_END!r}, got {list(chosen)}."
        )
    if len(set(chosen)) < len(chosen):
        raise HookError(f"positions must be distinct, got {list(chosen)}.")
    return chosen


def _is_position(value: Any) -> bool:
    return value in UNCOUNTED or (isinstance(value, int) and not isinstance(value, bool) and value < 0)


def labels(positions: Sequence[int | str], reduce: str | None) -> tuple[int | str, ...]:
    """Labels of the position axis: the indices, or the name of the reduction."""
    if reduce is None:
        return tuple(positions)
    one_of("reduction of positions", reduce, REDUCTIONS, HookError)
    return (reduce,)


def captured_index(captured: Sequence[int | str], position: int | str | None) -> int:
    """Index of a position among those captured; None if there is only one."""
    if position is None and len(captured) == 1:
        return 0
    if position is None:
        raise HookError(f"Name a position: {list(captured)} were captured.")
    label = -1 if position == "last" else position
    if label not in captured:
        raise HookError(f"Position {position} was not captured: only {list(captured)} were.")
    return captured.index(label)


def columns(
    batch: int,
    width: int,
    mask: Int[Tensor, "batch pos"] | None,
    positions: Sequence[int | str],
    thoughts: Sequence[int] = (),
    instructions: Sequence[int] = (),
) -> Int[Tensor, "batch position"]:
    """Columns of positions counted from each prompt's last real token; without a mask every token is real.

    Behind each prompt there may be a thought of some length; `THOUGHT_END` is its last token.
    `instructions` are the indices of `INSTRUCTION_LAST`, one per prompt.
    """
    if mask is None:
        last = torch.full((batch,), width - 1)
        first = torch.zeros(batch, dtype=torch.long)
    else:
        real = mask.bool()
        last = width - 1 - real.flip(1).int().argmax(1)
        first = real.int().argmax(1)
    end = last - torch.tensor(list(thoughts) or 0, device=last.device)
    check_length(int((end - first).min()) + 1, positions)
    named = {FIRST: first, THOUGHT_END: last}
    if instructions:
        named[INSTRUCTION_LAST] = end + 1 + torch.tensor(list(instructions), device=last.device)
    return torch.stack([named[p] if isinstance(p, str) else end + 1 + p for p in positions], dim=1)


def check_length(shortest: int, positions: Sequence[int | str]) -> None:
    """Check that the shortest prompt has every position."""
    earliest = min((p for p in positions if isinstance(p, int)), default=-1)
    if -earliest > shortest:
        raise HookError(
            f"Position {earliest} lies before the first token of a prompt: the shortest has "
            f"{shortest} tokens."
        )


def gather(
    x: Float[Tensor, "batch pos d"], at: Int[Tensor, "batch position"], reduce: str | None = None
) -> Float[Tensor, "batch label d"]:
    """Copies of the rows at columns of each prompt; or their mean, at least in float32."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    values = x[rows, at.to(x.device)].detach()
    if reduce is None:
        return values
    return values.mean(1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
