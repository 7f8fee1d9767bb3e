"""Answers saved to a file, to judge them again without generating, and statistics of their lengths."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ot_lens.errors import PromptError, RunFolderError
from ot_lens.generation import Completion
from ot_lens.io.files import write_text
from ot_lens.io.untrusted import MIB, first_fault, read_text
from ot_lens.prompts import Prompt, as_texts

MAX_FILE = 1024 * MIB

_Line = TypeVar("_Line", bound=BaseModel)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: Literal["ot_lens completions"] = "ot_lens completions"
    version: Literal[1] = 1
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
    """Prompts, the answers a model gave to them, and what was recorded with them (model, edits, ...)."""

    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    info: Mapping[str, Any]


@dataclass(frozen=True)
class CompletionStats:
    """Lengths of answers, in generated tokens without the end of sequence."""

    n: int
    empty: int  # answers without text
    truncated: int  # ended by the token budget rather than the model
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
        raise PromptError("There are no completions to describe.")
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
    """Write prompts and answers as JSON Lines, atomically: a header, then one answer per line.

    Args:
        path: The file.
        prompts: The requests.
        completions: One answer per request, in the same order.
        info: Anything JSON can hold about their origin.

    Raises:
        PromptError: If there is not one answer per prompt.
        RunFolderError: If the file cannot be written.
    """
    texts = as_texts(prompts)
    if len(texts) != len(completions):
        raise PromptError(f"Got {len(texts)} prompts but {len(completions)} completions.")
    lines: list[BaseModel] = [_Header(n=len(texts), info=dict(info or {}))]
    for given, completion in zip(prompts, completions, strict=True):
        prompt = given if isinstance(given, Prompt) else Prompt(given)
        fields = {**vars(prompt), **vars(completion), "prompt": prompt.text, "completion": completion.text}
        lines.append(_Row(**{name: fields[name] for name in _Row.model_fields}))
    # ASCII only: text that a model wrote may contain line separators of other kinds.
    write_text(Path(path), "".join(json.dumps(line.model_dump()) + "\n" for line in lines))


def load_completions(path: str | Path) -> SavedCompletions:
    """Read what `save_completions` wrote.

    Raises:
        RunFolderError: If the file is missing, of another kind, damaged or truncated; the message names the
            line.
    """
    missing = "write one with save_completions"
    lines = read_text(Path(path), MAX_FILE, RunFolderError, missing=missing).split("\n")
    header = _parsed(_Header, path, 1, lines[0])
    rows = [_parsed(_Row, path, i, line) for i, line in enumerate(lines[1:], start=2) if line]
    if len(rows) != header.n:
        raise RunFolderError(
            f"{path} declares {header.n} completions but holds {len(rows)}: it was truncated or concatenated."
        )
    return SavedCompletions(
        tuple(Prompt(row.prompt, row.answer, row.answers, row.category) for row in rows),
        tuple(Completion(row.completion, row.n_tokens, row.truncated) for row in rows),
        header.info,
    )


def _parsed(kind: type[_Line], path: str | Path, number: int, line: str) -> _Line:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        name, message = first_fault(error)
        raise RunFolderError(
            f"{path}, line {number}: {name or 'the line'}: {message}. It is not a completions file, or it is "
            "damaged."
        ) from error
