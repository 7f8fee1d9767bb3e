"""From named columns to prompts: which column has which role, and what its cells may hold."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.errors import PromptError, one_of
from ot_lens.io.untrusted import listed, quoted
from ot_lens.prompts.data import CLASSES, SPLITS, Prompt
from ot_lens.prompts.tables import Table, kind_of

# Column names recognized by role, in any letter case; a table may have at most one for the text.
RECOGNIZED = {
    "text": ("text", "prompt", "instruction", "goal", "question", "request", "query", "forbidden_prompt"),
    "label": ("label", "class"),
    "split": ("split",),
    "category": ("category", "semanticcategory"),
    "answer": ("answer",),
    "answers": ("answers",),
}
_LABELS = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "harmless": "harmless",
    "benign": "harmless",
    "safe": "harmless",
}
_SPLITS = {**{split: split for split in SPLITS}, "validation": "val", "valid": "val", "dev": "val"}
MAX_CHARACTERS = 1_000_000
# Control characters except tab and line breaks, and halves of surrogate pairs; C1 ones occur in public sets.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """A prompt, its location in the source, and the class and split given there."""

    prompt: Prompt
    location: str
    label: str | None = None
    split: str | None = None


def rows_of(
    table: Table, columns: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
) -> list[Row]:
    """The prompts of a table.

    Args:
        table: Cells by column.
        columns: Column by role (text, label, split, category, answer, answers), if names do not tell.
        labels: "harmful" or "harmless" by value of the label column, if they do not tell.

    Raises:
        PromptError: If a column is missing or ambiguous, or a cell does not hold what its role requires.
    """
    chosen = choose_columns(table, columns or {})
    meanings = {**_LABELS, **{str(k).lower(): v for k, v in (labels or {}).items()}}
    for value in (labels or {}).values():
        one_of("class", value, CLASSES, PromptError)
    return [_row(table, i, chosen, meanings) for i in range(len(table))]


def _row(table: Table, index: int, chosen: Mapping[str, str], meanings: Mapping[str, str]) -> Row:
    location = table.location(index)
    cells = {role: table.columns[column][index] for role, column in chosen.items()}
    prompt = Prompt(
        checked_text(cells["text"], location, chosen["text"]),
        _optional(cells.get("answer"), location, chosen.get("answer")),
        _several(cells.get("answers"), location, chosen.get("answers")),
        _optional(cells.get("category"), location, chosen.get("category")),
    )
    label = _meaning("label", cells["label"], meanings, location) if "label" in cells else None
    split = _meaning("split", cells["split"], _SPLITS, location) if "split" in cells else None
    return Row(prompt, location, label, split)


def refuse_other_class(table: Table, label: str, columns: Mapping[str, str]) -> None:
    """Refuse a file of both classes as the source of one, unless its label column is named as another."""
    for column in table.columns:
        if column.lower() not in RECOGNIZED["label"] or column in columns.values():
            continue
        for i, value in enumerate(table.columns[column]):
            if _LABELS.get(str(value).lower(), label) != label:
                raise PromptError(
                    f"{table.location(i)}: column {quoted(column)} says {quoted(value)}, but the file is "
                    f"listed as a source of {label} prompts: load it on its own, or give one file per class."
                )


def choose_columns(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    """Column by role: as named by the user, else as recognized; an error lists the columns."""
    if not table.columns:
        raise PromptError(f"{table.name} has no columns: give every prompt a text.")
    available = listed(table.columns)
    for role, column in columns.items():
        one_of("role of a column", role, tuple(RECOGNIZED), PromptError)
        if column not in table.columns:
            raise PromptError(f"{table.name}: no column {quoted(column)}: its columns are {available}.")
    chosen = dict(columns)
    for role, names in RECOGNIZED.items():
        candidates = [c for c in table.columns if c.lower() in names and c not in chosen.values()]
        if role not in chosen and len(candidates) == 1:
            chosen[role] = candidates[0]
        if role == "text" and role not in chosen:
            if len(table.columns) > 1:
                raise PromptError(
                    f"{table.name}: {'several columns' if candidates else 'no column'} may hold the prompts: "
                    f"name one of {available}, as 'SOURCE#COLUMN' or columns={{'text': ...}}."
                )
            chosen[role] = next(iter(table.columns))
    return chosen


def checked_text(value: Any, location: str, column: str = "text") -> str:
    """The text of a prompt: not blank, of bounded length and without control characters."""
    if not isinstance(value, str):
        raise _not_text(value, location, column)
    if not value.strip():
        raise PromptError(f"{location}: column {quoted(column)} is blank: fill it in or remove the row.")
    if len(value) > MAX_CHARACTERS:
        raise PromptError(
            f"{location} has {len(value)} characters, but a prompt has at most {MAX_CHARACTERS}: "
            "check line breaks and quotes."
        )
    control = _CONTROL.search(value)
    if control:
        raise PromptError(
            f"{location}: control character U+{ord(control[0]):04X} at character {control.start() + 1}: "
            "remove it; no tokenizer was trained on it."
        )
    return value


def _not_text(value: Any, location: str, column: str | None) -> PromptError:
    return PromptError(
        f"{location}: column {quoted(column)} holds {kind_of(value)}, not text: correct or remove it."
    )


def _optional(value: Any, location: str, column: str | None) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _not_text(value, location, column)
    return value


def _several(value: Any, location: str, column: str | None) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise PromptError(
            f"{location}: column {quoted(column)} holds {kind_of(value)}, not a list of answers."
        )
    if not all(isinstance(answer, str) for answer in value):
        raise PromptError(f"{location}: column {quoted(column)} lists an answer that is not text.")
    return tuple(value)


def _meaning(role: str, value: Any, meanings: Mapping[str, str], location: str) -> str:
    meaning = meanings.get(str(value).strip().lower())
    if meaning is None:
        remedy = "; map other values with labels={VALUE: 'harmful' or 'harmless'}" if role == "label" else ""
        raise PromptError(
            f"{location}: {role} {quoted(value)}: expected one of {', '.join(meanings)}{remedy}."
        )
    return meaning
