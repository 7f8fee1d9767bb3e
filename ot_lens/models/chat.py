"""From prompts to tokens: the chat template once, the model's system prompt, no added special token."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from torch import nn

from ot_lens.errors import OtLensTypeError, PromptError
from ot_lens.io.untrusted import abbreviated
from ot_lens.models.hooked import HookedCausalLM
from ot_lens.models.protocol import Backend
from ot_lens.prompts import Prompt, as_texts

# Llama 3 writes a date into every prompt: Llama-3.2's template today's, unless it is given this one, the
# default of Llama-3.1's. With today's date yesterday's activations would be those of other prompts.
TEMPLATE_DATE = "26 Jul 2024"
# A template that can switch thinking (Qwen-3's) is told to begin the answer itself: the first token of every
# answer would be "<think>" otherwise, and next-token measures of refusal would say nothing.
TEMPLATE_VARIABLES = {"date_string": TEMPLATE_DATE, "enable_thinking": False}

# Their last characters and last words all differ, so that no token of theirs ends every one of them.
PROBES = (
    "Name three rivers.",
    "Wie heißt du?",
    "Count from 1 to 10",
    "Write a haiku about snow!",
    "translate: (good morning)",
    "What is 7 * 6 =",
    "print('hello')\n```",
    "List 5 colours: red, blue,",
    "x",
    "Tell me about the moon and its 8 phases…",
)
VOCABULARY_PROBES = 12

_SYSTEM_PROMPTS: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def set_system_prompt(model: nn.Module, text: str) -> None:
    """Put a system message in front of every prompt that ot_lens renders for this model.

    It is kept here and not on the model or its tokenizer, unless the model is ours.

    Raises:
        OtLensTypeError: If the text is no string.
    """
    if not isinstance(text, str):
        raise OtLensTypeError(f"system_prompt is a {type(text).__name__}: give a string, or None for none.")
    if isinstance(model, HookedCausalLM):
        model.system_prompt = text
    else:
        _SYSTEM_PROMPTS[model] = text


def system_prompt(model: nn.Module) -> str | None:
    """The system message of a model's prompts; None where that is left to its chat template."""
    return model.system_prompt if isinstance(model, HookedCausalLM) else _SYSTEM_PROMPTS.get(model)


def render(served: Backend, prompts: Sequence[Prompt | str]) -> list[str]:
    """Each prompt as one user turn in the model's chat template, up to where the answer begins.

    Raises:
        PromptError: If there are no prompts, the tokenizer has no chat template, or the template does not
            take the model's system prompt.
    """
    texts = as_texts(prompts)
    return [render_turns(served, [{"role": "user", "content": text}]) for text in texts]


def render_turns(served: Backend, turns: Sequence[dict[str, str]]) -> str:
    """A conversation in the model's chat template, after the model's system prompt if it was given one.

    Raises:
        PromptError: If there is no chat template, or it does not take these turns.
    """
    system = system_prompt(served.model)
    if system is None:
        return apply_template(served.tokenizer, turns)
    given = [{"role": "system", "content": system}, *turns]
    text = apply_template(served.tokenizer, given)
    if system.strip() and text == apply_template(served.tokenizer, turns):
        raise PromptError(
            f"the chat template of {_name(served.tokenizer)} leaves the system prompt out: load the model "
            "without system_prompt, or put the text into the prompts."
        )
    return text


def apply_template(tokenizer: Any, turns: Sequence[dict[str, str]], **variables: Any) -> str:
    """Turns in a tokenizer's chat template, up to where the answer begins.

    Args:
        tokenizer: The tokenizer.
        turns: The conversation.
        variables: Variables of the template, in place of those of TEMPLATE_VARIABLES.

    Raises:
        PromptError: If there is no chat template, or it refuses the turns.
    """
    if not tokenizer.chat_template:
        raise PromptError(
            f"the tokenizer of {_name(tokenizer)} has no chat template: "
            "set tokenizer.chat_template (a base model has none; ot_lens reads chat models)."
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=True, **{**TEMPLATE_VARIABLES, **variables}
            )
        )
    # The sandbox keeps a template from the machine, not from dividing by zero.
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:
        system = any(turn["role"] == "system" for turn in turns)
        remedy = (
            "load the model without system_prompt, or put the text into the prompts."
            if system
            else "correct tokenizer.chat_template."
        )
        raise PromptError(
            f"the chat template of {_name(tokenizer)} refuses the "
            f"{'system prompt' if system else 'conversation'} ({abbreviated(error)}): {remedy}"
        ) from error


def encode(served: Backend, prompts: Sequence[Prompt | str]) -> list[list[int]]:
    """Token ids of every rendered prompt, unpadded. The template brings its own BOS, so none is added.

    Raises:
        PromptError: If a prompt is longer than the model's context.
    """
    ids = served.tokenizer(render(served, prompts), add_special_tokens=False, verbose=False)["input_ids"]
    empty = next((i for i, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise PromptError(
            f"prompt {empty} renders to no tokens: the tokenizer does not fit its chat template."
        )
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if served.n_ctx and len(ids[longest]) > served.n_ctx:
        raise PromptError(
            f"prompt {longest} has {len(ids[longest])} tokens, more than the model's context of "
            f"{served.n_ctx}: shorten or drop it."
        )
    return [list(row) for row in ids]


def post_instruction_tokens(served: Backend) -> tuple[int, ...]:
    """Token ids that follow the instruction in every rendered prompt: its last `len(...)` positions.

    The longest common suffix of the tokens of many instructions that end in different words and characters,
    some of them words of the tokenizer's own vocabulary. A token in which the end of some instruction and
    the beginning of the template's rest merge belongs to the instruction. Empty where the template ends with
    the instruction itself. Source: the post-instruction positions of Arditi et al. 2024 (arXiv 2406.11717,
    section 2.3).

    Raises:
        PromptError: If prompts cannot be rendered.
    """
    rows = encode(served, [*PROBES, *_vocabulary_words(served.tokenizer)])
    return tuple(reversed(_common_prefix([row[::-1] for row in rows])))


def _common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    shared: list[int] = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return shared


def _vocabulary_words(tokenizer: Any) -> list[str]:
    """Words that this tokenizer knows: to a small vocabulary every other word is the same unknown token."""
    special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id
    found: list[str] = []
    for token in _spread(len(tokenizer)):
        word = "" if token in special else str(tokenizer.decode([token])).strip()
        ids = tokenizer(word, add_special_tokens=False)["input_ids"] if word.isalnum() else []
        if ids and unknown not in ids:
            found.append(word)
        if len(found) == VOCABULARY_PROBES:
            break
    return found


def _spread(n: int) -> Iterable[int]:
    """All of 0 .. n - 1, far apart ones first."""
    step = max(1, n // (4 * VOCABULARY_PROBES))
    return (token for start in range(step) for token in range(start, n, step))


def template_sha256(served: Backend) -> str:
    """Hash of the chat template."""
    return hashlib.sha256(str(served.tokenizer.chat_template or "").encode()).hexdigest()


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or "this model")
