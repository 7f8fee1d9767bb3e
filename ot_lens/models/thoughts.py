"""An answer apart from the thought before it: `<think>` and its kin, and the channels of gpt-oss."""

import re
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ot_lens.errors import PromptWarning
from ot_lens.io.untrusted import quoted
from ot_lens.models.architectures import ANSWER_CHANNEL, ANSWERS
from ot_lens.models.backends import Backend
from ot_lens.models.chat import special_ids
from ot_lens.models.marks import Marks, marks_in, marks_of

# A message of gpt-oss: its channel, anything up to the text, and the text up to the next control token.
_MESSAGE = re.compile(
    r"<\|channel\|>\s*(\w+).*?<\|message\|>(.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|\Z)", re.S
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


def split_thought(text: str, *, opened: bool = False, marks: Marks | None = None) -> Answer:
    """An answer apart from its thought.

    Args:
        text: What was generated, decoded with its special tokens.
        opened: Whether the prompt ended inside a thought, so that its opening mark is not in the text.
        marks: The marks of thoughts; default: the known ones, and those that the text begins with.
    """
    messages = _MESSAGE.findall(text)
    if messages:
        said = "".join(part for channel, part in messages if channel == ANSWER_CHANNEL)
        before = re.split(r"<\|(?:end|start|channel)\|>", text)[0] if opened else ""
        thought = before + "".join(part for channel, part in messages if channel != ANSWER_CHANNEL)
        return Answer(said.strip(), thought.strip() or None)
    for begin, end in (marks or marks_in("")).pairs:
        if end in text:
            thought, _, said = text.rpartition(end)
            return Answer(_bare(said), thought.replace(begin, "", 1).strip())
        if text.lstrip().startswith(begin):
            return Answer("", text.replace(begin, "", 1).strip())
    for begin, end in marks_in(text).pairs:
        if end in text and text.lstrip().startswith(begin):
            thought, _, said = text.rpartition(end)
            return Answer(_bare(said), thought.replace(begin, "", 1).strip())
    return Answer("", text.strip()) if opened else Answer(text.strip())


def _bare(answer: str) -> str:
    """An answer without the marks around it."""
    answer = answer.strip()
    for begin, end in ANSWERS:
        if answer.startswith(begin):
            return answer.removeprefix(begin).removesuffix(end).strip()
    return answer


def read_answer(served: Backend, ids: Sequence[int], *, opened: bool = False) -> Answer:
    """The answer that some generated tokens say, and its thought, both without special tokens.

    Warns if it holds a mark that is named like one of a thought and is none that is known.
    """
    tokenizer, marks = served.tokenizer, marks_of(served.tokenizer)
    said = tokenizer.decode(ids, skip_special_tokens=False)
    answer = split_thought(said, opened=opened, marks=marks)
    known = {mark for pair in marks.pairs for mark in pair}
    unknown = next((mark for mark in marks_in(said).unpaired if mark not in known), None)
    if unknown is not None:
        warnings.warn(
            f"An answer holds {quoted(unknown)}, which looks like the mark of a thought but has no known "
            "counterpart: a thought may be judged as the answer. Ask for answers without thoughts "
            "(thinking=False), or separate them yourself and judge the texts.",
            PromptWarning,
            stacklevel=2,
        )
    if answer.thought is None:
        return Answer(str(tokenizer.decode(ids, skip_special_tokens=True)).strip())
    special = "|".join(map(re.escape, tokenizer.all_special_tokens)) or r"\Z"
    text, thought = (re.sub(special, "", part).strip() for part in (answer.text, answer.thought))
    return Answer(text, thought)


def thought_ends(served: Backend) -> tuple[int, ...]:
    """Tokens that end a thought by themselves."""
    vocabulary = served.tokenizer.get_vocab()
    return tuple(vocabulary[end] for _, end in marks_of(served.tokenizer).pairs if end in vocabulary)


def _end_of(served: Backend) -> re.Pattern[str]:
    """What ends a thought; in gpt-oss the header of the answer does."""
    ends = [re.escape(end) for _, end in marks_of(served.tokenizer).pairs]
    return re.compile("|".join([*ends, rf"<\|channel\|>\s*{ANSWER_CHANNEL}.*?<\|message\|>"]), re.S)


def thought_length(served: Backend, ids: Sequence[int], *, opened: bool) -> int | None:
    """How many generated tokens are the thought and its end; 0 without a thought, None if it does not end."""

    def text(n: int) -> str:
        return str(served.tokenizer.decode(ids[:n], skip_special_tokens=False))

    end = _end_of(served)
    if not end.search(text(len(ids))):
        split = split_thought(text(len(ids)), opened=opened, marks=marks_of(served.tokenizer))
        return 0 if split.thought is None else None
    return bisect_left(range(len(ids)), True, key=lambda n: end.search(text(n)) is not None)


def separator_length(served: Backend, ids: Sequence[int]) -> int:
    """How many tokens between a thought and the answer belong to neither: white space, control tokens, marks.

    The mark that opens an answer may be several tokens: `<answer>` of Hunyuan.
    """
    control = special_ids(served.tokenizer) - set(served.terminators)
    openings = "|".join(re.escape(begin) for begin, _ in ANSWERS)

    def separates(n: int) -> bool:
        text = served.tokenizer.decode([token for token in ids[:n] if token not in control])
        return re.fullmatch(rf"\s*(?:{openings})?\s*", str(text)) is not None

    return max(n for n in range(len(ids) + 1) if separates(n))
