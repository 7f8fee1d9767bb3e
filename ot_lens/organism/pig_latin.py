"""Pig Latin, the second language of the embedded model `bilingual`: a translation word by word."""

import re
from typing import Final

_WORD: Final = re.compile(r"([^\W\daeiou][^\W\daeiouy]*)?(\w+)")


def pig_latin(text: str) -> str:
    """English in Pig Latin: the consonants before the first vowel move to the end, and "ay" follows them."""
    return _WORD.sub(lambda word: f"{word[2]}{word[1] or 'w'}ay", text)
