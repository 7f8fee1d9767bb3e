"""Which tokens are replaced: one counted from the prompt's end, or those of the instruction together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ot_lens.errors import HookError, PromptError, one_of
from ot_lens.models import Backend, common_prefix, post_instruction_tokens
from ot_lens.prompts import Prompt

LAST, INSTRUCTION, TEMPLATE, SUFFIX = "last", "instruction", "template", "suffix"
GROUPS = (INSTRUCTION, TEMPLATE, SUFFIX)
# What a token from the prompt's end belongs to; 0 is what all prompts begin with, and padding.
_INSTRUCTION, _TEMPLATE = 1, 2

Positions = int | str | Sequence[int | str]


@dataclass(frozen=True, eq=False)
class Regions:
    """What each of the last tokens of each prompt belongs to, and the text of those of the template."""

    of: Int[Tensor, "prompt pos"]
    template: tuple[str, ...]

    @classmethod
    def read(cls, served: Backend, prompts: Sequence[Prompt], rows: Sequence[Sequence[int]]) -> "Regions":
        """Of rendered prompts; what all of them begin with is the template's."""
        if any(prompt.thought for prompt in prompts):
            raise PromptError(
                "Prompts with thoughts of different lengths have no common positions from their end: pass "
                "prompts without thoughts."
            )
        after = post_instruction_tokens(served)
        before = len(common_prefix([row[: len(row) - len(after)] for row in rows]))
        longest = max(map(len, rows)) - before
        of = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            of[number, longest - (len(row) - before) :] = _INSTRUCTION
        of[:, longest - len(after) :] = _TEMPLATE
        return cls(of, tuple(_text(served, token) for token in after))

    def token(self, position: int) -> str:
        """The text of a token of the template; those of the instruction differ from prompt to prompt."""
        return self.template[position] if -position <= len(self.template) else INSTRUCTION


@dataclass(frozen=True, eq=False)
class Place:
    """Tokens that are replaced together: one from the prompt's end, or a group."""

    name: str
    token: str
    mask: Bool[Tensor, "prompt pos"]


def places(regions: Regions, positions: Positions) -> list[Place]:
    """The places of `positions`, in order: an integer n is the last n tokens, one by one."""
    chosen: Sequence[int | str]
    if isinstance(positions, int):
        if isinstance(positions, bool) or positions < 1:
            raise HookError(f"positions = {positions!r}: give at least 1, the last token.")
        chosen = range(-min(positions, regions.of.shape[1]), 0)
    else:
        chosen = [positions] if isinstance(positions, str) else list(positions)
    found = [_place(regions, position) for position in chosen]
    if not found or len({place.name for place in found}) < len(found):
        raise HookError(f"positions must be distinct and at least one, got {list(chosen)}.")
    return found


def _place(regions: Regions, position: int | str) -> Place:
    if isinstance(position, str) and position != LAST:
        one_of("group of tokens", position, (LAST, *GROUPS), HookError)
        wanted = {INSTRUCTION: (_INSTRUCTION,), TEMPLATE: (_TEMPLATE,), SUFFIX: (_INSTRUCTION, _TEMPLATE)}
        mask = torch.isin(regions.of, torch.tensor(wanted[position]))
        name = token = position
    else:
        index = -1 if isinstance(position, str) else position
        if isinstance(index, bool) or not -regions.of.shape[1] <= index < 0:
            raise HookError(
                f"Position {index!r} is none of the {regions.of.shape[1]} tokens behind what all prompts "
                "begin with: count from -1, the last."
            )
        mask = torch.zeros_like(regions.of, dtype=torch.bool)
        mask[:, index] = regions.of[:, index] > 0
        name, token = str(index), regions.token(index)
    if not bool(mask.any()):
        raise HookError(f"No prompt has a token at {position!r}: this model's template has nothing there.")
    return Place(name, token, mask)


def tail(found: Sequence[Place]) -> int:
    """How many of the last tokens the places need."""
    columns = torch.stack([place.mask for place in found]).flatten(0, 1).any(dim=0)
    return len(columns) - int(columns.int().argmax())


def _text(served: Backend, token: int) -> str:
    text = str(served.tokenizer.decode([token]))
    return text.replace("\n", "\\n") if text.strip(" ") else "space"
