"""Where the user's text ends in a rendered prompt: its last token, before the template's closing tokens."""

from collections.abc import Sequence
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.models.backends import Backend
from ot_lens.models.chat import instruction_probes, render
from ot_lens.models.templates import PROBE, template_name
from ot_lens.prompts import Prompt


def instruction_ends(served: Backend, prompts: Sequence[Prompt | str]) -> list[int]:
    """Index of the last token of each prompt's own text, counted from the rendered prompt's end.

    It is the last token with a character of the user's text, so a token that merges the end of the text with
    what the template writes after it counts. White space at the end of a prompt belongs to it where the
    template keeps it.

    Raises:
        PromptError: If the template writes something after a prompt that depends on the prompt, or the
            tokenizer cannot tell the characters of a token.
    """
    closing = render(served, [PROBE])[0].rpartition(PROBE)[2]
    texts = render(served, prompts)
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        own = prompt if isinstance(prompt, str) else prompt.text
        written = text.removesuffix(closing)
        if not text.endswith(closing) or not _squeezed(written).endswith(_squeezed(own)):
            raise PromptError(
                f"Prompt {i}: the chat template of {template_name(served.tokenizer)} writes something after "
                "the user's text that depends on the text, so that its last token cannot be told: give an "
                "index, such as -1."
            )
    return [_last_token(served.tokenizer, text, len(text) - len(closing)) for text in texts]


def instruction_end(served: Backend) -> int | None:
    """The index that `instruction_ends` gives for every prompt; None if it depends on the prompt.

    Raises:
        PromptError: As `instruction_ends`.
    """
    found = set(instruction_ends(served, instruction_probes(served)))
    return found.pop() if len(found) == 1 else None


def _last_token(tokenizer: Any, text: str, end: int) -> int:
    """Index from the end of the last token that begins before a character."""
    if not tokenizer.is_fast:
        return _by_prefix(tokenizer, text, end)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    return max(i for i, (start, stop) in enumerate(offsets) if start < min(end, stop)) - len(offsets)


def _by_prefix(tokenizer: Any, text: str, end: int) -> int:
    """The same from the tokens of the text up to there, which must be the first tokens of all."""
    whole, first = (
        tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] for part in (text, text[:end])
    )
    if whole[: len(first)] != first:
        raise PromptError(
            f"The tokenizer of {template_name(tokenizer)} does not tell which characters a token has, and "
            "joins the user's text to the template's: load its fast version, or give an index, such as -1."
        )
    return len(first) - 1 - len(whole)


def _squeezed(text: str) -> str:
    return "".join(text.split())
