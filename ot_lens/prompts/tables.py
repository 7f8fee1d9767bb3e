"""Tables of prompts: CSV, JSON lines, parquet, JSON lists and plain text, each as named columns of cells.

CSV is read as text, and JSON record by record, rather than by pandas, which guesses types ("007", "NA"),
pads short rows, renames repeated columns and drops surplus cells.
"""

import codecs
import csv
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os.path import isdir  # unlike Path.is_dir it accepts names that no file system does
from pathlib import Path
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.io import parquet
from ot_lens.io.untrusted import MIB, parse_json, quoted, read_bounded

MAX_FILE = 1024 * MIB  # ten times the largest public sets
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


# Column names recognized by role, in any letter case; a table may have at most one for the text.
RECOGNIZED = {
    "text": ("text", "prompt", "instruction", "goal", "question", "request", "query", "forbidden_prompt"),
    "label": ("label", "class"),
    "split": ("split",),
    "category": ("category", "semanticcategory"),
    "answer": ("answer",),
    "answers": ("answers",),
}
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Table:
    """Cells by column; a row is called `row` ("row", "line") and has its number in the file, from 1.

    `header` tells that the first row of a text file was taken as the names of the columns.
    """

    name: str
    columns: dict[str, list[Any]]
    row: str = "row"
    numbers: Sequence[int] = ()
    header: bool = False

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))

    def only(self, *names: str) -> "Table":
        """The table with only those of the named columns that it has, in its own order."""
        return replace(self, columns={name: cells for name, cells in self.columns.items() if name in names})

    def rows(self, indices: Sequence[int]) -> "Table":
        """The table with only those rows, under their own numbers."""
        cells = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        numbers = [self.numbers[i] if self.numbers else i + 1 for i in indices]
        return replace(self, columns=cells, numbers=numbers)

    def location(self, index: int) -> str:
        """Source and number of a row, for messages."""
        number = self.numbers[index] if self.numbers else index + 1
        return f"{self.name}: {self.row} {number}"


def read_bytes(path: Path) -> bytes:
    """The bytes of a prompt file."""
    if isdir(path):
        raise PromptError(f"{path} is a folder: name a file in it, or a dataset folder as 'hf:{path}'.")
    try:
        return read_bounded(path, MAX_FILE, PromptError)
    except FileNotFoundError as error:
        raise PromptError(f"There is no file {str(path)!r}: check the path.") from error


def decode(content: bytes, name: str) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark; an error names the line of the first bad byte."""
    encoding = "UTF-16" if content.startswith(_UTF16) else "UTF-8"
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start : error.start + 1]
        raise PromptError(
            f"{name}: line {line}, byte {error.start}: not {encoding} text (byte 0x{byte.hex().upper()}, "
            f"which is {byte.decode('latin-1')!r} in Latin-1): save the file as UTF-8."
        ) from error


def sha256(content: bytes) -> str:
    """SHA-256 of the bytes."""
    return hashlib.sha256(content).hexdigest()


def read_table(path: Path, content: bytes, delimiter: str | None = None) -> Table:
    """A table, by the file's extension: .csv, .tsv, .jsonl, .ndjson, .json (a list), .parquet, .txt."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise PromptError(
            f"{path}: prompts are not read from {path.suffix or 'files without an extension'}: "
            f"give one of {', '.join(READERS)}."
        )
    if delimiter is None:
        table = read(str(path), content)
    elif read in (_csv, _tsv):
        table = _delimited(str(path), content, delimiter)
    else:
        raise PromptError(f"{path}: delimiter = {delimiter!r} is for CSV and TSV files: leave it out.")
    if not len(table):
        raise PromptError(f"{path} has no prompts: the file is empty.")
    return table


def from_records(name: str, records: Sequence[Any], row: str = "row", numbers: Sequence[int] = ()) -> Table:
    """A table from objects with named fields; a plain string is short for {"text": ...}."""
    table = Table(name, {}, row, numbers)
    objects = [{"text": record} if isinstance(record, str) else record for record in records]
    wrong = next((i for i, record in enumerate(objects) if not isinstance(record, dict)), None)
    if wrong is not None:
        raise PromptError(
            f"{table.location(wrong)} is {kind_of(objects[wrong])}: give each prompt as a string, or as an "
            "object with named fields."
        )
    fields = dict.fromkeys(field for record in objects for field in record)
    _check_columns(name, len(fields))
    return replace(table, columns={f: [record.get(f) for record in objects] for f in fields})


def from_arrow(name: str, table: Any) -> Table:
    """A table of pyarrow; a column of bytes or of values Python cannot represent is refused when used."""
    columns = {column: _cells(table.column(column)) for column in table.column_names}
    return _unambiguous(Table(name, columns), ",")


def _csv(name: str, content: bytes) -> Table:
    return _unambiguous(_delimited(name, content, ","), ",")


def _tsv(name: str, content: bytes) -> Table:
    return _unambiguous(_delimited(name, content, "\t"), "\t")


def _unambiguous(table: Table, delimiter: str) -> Table:
    """Refuse a header with another delimiter in it: a prompt may be one cell or several."""
    for column in table.columns:
        other = next((d for d in _DELIMITERS if d in column and d != delimiter), None)
        if other is not None:
            raise PromptError(
                f"{table.name}: column name {quoted(column)} contains {other!r}: say which character "
                f"separates the cells, delimiter={other!r} or delimiter={delimiter!r}."
            )
    return table


def _delimited(name: str, content: bytes, delimiter: str) -> Table:
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise PromptError(f"delimiter must be one character other than a quote, got {delimiter!r}.")
    lines = csv.reader(io.StringIO(decode(content, name), newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    limit = csv.field_size_limit(MAX_FILE)
    try:
        rows.extend(row for row in lines if row)
    except csv.Error as error:
        raise PromptError(
            f"{name}: row {len(rows)} is not readable ({error}): close every quote, and double the quotes "
            "inside a quoted cell."
        ) from error
    finally:
        csv.field_size_limit(limit)
    columns = [column.strip() for column in rows.pop(0)] if rows else []
    _check_columns(name, len(columns))
    wrong = next((c for c in columns if not c or columns.count(c) > 1), None)
    if wrong is not None:
        raise PromptError(f"{name}: column name {quoted(wrong)} is repeated or empty: rename the column.")
    for number, row in enumerate(rows, 1):
        if [cell.strip() for cell in row] == columns:
            raise PromptError(f"{name}: row {number} repeats the header: remove it.")
        if len(row) != len(columns):
            raise PromptError(
                f"{name}: row {number} has {len(row)} cells where the header has {len(columns)}: put cells "
                "that contain the separator or a line break in quotes."
            )
    cells = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
    return Table(name, cells, header=True)


def _check_columns(name: str, n: int) -> None:
    """Every column costs a cell in every row, even in rows that omit it."""
    if n > parquet.MAX_COLUMNS:
        raise PromptError(f"{name} has {n} columns, but at most {parquet.MAX_COLUMNS} are read.")


def _lines(name: str, content: bytes) -> tuple[list[str], list[int]]:
    """The lines that are not blank, and their numbers."""
    lines = [line.removesuffix("\r") for line in decode(content, name).split("\n")]
    numbers = [i for i, line in enumerate(lines, 1) if line.strip()]
    return [lines[i - 1] for i in numbers], numbers


def _jsonl(name: str, content: bytes) -> Table:
    lines, numbers = _lines(name, content)
    records = [
        parse_json(line, f"{name}: line {n}", PromptError) for line, n in zip(lines, numbers, strict=True)
    ]
    return from_records(name, records, "line", numbers)


def _text(name: str, content: bytes) -> Table:
    lines, numbers = _lines(name, content)
    first = lines[0].strip() if lines else ""
    cells = [cell.strip().lower() for cell in re.split(r"[,;|\t]", first)]
    if set(cells) & set(RECOGNIZED["text"]) and all(cell.replace("_", "").isalnum() for cell in cells):
        raise PromptError(
            f"{name}: line 1, {quoted(first)}, is the header of a table: name the file .csv or .tsv, or "
            "remove the line."
        )
    if first.startswith('{"'):
        raise PromptError(f"{name}: line 1 is JSON: name the file .jsonl, to read one object per line.")
    if lines and all("\t" in line.strip() for line in lines):
        raise PromptError(
            f"{name}: every line has a tab: name the file .tsv and give it a header, or replace the tabs."
        )
    return Table(name, {"text": [line.strip() for line in lines]}, "line", numbers)


def _json(name: str, content: bytes) -> Table:
    records = parse_json(decode(content, name), name, PromptError)
    if not isinstance(records, list):
        raise PromptError(f"{name} holds {kind_of(records)}: the source of one class must be a list.")
    return from_records(name, records)


def _parquet(name: str, content: bytes) -> Table:
    return from_arrow(name, parquet.read_arrow(content, name, PromptError))


def _cells(column: Any) -> list[Any]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or isinstance(kind, pa.BaseExtensionType):
        return [b""] * len(column)
    try:
        return column.to_pylist()
    # Dates before the year 1, nanoseconds, unknown time zones: Python cannot represent them.
    except (ValueError, OverflowError, KeyError, NotImplementedError):
        return [b""] * len(column)


def kind_of(value: Any) -> str:
    """The kind of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bytes: "binary data", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


READERS: dict[str, Callable[[str, bytes], Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _text,
}
