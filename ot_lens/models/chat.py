"""From prompts to tokens: the chat template once, the model's system prompt, no added special token."""

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from torch import nn

from ot_lens.errors import OtLensTypeError, PromptError
from ot_lens.io.untrusted import abbreviated
from ot_lens.models.architectures import TEMPLATE_VARIABLES
from ot_lens.models.backends import Backend
from ot_lens.models.hooked import HookedCausalLM
from ot_lens.prompts import Prompt, as_texts

# Their last characters and last words all differ, so that no token of an instruction ends all of them.
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
_TEMPLATE_ERRORS = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip

_SYSTEM_PROMPTS: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def set_system_prompt(model: nn.Module, text: str) -> None:
    """Put a system message in front of every prompt that ot_lens renders for this model.

    It is kept here rather than on the model or its tokenizer, unless the model is a `HookedCausalLM`.

    Raises:
        OtLensTypeError: If the text is not a string.
    """
    if not isinstance(text, str):
        raise OtLensTypeError(f"system_prompt is a {type(text).__name__}: pass a string, or None.")
    if isinstance(model, HookedCausalLM):
        model.system_prompt = text
    else:
        _SYSTEM_PROMPTS[model] = text


def system_prompt(model: nn.Module) -> str | None:
    """The system message of a model's prompts; None if that is left to its chat template."""
    return model.system_prompt if isinstance(model, HookedCausalLM) else _SYSTEM_PROMPTS.get(model)


def render(served: Backend, prompts: Sequence[Prompt | str]) -> list[str]:
    """Each prompt as one user turn in the model's chat template, up to where the answer begins.

    Raises:
        PromptError: If there are no prompts, the tokenizer has no chat template, or the template rejects the
            model's system prompt.
    """
    texts = as_texts(prompts)
    return [render_turns(served, [{"role": "user", "content": text}]) for text in texts]


def render_turns(served: Backend, turns: Sequence[dict[str, str]], *, to_answer: bool = True) -> str:
    """A conversation in the model's chat template, after its system prompt if one was set.

    With `to_answer` it ends where the assistant's next turn begins.
    """
    system = system_prompt(served.model)
    if system is None:
        return apply_template(served.tokenizer, turns, add_generation_prompt=to_answer)
    first = {"role": "system", "content": system}
    text = apply_template(served.tokenizer, [first, *turns], add_generation_prompt=to_answer)
    if system.strip() and text == apply_template(served.tokenizer, turns, add_generation_prompt=to_answer):
        raise PromptError(
            f"The chat template of {_name(served.tokenizer)} ignores the system prompt: load the model "
            "without system_prompt, or put the text into the prompts."
        )
    return text


def apply_template(tokenizer: Any, turns: Sequence[dict[str, str]], **variables: Any) -> str:
    """Turns in a tokenizer's chat template, up to where the answer begins; `variables` override defaults."""
    if not tokenizer.chat_template:
        raise PromptError(
            f"The tokenizer of {_name(tokenizer)} has no chat template: "
            "set tokenizer.chat_template (base models have none; ot_lens needs a chat model)."
        )
    try:
        settings = {"add_generation_prompt": True, **TEMPLATE_VARIABLES, **variables}
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **settings))
    # The sandbox protects the machine, but a template may still divide by zero.
    except _TEMPLATE_ERRORS as error:
        raise _rejected(tokenizer, turns, error) from error


def _rejected(tokenizer: Any, turns: Sequence[dict[str, str]], error: Exception) -> PromptError:
    subject, remedy = "conversation", "correct tokenizer.chat_template."
    if any(turn["role"] == "system" for turn in turns):
        subject = "system prompt"
        remedy = "load the model without system_prompt, or put the text into the prompts."
    return PromptError(
        f"The chat template of {_name(tokenizer)} refuses the {subject} ({abbreviated(error)}): {remedy}"
    )


def encode(served: Backend, prompts: Sequence[Prompt | str]) -> list[list[int]]:
    """Token ids of every rendered prompt, unpadded; the template writes the BOS, so none is added.

    Raises:
        PromptError: If a prompt is longer than the model's context.
    """
    ids = served.tokenizer(render(served, prompts), add_special_tokens=False, verbose=False)["input_ids"]
    empty = next((i for i, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise PromptError(
            f"Prompt {empty} renders to no tokens: the tokenizer does not match its chat template."
        )
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if served.n_ctx and len(ids[longest]) > served.n_ctx:
        raise PromptError(
            f"Prompt {longest} has {len(ids[longest])} tokens, more than the model's context of "
            f"{served.n_ctx}: shorten or drop it."
        )
    return [list(row) for row in ids]


def end_of_turn(served: Backend) -> int:
    """The token that ends an assistant's turn: the first special one that the template writes after it.

    It is `<end_of_turn>` for Gemma, whose end of sequence is another token. If the template writes none, the
    tokenizer's end of sequence.

    Raises:
        PromptError: If there is neither, or the template refuses a conversation with an answer.
    """
    answer = "Certainly."
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    after = render_turns(served, turns, to_answer=False).rpartition(answer)[2]
    ids = served.tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"]
    added = served.tokenizer.added_tokens_decoder
    special = {token for token in added if added[token].special} | set(served.tokenizer.all_special_ids)
    found = next((token for token in ids if token in special), served.tokenizer.eos_token_id)
    if found is None:
        raise PromptError(
            f"Nothing ends an answer: the chat template of {_name(served.tokenizer)} writes no special token "
            "after it, and the tokenizer has no end of sequence: set tokenizer.eos_token."
        )
    return int(found)


def post_instruction_tokens(served: Backend) -> tuple[int, ...]:
    """Token ids that follow the instruction in every rendered prompt: its last `len(...)` positions.

    The longest common suffix of the tokens of many instructions that end in different words and characters,
    some of them words of the tokenizer's vocabulary. A token that merges the end of an instruction with the
    template's text after it belongs to the instruction. Empty if the template ends with the instruction.
    Source: the post-instruction positions of Arditi et al. 2024 (arXiv 2406.11717, section 2.3).
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
    """Words that this tokenizer knows: in a small vocabulary all others are the same unknown token."""
    special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id
    words: list[str] = []
    for token in _spread(len(tokenizer)):
        word = "" if token in special else str(tokenizer.decode([token])).strip()
        ids = tokenizer(word, add_special_tokens=False)["input_ids"] if word.isalnum() else []
        if ids and unknown not in ids:
            words.append(word)
        if len(words) == VOCABULARY_PROBES:
            break
    return words


def _spread(n: int) -> Iterable[int]:
    """0 .. n - 1, widely spaced ones first."""
    step = max(1, n // (4 * VOCABULARY_PROBES))
    return (token for start in range(step) for token in range(start, n, step))


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or "this model")
