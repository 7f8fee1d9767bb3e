"""From prompts to tokens: the chat template once, the model's system prompt, no added special token."""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ot_lens.errors import PromptError, PromptWarning
from ot_lens.io.untrusted import quoted
from ot_lens.models.architectures import TEMPLATE_DATE
from ot_lens.models.backends import Backend
from ot_lens.models.hooked import HookedCausalLM
from ot_lens.models.templates import PROBE, ChatSettings, ChatTemplate, Turn, chat_template, template_name
from ot_lens.prompts import Prompt, as_texts

# Their last characters and last words all differ, so that no token of an instruction ends all of them.
PROBES = (
    PROBE,
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
# What a template writes between turns, even if it is no token of its own ([INST] of Llama 2).
_MARK = re.compile(r"<\|[^|<>\s]+\|>|<<?/?[A-Z_]+>>?|\[/?[A-Z_]{2,}\]")

_SETTINGS: "WeakKeyDictionary[nn.Module, ChatSettings]" = WeakKeyDictionary()


def set_chat(model: nn.Module, **settings: Any) -> None:
    """Change the `ChatSettings` (system, thinking) of every prompt that ot_lens renders for this model.

    They are kept here rather than on the model or its tokenizer, unless the model is a `HookedCausalLM`.

    Raises:
        OtLensTypeError: If the system prompt is not a string.
        PromptError: If `thinking` is not True, False, "forced" or None.
    """
    changed = replace(chat_settings(model), **settings)
    if isinstance(model, HookedCausalLM):
        model.system_prompt, model.thinking = changed.system, changed.thinking
    else:
        _SETTINGS[model] = changed


def chat_settings(model: nn.Module) -> ChatSettings:
    """What the user wants of a model's prompts."""
    if isinstance(model, HookedCausalLM):
        return ChatSettings(model.system_prompt, model.thinking)
    return _SETTINGS.get(model, ChatSettings())


def template_of(served: Backend) -> ChatTemplate:
    """How the prompts of a model are rendered; every measure renders with it."""
    return chat_template(served.tokenizer, chat_settings(served.model))


def render(served: Backend, prompts: Sequence[Prompt | str]) -> list[str]:
    """Each prompt as one user turn in the model's chat template, up to where the answer begins.

    Raises:
        PromptError: If there are no prompts, the tokenizer has no chat template, or the template refuses or
            changes a prompt or the model's system prompt.
    """
    template, rendered = template_of(served), []
    for i, text in enumerate(as_texts(prompts)):
        try:
            rendered.append(template.render(served.tokenizer, [{"role": "user", "content": text}]))
        except PromptError as error:
            raise PromptError(f"Prompt {i}: {error}") from error
    return rendered


def render_turns(served: Backend, turns: Sequence[Turn], *, to_answer: bool = True, **other: Any) -> str:
    """A conversation in the model's chat template, after its system prompt if one was set.

    With `to_answer` it ends where the assistant's next turn begins. `other` goes to the template
    (`continue_final_message`).
    """
    return template_of(served).render(served.tokenizer, turns, to_answer=to_answer, **other)


def encode(served: Backend, prompts: Sequence[Prompt | str], *, room: int = 0) -> list[list[int]]:
    """Token ids of every rendered prompt with its thought, unpadded; the template writes the BOS.

    Raises:
        PromptError: If a prompt, with `room` tokens after it, is longer than the model's context.
    """
    ids = served.tokenizer(render(served, prompts), add_special_tokens=False, verbose=False)["input_ids"]
    empty = next((i for i, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise PromptError(
            f"Prompt {empty} renders to no tokens: the tokenizer does not match its chat template."
        )
    if max(map(max, ids)) < served.d_vocab:  # else the batches refuse them
        _warn_of_control_tokens(served, prompts)
    rows = [[*row, *(getattr(p, "thought", None) or ())] for row, p in zip(ids, prompts, strict=True)]
    check_room(served, rows, room)
    return rows


def check_room(served: Backend, rows: Sequence[Sequence[int]], room: int = 0) -> None:
    """Raise a PromptError if the model's context is too short for a row and `room` tokens after it."""
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    length, left = len(rows[longest]), served.n_ctx - len(rows[longest])
    if not served.n_ctx or left >= room:
        return
    over = sum(len(row) + room > served.n_ctx for row in rows)
    what = f"Prompt {longest} of {len(rows)} has {length} tokens"
    context = f"the model's context of {served.n_ctx}"
    if served.n_ctx == served.longrope:
        context += ", beyond which its positions depend on the batch (longrope)"
    if left < 0:
        raise PromptError(f"{what}, more than {context} ({over} such prompts): shorten or drop them.")
    raise PromptError(
        f"{what} and up to {room} follow, more than {context} ({over} such prompts"
        f"): allow at most {left} new tokens, or shorten or drop them."
    )


def control_tokens(served: Backend, prompts: Sequence[Prompt | str]) -> list[list[str]]:
    """Control tokens of the tokenizer and the template in the text of each prompt: the model obeys them."""
    source = str(served.tokenizer.chat_template)
    added = served.tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or token.content in source}
    names |= {*served.tokenizer.all_special_tokens, *_MARK.findall(source)}
    texts = as_texts(prompts)
    everything = "\n".join(texts)
    used = [name for name in names if name.strip() and not name.isalnum() and name in everything]
    if not used:
        return [[] for _ in texts]
    pattern = re.compile("|".join(map(re.escape, sorted(used, key=len, reverse=True))))
    return [pattern.findall(text) for text in texts]


def _warn_of_control_tokens(served: Backend, prompts: Sequence[Prompt | str]) -> None:
    found = control_tokens(served, prompts)
    first = next((i for i, tokens in enumerate(found) if tokens), None)
    if first is not None:
        warnings.warn(
            f"{sum(map(bool, found))} of {len(found)} prompts contain control tokens; the first is prompt "
            f"{first} with {quoted(found[first][0])}: the model reads them as the end of a turn and the "
            "like, not as text. Remove them, unless that is what you study.",
            PromptWarning,
            stacklevel=3,
        )


def end_of_turn(served: Backend) -> int:
    """The token that ends an assistant's turn: the first special one that the template writes after it.

    It is `<end_of_turn>` for Gemma, whose end of sequence is another token. If the template writes none at
    the end of a conversation, the one before the next user's turn (GLM 4); if there is none either, or the
    template takes no answers, the tokenizer's end of sequence.

    Raises:
        PromptError: If there is none of these.
    """
    answer, user = "Certainly.", {"role": "user", "content": "Hello"}
    turns = [user, {"role": "assistant", "content": answer}]
    # A mark that the tokenizer does not know ends nothing.
    unknown = {served.tokenizer.unk_token_id} - {served.tokenizer.eos_token_id}
    special = special_ids(served.tokenizer) - unknown
    for conversation in (turns, [*turns, user]):
        try:
            written = render_turns(served, conversation, to_answer=False)
        except PromptError:  # a template of single requests
            break
        _, said, after = written.rpartition(answer)
        ids = served.tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"] if said else []
        found = next((token for token in ids if token in special), None)
        if found is not None:
            return int(found)
    if served.tokenizer.eos_token_id is None:
        raise PromptError(
            f"Nothing ends an answer: the chat template of {template_name(served.tokenizer)} writes no "
            "special token after it, and the tokenizer has no end of sequence: set tokenizer.eos_token."
        )
    return int(served.tokenizer.eos_token_id)


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of control tokens."""
    added = tokenizer.added_tokens_decoder
    return {token for token in added if added[token].special} | set(tokenizer.all_special_ids)


def chat_record(served: Backend) -> dict[str, Any]:
    """Everything that decides how prompts are rendered, for manifests and keys; never a prompt's text."""
    template, tokenizer = template_of(served), served.tokenizer
    turns = [{"role": "user", "content": "x"}]
    plain = template.render(tokenizer, turns)
    another_day = TEMPLATE_DATE.replace(year=1999, month=1, day=1)
    own_turn = _has_system_turn(served)
    return {
        "chat_template_sha256": _sha256(str(tokenizer.chat_template)),
        "rendered_sha256": _sha256("\n".join(render(served, PROBES))),
        "template_date": None
        if template.render(tokenizer, turns, date=another_day) == plain
        else TEMPLATE_DATE.strftime("%d %b %Y"),
        "content": "parts" if template.parts else "text",
        "thinking": template.thinking,
        # Where the first token comes from; ot_lens itself adds none.
        "bos": "template" if tokenizer.bos_token and plain.startswith(tokenizer.bos_token) else "none",
        "system_prompt": _system(template.settings.system, own_turn),
        "template_adds_system_turn": own_turn,
        "post_instruction_tokens": tokenizer.convert_ids_to_tokens(list(post_instruction_tokens(served))),
    }


def _system(text: str | None, own_turn: bool) -> dict[str, Any] | str:
    if text is None:
        return "template's own" if own_turn else "none"
    return {"sha256": _sha256(text), "length": len(text)}


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _has_system_turn(served: Backend) -> bool:
    """Whether the template writes a system turn of its own, as those of Qwen 2.5 and Llama 3 do.

    If so, the text before a conversation's first instruction, its BOS aside, is not before the second.
    """
    first, second = "first instruction", "second instruction"
    turns = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": second},
    ]
    template = replace(template_of(served), settings=ChatSettings())
    try:
        before, _, rest = template.render(served.tokenizer, turns).partition(first)
    except PromptError:  # it demands a system turn, or takes a single request only
        return False
    bos = served.tokenizer.bos_token or ""
    between = rest.partition(second)[0]
    return not between.rstrip().endswith(before.removeprefix(bos).strip())


def post_instruction_tokens(served: Backend) -> tuple[int, ...]:
    """Token ids that follow the instruction in every rendered prompt: its last `len(...)` positions.

    The longest common suffix of the tokens of many instructions that end in different words and characters,
    some of them words of the tokenizer's vocabulary. A token that merges the end of an instruction with the
    template's text after it belongs to the instruction. Empty if the template ends with the instruction.
    Source: the post-instruction positions of Arditi et al. 2024 (arXiv 2406.11717, section 2.3).
    """
    rows = encode(served, instruction_probes(served))
    return tuple(reversed(common_prefix([row[::-1] for row in rows])))


def instruction_probes(served: Backend) -> list[str]:
    """Instructions with different last words and characters, some of them words of the vocabulary."""
    return [*PROBES, *_vocabulary_words(served.tokenizer)]


def common_prefix(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens with which all rows begin."""
    columns = zip(*rows, strict=False)
    return tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))


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
