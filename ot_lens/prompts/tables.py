"""Tables of prompts: CSV, JSON lines, parquet, JSON lists and plain text, each as named columns of cells."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.io import parquet, untrusted
from ot_lens.prompts.text_files import decode


@dataclass(frozen=True)
class Table:
    """Cells by column.

    Attributes:
        name: The source, for messages.
        columns: Cells of every column; all columns are equally long.
        row: What a row is called ("row", "line").
        numbers: The number of each row in its file, from 1.
    """

    name: str
    columns: dict[str, list[Any]]
    row: str = "row"
    numbers: Sequence[int] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))

    def only(self, *names: str) -> "Table":
        """The table with those of the named columns that it has, in its own order."""
        kept = {name: cells for name, cells in self.columns.items() if name in names}
        return replace(self, columns=kept)

    def place(self, index: int) -> str:
        """Source and number of a row."""
        number = self.numbers[index] if self.numbers else index + 1
        return f"{self.name}: {self.row} {number}"


def read_table(path: Path, content: bytes) -> Table:
    """A table by the file's ending: .csv, .tsv, .jsonl, .ndjson, .json (a list), .parquet, .txt.

    Raises:
        PromptError: If the ending is unknown, or the content is not what it says.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise PromptError(
            f"{path}: prompts are not read from {path.suffix or 'files without an ending'}: "
            f"give one of {', '.join(READERS)}."
        )
    table = read(str(path), content)
    if not len(table):
        raise PromptError(f"{path}: no prompts: the file is empty.")
    return table


def from_records(name: str, records: Sequence[Any], row: str = "row", numbers: Sequence[int] = ()) -> Table:
    """A table of objects with named fields, or of plain strings.

    Raises:
        PromptError: If a record is neither.
    """
    table = Table(name, {}, row, numbers)
    if all(isinstance(record, str) for record in records):
        return Table(name, {"text": list(records)}, row, numbers)
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise PromptError(
                f"{table.place(index)} is {kind_of(record)}, not an object with named fields: "
                "give every prompt as a string, or every one as an object."
            )
    fields = dict.fromkeys(field for record in records for field in record)
    _check_columns(name, len(fields))
    return Table(name, {f: [record.get(f) for record in records] for f in fields}, row, numbers)


def parse_json(text: str, name: str) -> Any:
    """Parse JSON; NaN and infinities, which are no JSON, are refused.

    Raises:
        PromptError: If it is not JSON.
    """
    return untrusted.parse_json(text, name, PromptError)


def _csv(name: str, content: bytes, delimiter: str = ",") -> Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    text = decode(content, name)
    try:
        header = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    except csv.Error as error:
        raise PromptError(
            f"{name}: no header of column names ({untrusted.abbreviated(error)}): check quotes."
        ) from error
    columns = [column.strip() for column in header]
    _check_columns(name, len(columns))
    twice = next((c for c in columns if not c or columns.count(c) > 1), None)
    if twice is not None:
        raise PromptError(
            f"{name}: the header names column {untrusted.quoted(twice)} twice or not at all: name each once."
        )
    if not columns:
        return Table(name, {})
    encoded = text.encode()
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(encoded),
            # One block, so that no long row straddles two.
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=len(encoded) + 1, column_names=columns, skip_rows=0
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise PromptError(f"{name}: {_ragged(str(error))}") from error
    cells = {c: table.column(c).to_pylist()[1:] for c in columns}
    # An unclosed quote makes one cell of all that follows, without an error.
    if text.count('"') % 2 and "\n" in (cells[columns[-1]] or [""])[-1]:
        raise PromptError(
            f"{name}: row {len(cells[columns[0]])} opens a quote that is never closed: close it."
        )
    return Table(name, cells)


def _check_columns(name: str, n: int) -> None:
    """A column costs a cell in every row, also where a row leaves it out."""
    if n > parquet.MAX_COLUMNS:
        raise PromptError(
            f"{name} names {n} columns, more than the {parquet.MAX_COLUMNS} that are read: is it one?"
        )


def _ragged(message: str) -> str:
    """The message of pyarrow without the row's text, counted from the first row under the header."""
    found = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", message)
    if found is None:
        return f"not a table ({message.splitlines()[0][:80]}): check quotes and separators."
    row, expected, got = (int(part) for part in found.groups())
    return (
        f"row {row - 1} has {got} cells where the header has {expected}: put cells that hold the separator "
        "or a line break in quotes."
    )


def _tsv(name: str, content: bytes) -> Table:
    return _csv(name, content, "\t")


def _lines(name: str, content: bytes) -> list[tuple[int, str]]:
    lines = decode(content, name).split("\n")
    return [(i, line.removesuffix("\r")) for i, line in enumerate(lines, 1) if line.strip()]


def _jsonl(name: str, content: bytes) -> Table:
    lines = _lines(name, content)
    records = [parse_json(line, f"{name}: line {number}") for number, line in lines]
    return from_records(name, records, "line", [number for number, _ in lines])


def _text(name: str, content: bytes) -> Table:
    lines = _lines(name, content)
    return Table(name, {"text": [line.strip() for _, line in lines]}, "line", [number for number, _ in lines])


def _json(name: str, content: bytes) -> Table:
    found = parse_json(decode(content, name), name)
    if not isinstance(found, list):
        raise PromptError(
            f"{name} holds {kind_of(found)}: as one class's source it must be a list of prompts."
        )
    return from_records(name, found)


def _parquet(name: str, content: bytes) -> Table:
    return from_arrow(name, parquet.read_arrow(content, name, PromptError))


def from_arrow(name: str, table: Any) -> Table:
    """A table of pyarrow; columns of other than text, numbers, or lists of text stay unread.

    Bytes are never interpreted: a column of pickled objects, or of what Python has no value for, is named in
    the columns and refused when used.
    """
    return Table(name, {c: _cells(table.column(c)) for c in table.column_names})


def _cells(column: Any) -> list[Any]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or isinstance(kind, pa.BaseExtensionType):
        return [b""] * len(column)
    try:
        return column.to_pylist()
    # Dates before the year 1, nanoseconds, unknown time zones: Python has no value for them.
    except (ValueError, OverflowError, KeyError, NotImplementedError):
        return [b""] * len(column)


def kind_of(value: Any) -> str:
    """What a value is, in words."""
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
