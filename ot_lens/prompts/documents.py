"""A contrast set in one JSON document: both classes, with or without splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from ot_lens.errors import PromptError
from ot_lens.prompts.data import CLASSES, SPLITS, Prompt
from ot_lens.prompts.drawing import Pools
from ot_lens.prompts.rows import Row, checked_text


class _PromptRow(BaseModel):
    model_config = ConfigDict(extra="ignore")
    text: str = Field(min_length=1)
    answer: str | None = None
    answers: Annotated[tuple[str, ...], FailFast()] = ()
    category: str | None = None


# Only the first fault is told: a large file may have millions.
_Prompts = Annotated[list[_PromptRow | str], FailFast()]


class _ContrastRows(BaseModel):
    model_config = ConfigDict(extra="forbid")
    harmful: _Prompts
    harmless: _Prompts


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str | None = None
    licence: str = "unknown"
    source: str = "unknown"
    splits: dict[str, _ContrastRows] | None = None
    harmful: _Prompts = []
    harmless: _Prompts = []


@dataclass(frozen=True)
class Document:
    """What a document holds: its name, licence and source, and its prompts by class and split."""

    name: str | None
    licence: str
    source: str
    pools: Pools


def read_document(content: Any, file: str) -> Document:
    """Validate a parsed document.

    Raises:
        PromptError: If a field is not what it should be; the message names its place.
    """
    try:
        parsed = _Document.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        message = (
            first["msg"] if first["loc"] else "it should be an object with the lists harmful and harmless"
        )
        raise PromptError(f"{file}: {place}: {message}. See load_prompts for the format.") from error
    return Document(parsed.name, parsed.licence, parsed.source, _pools(parsed, file))


def _pools(parsed: _Document, file: str) -> Pools:
    if parsed.splits is None:
        return {c: {None: _rows(getattr(parsed, c), f"{file}: {c}")} for c in CLASSES}
    missing = [split for split in SPLITS if split not in parsed.splits]
    if missing:
        raise PromptError(f"{file}: no split {missing[0]!r}: name all of {', '.join(SPLITS)}.")
    splits = parsed.splits
    return {c: {s: _rows(getattr(splits[s], c), f"{file}: splits.{s}.{c}") for s in SPLITS} for c in CLASSES}


def _rows(found: Sequence[_PromptRow | str], place: str) -> list[Row]:
    prompts = [
        Prompt(r) if isinstance(r, str) else Prompt(r.text, r.answer, r.answers, r.category) for r in found
    ]
    for i, prompt in enumerate(prompts):
        checked_text(prompt.text, f"{place}.{i}")
    return [Row(prompt, f"{place}.{i}") for i, prompt in enumerate(prompts)]
