"""A chat template, worked out once per model: everything that decides how its prompts are rendered."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from ot_lens.errors import OtLensTypeError, PromptError, PromptWarning
from ot_lens.io.untrusted import abbreviated
from ot_lens.models.architectures import (
    ANSWER_CHANNEL,
    CHANNEL,
    TEMPLATE_DATE,
    THINKING_SWITCHES,
    THOUGHT_CHANNEL,
    at_date,
)
from ot_lens.models.marks import Marks, marks_of

Turn = Mapping[str, Any]
PROBE = "Name three rivers."
# A variable in a condition; one behind a dot or in quotes belongs to a turn.
_VARIABLE = re.compile(
    r"(?:\bif|\bnot|\band|\bor|\()\s+\(?(\w*(?:think|thought|reason)\w*)(?=\s*(?:is\b|==|!=|%}|-%}|and\b|or\b|\)))"
)
_ERRORS = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class ChatSettings:
    """What the user wants of a model's prompts; `thinking` as in `load_model`."""

    system: str | None = None
    thinking: bool | str | None = None

    def __post_init__(self) -> None:
        """Refuse anything else."""
        if not isinstance(self.system, str | None):
            raise OtLensTypeError(f"system_prompt is a {type(self.system).__name__}: pass a string, or None.")
        if not (self.thinking is None or isinstance(self.thinking, bool) or self.thinking == "forced"):
            raise PromptError(f"thinking must be True, False, 'forced' or None, got {self.thinking!r}.")


@dataclass(frozen=True)
class ChatTemplate:
    """How a model's prompts are rendered.

    Attributes:
        settings: What the user wants.
        parts: Whether the template reads the content of a turn as a list of parts rather than as text.
        variables: What the template is given besides the turns.
        thinking: "off", "on"; "forced", the template opens a thought whatever it is told; "closed", ot_lens
            closes it; "unknown", the template knows of thoughts but has no switch; None, it knows of none.
        opening: What ot_lens writes behind the template's text, where the answer begins.
        opened: Whether a prompt ends inside a thought.
    """

    settings: ChatSettings
    parts: bool
    variables: Mapping[str, Any]
    thinking: str | None
    opening: str
    opened: bool

    def render(
        self,
        tokenizer: Any,
        turns: Sequence[Turn],
        *,
        to_answer: bool = True,
        date: datetime = TEMPLATE_DATE,
        **other: Any,
    ) -> str:
        """A conversation, with `to_answer` up to where the assistant's next answer begins.

        A system turn of its own replaces the system prompt.

        Raises:
            PromptError: If the template refuses it, or does not write the text of a user's turn.
        """
        system = self.settings.system
        own = bool(turns) and turns[0]["role"] == "system"
        first = [] if system is None or own else [{"role": "system", "content": system}]
        variables = {**self.variables, "add_generation_prompt": to_answer, **other}
        text = _apply(tokenizer, [*first, *turns], self.parts, variables, date)
        for turn in turns:
            if turn["role"] == "user" and not _says(text, turn["content"]):
                raise PromptError(
                    f"The chat template of {template_name(tokenizer)} changes the user's text: drop or "
                    "reword it, or correct tokenizer.chat_template."
                )
        return text + self.opening if to_answer else text


_KNOWN: "WeakKeyDictionary[Any, dict[Any, ChatTemplate]]" = WeakKeyDictionary()


def chat_template(tokenizer: Any, settings: ChatSettings) -> ChatTemplate:
    """The template of a tokenizer under some settings, worked out on first use.

    Raises:
        PromptError: If there is none, it refuses or leaves out the user's text or the system prompt, renders
            one prompt differently each time, or cannot do what the settings want.
    """
    known = _KNOWN.setdefault(tokenizer, {})
    key = (str(tokenizer.chat_template), tokenizer.bos_token, tokenizer.eos_token, settings)
    if key not in known:
        known[key] = _worked_out(tokenizer, settings)
    return known[key]


def template_name(tokenizer: Any) -> str:
    """The name of a tokenizer, for messages."""
    return str(getattr(tokenizer, "name_or_path", None) or "this model")


def _worked_out(tokenizer: Any, settings: ChatSettings) -> ChatTemplate:
    name = template_name(tokenizer)
    if not tokenizer.chat_template:
        raise PromptError(
            f"The tokenizer of {name} has no chat template: "
            "set tokenizer.chat_template (base models have none; ot_lens needs a chat model)."
        )
    turns = [{"role": "user", "content": PROBE}]
    if settings.system is not None:
        turns = [{"role": "system", "content": settings.system}, *turns]
    parts = _reads_parts(tokenizer, turns)

    def write(**variables: Any) -> str:
        return _apply(tokenizer, turns, parts, {**variables, "add_generation_prompt": True})

    text = write()
    if settings.system and not _says(text.replace(PROBE, "", 1), settings.system):
        raise PromptError(
            f"The chat template of {name} ignores the system prompt: load the model without system_prompt, "
            "or put the text into the prompts."
        )
    if any(write() != text for _ in range(4)):
        raise PromptError(
            f"The chat template of {name} renders the same prompt differently each time, so that nothing "
            "could be repeated: take what is random out of tokenizer.chat_template."
        )
    variables, thinking, opening, opened = _thinking(
        str(tokenizer.chat_template), marks_of(tokenizer), name, write, settings.thinking
    )
    return ChatTemplate(settings, parts, variables, thinking, opening, opened)


def _reads_parts(tokenizer: Any, turns: Sequence[Turn]) -> bool:
    """Whether contents must be lists of parts: with plain text, such a template drops it or fails."""
    refused: PromptError | None = None
    for parts in (False, True):
        try:
            text = _apply(tokenizer, turns, parts, {"add_generation_prompt": True})
        except PromptError as error:
            refused = refused or error
            continue
        if _says(text, PROBE) and not re.search(r"""\{['"]type""", text):  # nor the list itself, printed
            return parts
    raise refused or PromptError(
        f"The chat template of {template_name(tokenizer)} leaves out the user's text, so that all prompts "
        "would be the same: correct tokenizer.chat_template."
    )


def _thinking(
    source: str, marks: Marks, name: str, write: Callable[..., str], wanted: bool | str | None
) -> tuple[dict[str, bool], str | None, str, bool]:
    """Variables, `thinking`, `opening` and `opened` of a template; see `ChatTemplate`."""
    switches, others = _switches(source)
    off, on = (dict.fromkeys(switches, value) for value in (False, True))
    has_switch = write(**off) != write(**on)
    variables = dict.fromkeys(switches, bool(wanted)) if has_switch else {}
    tail = write(**variables).rpartition(PROBE)[2]
    channels = "<|channel|>" in source
    named = (pair for pair in marks.pairs if any(mark in source for mark in pair))
    begin, end = next(named, marks.pairs[0])
    opened = tail.rfind(begin) > tail.rfind(end)
    knows = channels or has_switch or any(mark in source for mark in (begin, end, *marks.unpaired))
    knows = knows or bool(others)
    if wanted and not knows:
        raise PromptError(
            f"thinking = {wanted!r}: the chat template of {name} knows nothing of thoughts: leave it out."
        )
    if wanted is not None and knows and not (has_switch or channels or begin in source or end in source):
        unknown = next(iter((*marks.unpaired, *others)))
        raise PromptError(
            f"thinking = {wanted!r}: the chat template of {name} names {unknown!r}, but not what is around "
            "its thoughts: leave thinking out, or correct tokenizer.chat_template."
        )
    if wanted == "forced":
        opening = CHANNEL.format(name=THOUGHT_CHANNEL) if channels else f"{begin}\n"
        return variables, "forced", "" if opened else opening, True
    if has_switch and (wanted or not opened):
        return variables, "on" if wanted else "off", "", opened
    if not knows:
        return variables, None, "", opened
    if wanted is False:
        return variables, "closed", _closing(channels, opened, begin, end), False
    state = "forced" if channels or opened else "unknown"
    if wanted is None:
        warnings.warn(_warning(name, state), PromptWarning, stacklevel=2)
    return variables, state, "", opened


def _switches(source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Variables of a template that may switch thoughts on, and others that are named after thoughts."""
    own = set(re.findall(r"\b(?:set|for)\s+(\w+)", source))
    named = [name for name in dict.fromkeys(_VARIABLE.findall(source)) if name not in own]
    switches = [name for name in named if name.startswith(("enable", "use", "with", "add"))]
    known = (*THINKING_SWITCHES, *switches)
    return tuple(dict.fromkeys(known)), tuple(name for name in named if name not in known)


def _closing(channels: bool, opened: bool, begin: str, end: str) -> str:
    if channels:
        return CHANNEL.format(name=ANSWER_CHANNEL)
    return f"\n{end}\n\n" if opened else f"{begin}\n\n{end}\n\n"


def _warning(name: str, state: str) -> str:
    what = "opens a thought in every prompt" if state == "forced" else "knows of thoughts but has no switch"
    return (
        f"The chat template of {name} {what}: next-token measures read the first token of a thought rather "
        "than of an answer. thinking=False closes the thought before the answer; thinking=True accepts it."
    )


def _apply(
    tokenizer: Any,
    turns: Sequence[Turn],
    parts: bool,
    variables: Mapping[str, Any],
    date: datetime = TEMPLATE_DATE,
) -> str:
    if parts:
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    try:
        source, dated = at_date(tokenizer.get_chat_template(), date)
        return str(
            tokenizer.apply_chat_template(
                list(turns), chat_template=source, tokenize=False, **{**dated, **variables}
            )
        )
    # The sandbox protects the machine, but a template may still divide by zero.
    except _ERRORS as error:
        raise _rejected(tokenizer, turns, variables, error) from error


def _rejected(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any], error: Exception
) -> PromptError:
    subject, remedy = "conversation", "correct tokenizer.chat_template."
    if any(turn["role"] == "system" for turn in turns):
        subject = "system prompt"
        remedy = "load the model without system_prompt, or put the text into the prompts."
    elif _takes(tokenizer, [{"role": "system", "content": "x"}, *turns], variables):
        remedy = "it demands a system turn: load the model with system_prompt=TEXT."
    name = template_name(tokenizer)
    return PromptError(f"The chat template of {name} refuses the {subject} ({abbreviated(error)}): {remedy}")


def _takes(tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any]) -> bool:
    try:
        tokenizer.apply_chat_template(list(turns), tokenize=False, **variables)
    except _ERRORS:
        return False
    return True


def _says(text: str, content: str) -> bool:
    """Whether a rendering has the text, white space aside."""
    return content in text or "".join(content.split()) in "".join(text.split())
