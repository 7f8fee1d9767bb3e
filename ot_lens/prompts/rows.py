"""From named columns to prompts: which column has which role, and what its cells may hold."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.errors import PromptError, one_of
from ot_lens.io.untrusted import listed, quoted
from ot_lens.prompts.data import CLASSES, SPLITS, Prompt
from ot_lens.prompts.tables import RECOGNIZED, Table, kind_of

# Columns of conversations, read by their first user turn if no column holds the text itself.
CONVERSATIONS = frozenset(["messages", "turns", "conversations", "conversation", "dialog", "dialogue"])
# Columns in which a request goes on: a row that uses one is no prompt on its own.
_CONTINUED = ("input", "inputs", "context", "contextstring")
_LABELS = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "harmless": "harmless",
    "benign": "harmless",
    "safe": "harmless",
}
_SPLITS = {**{split: split for split in SPLITS}, "validation": "val", "valid": "val", "dev": "val"}
MAX_CHARACTERS = 1_000_000
_WRITTEN_TURNS = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content)['"]\s*:""")
# A prompt that is rendered already, from the header of the user's turn to that of the answer.
_RENDERED = re.compile(
    r"""\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*(?:
    \[INST\].*\[/INST\] | <\|im_start\|>.*<\|im_start\|>assistant | <start_of_turn>.*<start_of_turn>model
    | <\|start_header_id\|>.*<\|start_header_id\|>assistant | <\|user\|>.*<\|assistant\|>
    | (?:Human|User|USER):.*\n\s*(?:Assistant|ASSISTANT): | .*\#\#\#\ Instruction:.*\#\#\#\ Response:)""",
    re.VERBOSE | re.DOTALL,
)
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
) -> tuple[list[Row], dict[str, Any]]:
    """The prompts of a table, and notes for its record; `columns` and `labels` as in `load_prompts`.

    The notes, as far as they apply: set_aside, columns of other types that nobody named; left_out, how many
    rows continue in another column; conversations, that their first user turn was read.
    """
    if not len(table):
        return [], {}
    chosen = _choose_columns(table, columns or {})
    meanings = {**_LABELS, **{str(k).lower(): v for k, v in (labels or {}).items()}}
    for value in (labels or {}).values():
        one_of("class", value, CLASSES, PromptError)
    aside = [role for role in chosen if role not in (columns or {}) and not _fits(role, table, chosen[role])]
    notes: dict[str, Any] = {"set_aside": [chosen.pop(role) for role in aside]} if aside else {}
    complete = _complete(table, chosen["text"])
    if len(complete) < len(table):
        notes["left_out"] = len(table) - len(complete)
    texts, n = _first_user_turns(complete, chosen["text"])
    if n:
        notes["conversations"] = f"first user turn of {n} conversations in {chosen['text']!r}"
    return [_row(complete, i, text, chosen, meanings) for i, text in enumerate(texts)], notes


def _fits(role: str, table: Table, column: str) -> bool:
    """Whether an optional column has cells of the type of its role."""
    cells = [cell for cell in table.columns[column] if cell is not None and cell != ""]
    if role == "answers":
        return all(isinstance(cell, list) and all(isinstance(x, str) for x in cell) for cell in cells)
    return role not in ("category", "answer", "split") or all(isinstance(cell, str) for cell in cells)


def _complete(table: Table, text: str) -> Table:
    """The rows whose request does not go on in another column, as in Alpaca's `input`."""
    others = [name for name in table.columns if name.lower() in _CONTINUED and name != text]
    rows = [
        i for i in range(len(table)) if not any(_says_something(table.columns[name][i]) for name in others)
    ]
    if not rows:
        raise PromptError(
            f"{table.name}: every {text} goes on in another column ({' or '.join(others)}), without which it "
            "is not a prompt: join the two in one column, or remove the other if it is something else."
        )
    return table if len(rows) == len(table) else table.rows(rows)


def _says_something(cell: Any) -> bool:
    return bool(cell.strip() if isinstance(cell, str) else cell)


def _first_user_turns(table: Table, column: str) -> tuple[list[Any], int]:
    """The cells of the text column, conversations by their first user turn; and how many those were."""
    texts = list(table.columns[column])
    plain = column.lower() in CONVERSATIONS
    read = [i for i, cell in enumerate(texts) if isinstance(cell, list) and (plain or _has_roles(cell))]
    for i in read:
        texts[i] = _first_user_turn(texts[i], table.location(i))
    return texts, len(read)


def _has_roles(cell: Sequence[Any]) -> bool:
    return bool(cell) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in cell)


def _first_user_turn(turns: Sequence[Any], location: str) -> Any:
    for turn in turns:
        if not isinstance(turn, dict):
            return turn  # turns without roles begin with the user's
        if str(turn.get("role", turn.get("from"))).lower() in ("user", "human", "prompter"):
            content = turn.get("content", turn.get("value", turn.get("text")))
            if not isinstance(content, list):
                return content
            return "".join(_text_of(part, location) for part in content)
    raise PromptError(f"{location}: the conversation has no turn of a user: remove the row.")


def _text_of(part: Any, location: str) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        raise PromptError(
            f"{location}: the user's turn has a part that is not text ({quoted(kind)}), without which it is "
            "not a prompt: remove the row."
        )
    return text


def by_split(rows: Sequence[Row]) -> dict[str | None, list[Row]]:
    """Rows by the split that their source names; a single pool, None, if none does."""
    groups = {split: [row for row in rows if row.split == split] for split in (*SPLITS, None)}
    named = {split: group for split, group in groups.items() if group}
    if len(named) > 1 and None in named:
        raise PromptError(
            f"{named[None][0].location} names no split, but others of its class do: name one for all or none."
        )
    return named or {None: []}


def _row(table: Table, index: int, text: Any, chosen: Mapping[str, str], meanings: Mapping[str, str]) -> Row:
    location = table.location(index)
    cells = {role: table.columns[column][index] for role, column in chosen.items()}
    prompt = Prompt(
        _text(text, location, chosen["text"]),
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
    named = [c for c in table.columns if c.lower() in RECOGNIZED["text"]]
    conversations = [c for c in table.columns if c.lower() in CONVERSATIONS]
    if "text" not in chosen and not named and len(conversations) == 1:
        chosen["text"] = conversations[0]
    if "text" not in chosen and (len(table.columns) > 1 or table.header):
        first = " (the first row is read as the header: add one if it is missing)" if table.header else ""
        raise PromptError(
            f"{table.name}: it is not clear which column holds the prompts: name one of {available}, as "
            f"'SOURCE#COLUMN' or columns={{'text': ...}}{first}."
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
    elif _WRITTEN_TURNS.match(value):
        fault = "is a conversation written as text: store it as a list, in JSONL or parquet"
    elif _RENDERED.match(value):
        fault = "is rendered in a chat template already: give the user's text alone"
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
