"""From named columns to prompts: which column is what, and what a cell may hold."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.errors import PromptError, one_of
from ot_lens.io.untrusted import listed, quoted
from ot_lens.prompts.data import CLASSES, SPLITS, Prompt
from ot_lens.prompts.tables import Table, kind_of

# Column names that are guessed, letter case aside; of the first role at most one may be there.
GUESSES = {
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
# Control characters but tab and line breaks; and halves of surrogate pairs, which no file can hold.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """A prompt, the class and split its source gives it, and its place there."""

    prompt: Prompt
    place: str
    label: str | None = None
    split: str | None = None


def rows_of(
    table: Table, columns: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
) -> list[Row]:
    """The prompts of a table.

    Args:
        table: Cells by column.
        columns: Column by role (text, label, split, category, answer, answers), where names do not tell.
        labels: "harmful" or "harmless" by value of the label column, where they do not tell.

    Raises:
        PromptError: If a column is missing or ambiguous, or a cell is not what its role asks for.
    """
    chosen = choose_columns(table, columns or {})
    meanings = {**_LABELS, **{str(k).lower(): v for k, v in (labels or {}).items()}}
    for value in (labels or {}).values():
        one_of("class", value, CLASSES, PromptError)
    cells = {role: table.columns[column] for role, column in chosen.items()}
    nothing = [None] * len(table)
    return [
        Row(
            Prompt(
                checked_text(cells["text"][i], place, chosen["text"]),
                _optional(cells.get("answer", nothing)[i], place, chosen.get("answer")),
                _several(cells.get("answers", nothing)[i], place, chosen.get("answers")),
                _optional(cells.get("category", nothing)[i], place, chosen.get("category")),
            ),
            place,
            _meaning("label", cells["label"][i], meanings, place) if "label" in cells else None,
            _meaning("split", cells["split"][i], _SPLITS, place) if "split" in cells else None,
        )
        for i, place in enumerate(map(table.place, range(len(table))))
    ]


def refuse_other_class(table: Table, label: str, columns: Mapping[str, str]) -> None:
    """Refuse a file of both classes as the source of one.

    Raises:
        PromptError: If a label column that is not spoken of names the other class.
    """
    for column in table.columns:
        if column.lower() not in GUESSES["label"] or column in columns.values():
            continue
        for i, value in enumerate(table.columns[column]):
            if _LABELS.get(str(value).lower(), label) != label:
                raise PromptError(
                    f"{table.place(i)}: column {quoted(column)} says {quoted(value)}, but the file is listed "
                    f"as a source of {label} prompts: load it on its own, or give one file per class."
                )


def choose_columns(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    """Column by role: as named, else as guessed.

    Raises:
        PromptError: If a named column is missing, or the text's cannot be told; the columns are listed.
    """
    there = listed(table.columns)
    for role, column in columns.items():
        one_of("role of a column", role, tuple(GUESSES), PromptError)
        if column not in table.columns:
            raise PromptError(f"{table.name}: no column {quoted(column)}: its columns are {there}.")
    chosen = dict(columns)
    for role, names in GUESSES.items():
        found = [c for c in table.columns if c.lower() in names and c not in chosen.values()]
        if role not in chosen and len(found) == 1:
            chosen[role] = found[0]
        if role == "text" and role not in chosen:
            if len(table.columns) == 1:
                chosen[role] = next(iter(table.columns))
                continue
            raise PromptError(
                f"{table.name}: {'several columns' if found else 'no column'} may hold the prompts: name one "
                f"of {there}, as 'SOURCE#COLUMN' or columns={{'text': ...}}."
            )
    return chosen


def checked_text(value: Any, place: str, column: str = "text") -> str:
    """A prompt's text, if that is what the cell holds.

    Raises:
        PromptError: If it is not text, blank, longer than a prompt can be, or has control characters.
    """
    if not isinstance(value, str):
        raise PromptError(
            f"{place}: column {quoted(column)} holds {kind_of(value)}, not text: correct or remove it."
        )
    if not value.strip():
        raise PromptError(f"{place}: column {quoted(column)} is blank: fill it in or remove the row.")
    if len(value) > MAX_CHARACTERS:
        raise PromptError(
            f"{place} has {len(value)} characters: more than {MAX_CHARACTERS} are no prompt; "
            "check line breaks and quotes."
        )
    found = _CONTROL.search(value)
    if found:
        raise PromptError(
            f"{place}: control character U+{ord(found[0]):04X} at character {found.start() + 1}: "
            "remove it; no tokenizer was trained on it."
        )
    return value


def _optional(value: Any, place: str, column: str | None) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise PromptError(
            f"{place}: column {quoted(column)} holds {kind_of(value)}, not text: correct or remove it."
        )
    return value


def _several(value: Any, place: str, column: str | None) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise PromptError(f"{place}: column {quoted(column)} holds {kind_of(value)}, not a list of answers.")
    if not all(isinstance(answer, str) for answer in value):
        raise PromptError(f"{place}: column {quoted(column)} lists an answer that is not text.")
    return tuple(value)


def _meaning(role: str, value: Any, meanings: Mapping[str, str], place: str) -> str:
    found = meanings.get(str(value).strip().lower())
    if found is None:
        shown = "nothing" if value is None or value == "" else repr(value)[:40]
        remedy = "labels={VALUE: 'harmful' or 'harmless'} says what a value means" if role == "label" else ""
        raise PromptError(
            f"{place}: {role} {shown}: expected one of {', '.join(meanings)}"
            f"{'; ' + remedy if remedy else ''}."
        )
    return found
