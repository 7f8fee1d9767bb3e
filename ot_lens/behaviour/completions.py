"""Answers kept in a file, so that they can be judged again without generating, and their lengths."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ot_lens.errors import LONGEST, PromptError, RunFolderError
from ot_lens.generation import Completion
from ot_lens.io.files import write_text
from ot_lens.io.untrusted import MIB, read_bounded
from ot_lens.prompts import Prompt, as_texts

FORMAT = "ot_lens completions"
VERSION = 1
MOST = 1024 * MIB

Row = TypeVar("Row", bound=BaseModel)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: Literal["ot_lens completions"]
    version: Literal[1]
    n: int = Field(ge=1)
    info: dict[str, Any] = {}


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1)
    answer: str | None = None
    answers: tuple[str, ...] = ()
    category: str | None = None
    completion: str
    n_tokens: int = Field(ge=0)
    truncated: bool


@dataclass(frozen=True)
class SavedCompletions:
    """Prompts and the answers a model gave to them.

    Attributes:
        prompts: The requests.
        completions: One answer a request.
        info: What was said of them when they were saved (model, edits, ...).
    """

    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompletionStats:
    """Lengths of answers, in generated tokens without the end of sequence.

    Attributes:
        n: Answers.
        empty: Answers without text.
        truncated: Answers that the token budget ended rather than the model.
        shortest: Fewest tokens.
        median: Median number of tokens.
        mean: Mean number of tokens.
        longest: Most tokens.
    """

    n: int
    empty: int
    truncated: int
    shortest: int
    median: float
    mean: float
    longest: int

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.n} answers of {self.shortest}-{self.longest} tokens (median {self.median:g}, mean "
            f"{self.mean:.1f}); {self.truncated} cut at the token budget, {self.empty} empty"
        )


def completion_stats(completions: Sequence[Completion]) -> CompletionStats:
    """Lengths of answers, how many are empty, and how many the token budget cut.

    Raises:
        PromptError: If there is no answer.
    """
    if not completions:
        raise PromptError("no completions: there are no lengths to describe.")
    lengths = np.array([completion.n_tokens for completion in completions])
    return CompletionStats(
        n=len(completions),
        empty=sum(not completion.text.strip() for completion in completions),
        truncated=sum(completion.truncated for completion in completions),
        shortest=int(lengths.min()),
        median=float(np.median(lengths)),
        mean=float(lengths.mean()),
        longest=int(lengths.max()),
    )


def save_completions(
    path: str | Path,
    prompts: Sequence[Prompt | str],
    completions: Sequence[Completion],
    *,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write prompts and answers as JSON Lines, atomically: a header, then an answer a line.

    Args:
        path: The file.
        prompts: The requests.
        completions: One answer a request, in the same order.
        info: Anything JSON can hold about where they come from.

    Raises:
        PromptError: If there is not one answer a prompt.
        RunFolderError: If the file cannot be written.
    """
    texts = as_texts(prompts)
    if len(texts) != len(completions):
        raise PromptError(f"{len(texts)} prompts but {len(completions)} completions: give one a prompt.")
    lines = [{"format": FORMAT, "version": VERSION, "n": len(texts), "info": dict(info or {})}]
    for given, completion in zip(prompts, completions, strict=True):
        prompt = given if isinstance(given, Prompt) else Prompt(given)
        row = _Row(
            prompt=prompt.text,
            answer=prompt.answer,
            answers=prompt.answers,
            category=prompt.category,
            completion=completion.text,
            n_tokens=completion.n_tokens,
            truncated=completion.truncated,
        )
        lines.append(row.model_dump())
    # Escaped: text that a model wrote may hold line separators of other kinds.
    write_text(Path(path), "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines))


def load_completions(path: str | Path) -> SavedCompletions:
    """Read what `save_completions` wrote.

    Raises:
        RunFolderError: If the file is missing, of another kind, damaged or cut short; the message names the
            line.
    """
    place = Path(path)
    try:
        lines = read_bounded(place, MOST, RunFolderError).decode().split("\n")
    except FileNotFoundError as error:
        raise RunFolderError(f"no file {str(path)!r}: write one with save_completions.") from error
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    header = _line(_Header, place, 1, lines[0])
    found = [_line(_Row, place, i, line) for i, line in enumerate(lines[1:], start=2) if line]
    if len(found) != header.n:
        raise RunFolderError(
            f"{path} announces {header.n} completions and holds {len(found)}: it was cut short or joined."
        )
    return SavedCompletions(
        tuple(Prompt(row.prompt, row.answer, row.answers, row.category) for row in found),
        tuple(Completion(row.completion, row.n_tokens, row.truncated) for row in found),
        header.info,
    )


def _line(kind: type[Row], path: Path, number: int, line: str) -> Row:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part)[:LONGEST] for part in first["loc"]) or "the line"
        raise RunFolderError(
            f"{path}, line {number}: {at}: {first['msg']}. It is no completions file, or it is damaged."
        ) from error
