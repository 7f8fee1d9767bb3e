"""An answer apart from the thought before it: `<think>` and its kin, and the channels of gpt-oss."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ot_lens.models.architectures import ANSWER_CHANNEL, THOUGHTS
from ot_lens.models.backends import Backend
from ot_lens.models.chat import special_ids

# A message of gpt-oss: its channel, anything up to the text, and the text up to the next control token.
_MESSAGE = re.compile(
    r"<\|channel\|>\s*(\w+).*?<\|message\|>(.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|\Z)", re.S
)
# What ends a thought; in gpt-oss the header of the answer does.
_END = re.compile(
    "|".join(
        [*(re.escape(end) for _, end in THOUGHTS), rf"<\|channel\|>\s*{ANSWER_CHANNEL}.*?<\|message\|>"]
    ),
    re.S,
)


@dataclass(frozen=True)
class Answer:
    """What a model said to the user, and what it thought before.

    Attributes:
        text: The answer; "" if the thought never ended.
        thought: The thought; None if there is none.
    """

    text: str
    thought: str | None = None


def split_thought(text: str, *, opened: bool = False) -> Answer:
    """An answer apart from its thought.

    Args:
        text: What was generated, decoded with its special tokens.
        opened: Whether the prompt ended inside a thought, so that its opening mark is not in the text.
    """
    messages = _MESSAGE.findall(text)
    if messages:
        said = "".join(part for channel, part in messages if channel == ANSWER_CHANNEL)
        before = re.split(r"<\|(?:end|start|channel)\|>", text)[0] if opened else ""
        thought = before + "".join(part for channel, part in messages if channel != ANSWER_CHANNEL)
        return Answer(said.strip(), thought.strip() or None)
    for begin, end in THOUGHTS:
        if end in text:
            thought, _, said = text.rpartition(end)
            return Answer(said.strip(), thought.replace(begin, "", 1).strip())
        if text.lstrip().startswith(begin):
            return Answer("", text.replace(begin, "", 1).strip())
    return Answer("", text.strip()) if opened else Answer(text.strip())


def read_answer(served: Backend, ids: Sequence[int], *, opened: bool = False) -> Answer:
    """The answer that some generated tokens say, and its thought, both without special tokens."""
    tokenizer = served.tokenizer
    answer = split_thought(tokenizer.decode(ids, skip_special_tokens=False), opened=opened)
    if answer.thought is None:
        return Answer(str(tokenizer.decode(ids, skip_special_tokens=True)).strip())
    special = "|".join(map(re.escape, tokenizer.all_special_tokens)) or r"\Z"
    text, thought = (re.sub(special, "", part).strip() for part in (answer.text, answer.thought))
    return Answer(text, thought)


def thought_ends(served: Backend) -> tuple[int, ...]:
    """Tokens that end a thought by themselves."""
    vocabulary = served.tokenizer.get_vocab()
    return tuple(vocabulary[end] for _, end in THOUGHTS if end in vocabulary)


def thought_length(served: Backend, ids: Sequence[int], *, opened: bool) -> int | None:
    """How many generated tokens are the thought and its end; 0 without a thought, None if it does not end."""

    def text(n: int) -> str:
        return str(served.tokenizer.decode(ids[:n], skip_special_tokens=False))

    if not _END.search(text(len(ids))):
        return 0 if split_thought(text(len(ids)), opened=opened).thought is None else None
    return bisect_left(range(len(ids)), True, key=lambda n: _END.search(text(n)) is not None)


def separates(served: Backend, token: int) -> bool:
    """Whether a token between a thought and the answer belongs to neither: white space or a control token."""
    control = token in special_ids(served.tokenizer) - set(served.terminators)
    return control or not served.tokenizer.decode([token]).strip()
