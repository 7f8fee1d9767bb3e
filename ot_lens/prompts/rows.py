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
    """The prompts of a table; `columns` and `labels` as in `load_prompts`."""
    if not len(table):
        return []
    chosen = _choose_columns(table, columns or {})
    meanings = {**_LABELS, **{str(k).lower(): v for k, v in (labels or {}).items()}}
    for value in (labels or {}).values():
        one_of("class", value, CLASSES, PromptError)
    return [_row(table, i, chosen, meanings) for i in range(len(table))]


def by_split(rows: Sequence[Row]) -> dict[str | None, list[Row]]:
    """Rows by the split that their source names; a single pool, None, if none does."""
    groups = {split: [row for row in rows if row.split == split] for split in (*SPLITS, None)}
    named = {split: group for split, group in groups.items() if group}
    if len(named) > 1 and None in named:
        raise PromptError(
            f"{named[None][0].location} names no split, but others of its class do: name one for all or none."
        )
    return named or {None: []}


def _row(table: Table, index: int, chosen: Mapping[str, str], meanings: Mapping[str, str]) -> Row:
    location = table.location(index)
    cells = {role: table.columns[column][index] for role, column in chosen.items()}
    prompt = Prompt(
        _text(cells["text"], location, chosen["text"]),
        _optional(cells.get("answer"), location, chosen.get("answer")),
        _several(cells.get("answers"), location, chosen.get("answers")),
        _optional(cells.get("category"), location, chosen.get("category")),
    )
    label = _meaning("label", cells["label"], meanings, location) if "label" in cells else None
    split = _meaning("split", cells["split"], _SPLITS, location) if "split" in cells else None
    return Row(prompt, location, label, split)


def of_one_class(table: Table, label: str, columns: Mapping[str, str]) -> Table:
    """A source of one class without columns of class and split, unless the user names them.

    A class column that says otherwise is refused.
    """
    ignored = [c for c in table.columns if c.lower() in ("label", "class", "split")]
    ignored = [c for c in ignored if c not in columns.values()]
    for column in ignored:
        for i, value in enumerate(table.columns[column]):
            if column.lower() != "split" and _LABELS.get(str(value).lower(), label) != label:
                raise PromptError(
                    f"{table.location(i)}: column {quoted(column)} says {quoted(value)}, but the file is "
                    f"listed as a source of {label} prompts: load it on its own, or give one file per class."
                )
    return table.only(*(set(table.columns) - set(ignored))) if len(table.columns) > 1 else table


def _choose_columns(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    """Column by role: as named by the user, else as recognized; an error lists the columns."""
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
    if "text" not in chosen and len(table.columns) > 1:
        raise PromptError(
            f"{table.name}: it is not clear which column holds the prompts: name one of {available}, as "
            "'SOURCE#COLUMN' or columns={'text': ...}."
        )
    return {"text": next(iter(table.columns)), **chosen}


def _text(value: Any, location: str, column: str) -> str:
    """The text of a prompt: not blank, of bounded length and without control characters."""
    if not isinstance(value, str):
        fault = f"holds {kind_of(value)}, not text: correct or remove it"
    elif not value.strip():
        fault = "is blank: fill it in or remove the row"
    elif len(value) > MAX_CHARACTERS:
        fault = f"has {len(value)} characters, more than {MAX_CHARACTERS}: check line breaks and quotes"
    elif control := _CONTROL.search(value):
        code, position = f"U+{ord(control[0]):04X}", control.start() + 1
        fault = f"has control character {code} at character {position}: no tokenizer was trained on it"
    else:
        return value
    raise PromptError(f"{location}: column {quoted(column)} {fault}.")


def _optional(value: Any, location: str, column: str | None) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise PromptError(f"{location}: column {quoted(column)} holds {kind_of(value)}, not text.")
    return value


def _several(value: Any, location: str, column: str | None) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(answer, str) for answer in value):
        raise PromptError(f"{location}: column {quoted(column)} holds {kind_of(value)}, not a list of texts.")
    return tuple(value)


def _meaning(role: str, value: Any, meanings: Mapping[str, str], location: str) -> str:
    meaning = meanings.get(str(value).strip().lower())
    if meaning is None:
        remedy = "; map other values with labels={VALUE: 'harmful' or 'harmless'}" if role == "label" else ""
        raise PromptError(
            f"{location}: {role} {quoted(value)}: expected one of {', '.join(meanings)}{remedy}."
        )
    return meaning
