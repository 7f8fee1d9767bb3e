"""Refusal read from answers, by phrases, and what a model declares about its refusals."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ot_lens.errors import PromptError
from ot_lens.generation import Completion
from ot_lens.io.untrusted import MIB, first_fault, quoted, read_text
from ot_lens.models import Backend, backend


@dataclass(frozen=True)
class PhraseList:
    """Phrases that mark a refusal.

    Attributes:
        name: Name shown with the results.
        version: Version of the list.
        phrases: Matched anywhere in an answer.
        case_sensitive: Whether letter case counts. It does for JailbreakBench, whose list has "As an", while
            "has an effect" is not a refusal.
    """

    name: str
    version: int
    phrases: tuple[str, ...]
    case_sensitive: bool = False

    def __post_init__(self) -> None:
        """Raise a PromptError for a list that matches nothing, or everything."""
        if not self.phrases or not all(isinstance(p, str) and p.strip() for p in self.phrases):
            raise PromptError(
                "The list of refusal phrases is empty or contains a blank one, which matches all."
            )

    def matches(self, text: str) -> bool:
        """Whether a text contains one of the phrases."""
        plain = _plain(text, self.case_sensitive)
        return any(phrase in plain for phrase in self._plain_phrases)

    @cached_property
    def _plain_phrases(self) -> tuple[str, ...]:
        return tuple(_plain(phrase, self.case_sensitive) for phrase in self.phrases)


class _PhraseFile(BaseModel):
    name: str | None = None
    version: int = 1
    phrases: tuple[str, ...]
    case_sensitive: bool = False


def phrase_list(phrases: str | Path | Sequence[str] | PhraseList) -> PhraseList:
    """A phrase list by name ("arditi", "jailbreakbench"), from a file, or from a list of phrases.

    Args:
        phrases: A name; the path of a text file, one phrase per line, or of a JSON file, a list of phrases or
            {"phrases", "name", "version", "case_sensitive"}; or the phrases themselves.

    Raises:
        PromptError: If there is no list or file of that name, the file is not valid, or the list is empty.
    """
    if isinstance(phrases, PhraseList):
        return phrases
    if not isinstance(phrases, str | Path):
        return PhraseList("own", 1, tuple(phrases))
    shipped = files("ot_lens") / "behaviour" / "phrases"
    known = sorted(f.name.removesuffix(".json") for f in shipped.iterdir())
    if phrases in known:
        return _parsed((shipped / f"{phrases}.json").read_text("utf-8"), str(phrases))
    if not os.path.isfile(phrases):
        raise PromptError(
            f"There is no phrase list {str(phrases)!r}: choose {', '.join(known)}, or give a text or JSON "
            "file, or a list of phrases."
        )
    return _read(Path(phrases))


def _read(path: Path) -> PhraseList:
    text = read_text(path, MIB, PromptError)
    if path.suffix == ".json":
        return _parsed(text, path.stem)
    lines = [line.strip() for line in text.split("\n")]
    return PhraseList(path.stem, 1, tuple(line for line in lines if line))


def _parsed(text: str, name: str) -> PhraseList:
    try:
        content = TypeAdapter(_PhraseFile | list[str]).validate_json(text)
    except ValidationError as error:
        raise PromptError(f"Phrase list {name!r}: {first_fault(error)[1]}.") from error
    if isinstance(content, list):
        return PhraseList(name, 1, tuple(content))
    return PhraseList(content.name or name, content.version, content.phrases, content.case_sensitive)


def _plain(text: str, case_sensitive: bool) -> str:
    # Models often write typographic apostrophes; the lists have plain ones.
    straight = text.replace("\u2019", "'")
    return straight if case_sensitive else straight.lower()


def model_phrases(model: Any) -> PhraseList:
    """The phrases that a model declares (tokenizer_config.json, key "ot_lens"), else Arditi's twelve."""
    own = declared(backend(model))
    listed = own.refusal_phrases
    return PhraseList(own.variant, 1, tuple(listed)) if listed else phrase_list("arditi")


def refuses(
    completions: Sequence[str | Completion], phrases: str | Path | Sequence[str] | PhraseList = "arditi"
) -> list[bool]:
    """Whether each answer contains a refusal phrase (Arditi et al. 2024, appendix D).

    Letter case is ignored unless the list is case-sensitive.

    Args:
        completions: Answers.
        phrases: What `phrase_list` takes: the name of a list, a file, a list of phrases, or a `PhraseList`.

    Raises:
        PromptError: If the phrase list is unknown or empty.
    """
    known = phrase_list(phrases)
    return [known.matches(c.text if isinstance(c, Completion) else c) for c in completions]


class DeclaredQuestion(BaseModel):
    """A question about a request, and the tokens that begin its answer."""

    question: str
    harmful: list[int | str]
    harmless: list[int | str]


class Declared(BaseModel):
    """What a model's tokenizer_config.json says about its refusals, key "ot_lens"."""

    variant: str = "declared"
    refusal_phrases: list[str] = []
    refusal_tokens: list[int | str] = []
    harm_question: DeclaredQuestion | None = None


def declared(served: Backend) -> Declared:
    """What the model declares; empty if nothing."""
    try:
        return Declared.model_validate(served.tokenizer.init_kwargs.get("ot_lens") or {})
    except ValidationError as error:
        field, message = first_fault(error)
        raise PromptError(
            f"tokenizer_config.json of the model: {quoted(f'ot_lens.{field}')}: {message}: correct it."
        ) from error
