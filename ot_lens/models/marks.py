"""The marks of thoughts: known ones, and those that the names of marks in a text show to be such."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ot_lens.models.architectures import SPOKEN_THOUGHTS, THOUGHTS

_MARK = re.compile(r"<\|?[/\w:. |-]{1,40}\|?>|\[/?\w{1,40}\]|◁/?\w{1,40}▷")
_NAMES_A_THOUGHT = re.compile(r"(?<![a-z])(?:think|thinking|thoughts?|reason|reasoning|inner)(?![a-z])")
_BEGINS, _ENDS = {"start", "begin", "open", "prefix"}, {"end", "stop", "close", "suffix"}
# Marks that switch thinking, or count it, are not around a thought.
_SWITCHES = {"no", "on", "off", "not", "fast", "slow", "mode", "budget", "effort", "enable", "disable"}


@dataclass(frozen=True)
class Marks:
    """What is around thoughts.

    Attributes:
        pairs: Beginning and end of thoughts.
        unpaired: Marks that are named like those of a thought, but whose counterpart is not known.
    """

    pairs: tuple[tuple[str, str], ...]
    unpaired: tuple[str, ...]


def marks_of(tokenizer: Any) -> Marks:
    """The marks of a tokenizer's chat template and of its added tokens, after the known ones."""
    return marks_in("\n".join([str(tokenizer.chat_template), *tokenizer.get_added_vocab()]))


@lru_cache(maxsize=1024)
def marks_in(text: str) -> Marks:
    """The known marks, and those in a text whose names say that they are around a thought."""
    sides: dict[tuple[str, ...], dict[str, str]] = {}
    known = {mark for pair in THOUGHTS for mark in pair}
    for mark in dict.fromkeys(_MARK.findall(text)):
        name = _name(mark)
        if mark not in known and name is not None:
            side, words = name
            sides.setdefault(words, {}).setdefault(side, mark)
    for found in sides.values():
        _complete(found)
    pairs = tuple((found["begin"], found["end"]) for found in sides.values() if len(found) == 2)
    alone = tuple(mark for found in sides.values() if len(found) == 1 for mark in found.values())
    spoken = (pair for pair in SPOKEN_THOUGHTS if pair[0] in text)
    return Marks((*THOUGHTS, *spoken, *pairs), alone)


def _name(mark: str) -> tuple[str, tuple[str, ...]] | None:
    """Which side of a thought a mark is on, and what both sides have in common; None for other marks."""
    inside = mark.strip("<>[]◁▷|").lower()
    words = re.split(r"[^a-z0-9]+", inside)
    if not _NAMES_A_THOUGHT.search(" ".join(words)) or _SWITCHES & set(words):
        return None
    # Gemma 4 writes <|channel> and <channel|>.
    halves = mark.startswith("<|") != mark.endswith("|>")
    is_end = inside.startswith("/") or bool(_ENDS & set(words)) or (halves and mark.endswith("|>"))
    common = tuple(word for word in words if word and word not in _BEGINS | _ENDS | {"of"})
    return ("end" if is_end else "begin"), (mark[0], *common)


def _complete(found: dict[str, str]) -> None:
    """Add the other side of a mark if only a slash tells the two apart, as in <think> and </think>."""
    (mark, *others) = found.values()
    if others or (_BEGINS | _ENDS) & set(re.split(r"\W|_", mark.lower())):
        return
    # <|think|> of Gemma 4 is a switch.
    if "<|" in mark or "|>" in mark:
        return
    head, rest = mark[0], mark[1:]
    if rest.startswith("/"):
        found["begin"] = head + rest[1:]
    else:
        found["end"] = f"{head}/{rest}"
