"""Tables of prompts: CSV, JSON lines, parquet, JSON lists and plain text, each as named columns of cells.

CSV is read by pyarrow with every column as text, and JSON record by record, rather than by pandas, which
guesses types ("007", "NA", dates), pads short rows, renames repeated columns and drops surplus cells.
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
from ot_lens.io import parquet, untrusted
from ot_lens.io.untrusted import MIB, abbreviated, quoted

MAX_FILE = 1024 * MIB  # ten times the largest public sets
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Table:
    """Cells by column.

    Attributes:
        name: The source, for messages.
        columns: Cells of every column; all columns have the same length.
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
        """The table with only those of the named columns that it has, in its own order."""
        return replace(self, columns={name: cells for name, cells in self.columns.items() if name in names})

    def location(self, index: int) -> str:
        """Source and number of a row, for messages."""
        number = self.numbers[index] if self.numbers else index + 1
        return f"{self.name}: {self.row} {number}"


def read_bytes(path: Path) -> bytes:
    """The bytes of a prompt file."""
    if isdir(path):
        raise PromptError(f"{path} is a folder: name a file in it, or a dataset folder as 'hf:{path}'.")
    try:
        return untrusted.read_bounded(path, MAX_FILE, PromptError)
    except FileNotFoundError as error:
        raise PromptError(f"There is no file {str(path)!r}: check the path.") from error


def decode(content: bytes, name: str) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark; an error names the line of the first bad byte."""
    encoding = "utf-16" if content.startswith(_UTF16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise PromptError(
                f"{name} is neither UTF-8 nor complete UTF-16 ({error.reason} at byte {error.start}): "
                "save it as UTF-8."
            ) from error
        # The decoder of "utf-8-sig" counts from after the mark.
        start = error.start + (len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0)
        line = content.count(b"\n", 0, start) + 1
        byte = content[start : start + 1]
        raise PromptError(
            f"{name}: line {line}, byte {start}: not UTF-8 text (byte 0x{byte.hex().upper()}, which is "
            f"{byte.decode('latin-1')!r} in Latin-1): save the file as UTF-8."
        ) from error


def sha256(content: bytes) -> str:
    """SHA-256 of the bytes."""
    return hashlib.sha256(content).hexdigest()


def read_table(path: Path, content: bytes) -> Table:
    """A table, by the file's extension: .csv, .tsv, .jsonl, .ndjson, .json (a list), .parquet, .txt."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise PromptError(
            f"{path}: prompts are not read from {path.suffix or 'files without an extension'}: "
            f"give one of {', '.join(READERS)}."
        )
    table = read(str(path), content)
    if not len(table):
        raise PromptError(f"{path} has no prompts: the file is empty.")
    return table


def from_records(name: str, records: Sequence[Any], row: str = "row", numbers: Sequence[int] = ()) -> Table:
    """A table from objects with named fields, or from plain strings."""
    if all(isinstance(record, str) for record in records):
        return Table(name, {"text": list(records)}, row, numbers)
    table = Table(name, {}, row, numbers)
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise PromptError(
                f"{table.location(index)} is {kind_of(record)}, not an object with named fields: "
                "give all prompts as strings, or all as objects."
            )
    fields = dict.fromkeys(field for record in records for field in record)
    _check_columns(name, len(fields))
    return replace(table, columns={f: [record.get(f) for record in records] for f in fields})


def from_arrow(name: str, table: Any) -> Table:
    """A table of pyarrow; bytes are never interpreted.

    A column of pickled objects, or of values Python cannot represent, is listed and refused when used.
    """
    return Table(name, {c: _cells(table.column(c)) for c in table.column_names})


def parse_json(text: str, name: str) -> Any:
    """JSON as plain data; see `untrusted.parse_json`."""
    return untrusted.parse_json(text, name, PromptError)


def _csv(name: str, content: bytes, delimiter: str = ",") -> Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    text = decode(content, name)
    columns = _header(name, text, delimiter)
    if not columns:
        return Table(name, {})
    encoded = text.encode()
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(encoded),
            # One block, so that no long row crosses a boundary.
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
    # An unclosed quote makes one cell of everything after it, without an error.
    if text.count('"') % 2 and "\n" in (cells[columns[-1]] or [""])[-1]:
        raise PromptError(
            f"{name}: row {len(cells[columns[0]])} opens a quote that is never closed: close it."
        )
    return Table(name, cells)


def _header(name: str, text: str, delimiter: str) -> list[str]:
    try:
        header = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    except csv.Error as error:
        raise PromptError(f"{name} has no header of column names ({abbreviated(error)}).") from error
    columns = [column.strip() for column in header]
    _check_columns(name, len(columns))
    wrong = next((c for c in columns if not c or columns.count(c) > 1), None)
    if wrong is not None:
        raise PromptError(f"{name}: column name {quoted(wrong)} is repeated or empty: rename the column.")
    return columns


def _check_columns(name: str, n: int) -> None:
    """Every column costs a cell in every row, even in rows that omit it."""
    if n > parquet.MAX_COLUMNS:
        raise PromptError(f"{name} has {n} columns, but at most {parquet.MAX_COLUMNS} are read.")


def _ragged(message: str) -> str:
    """Pyarrow's message without the row's text, counted from the first row below the header."""
    numbers = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", message)
    if numbers is None:
        return f"not a table ({message.splitlines()[0][:80]}): check quotes and separators."
    row, expected, got = map(int, numbers.groups())
    return (
        f"row {row - 1} has {got} cells where the header has {expected}: put cells that contain the "
        "separator or a line break in quotes."
    )


def _tsv(name: str, content: bytes) -> Table:
    return _csv(name, content, "\t")


def _lines(name: str, content: bytes) -> tuple[list[str], list[int]]:
    """The lines that are not blank, and their numbers."""
    lines = [line.removesuffix("\r") for line in decode(content, name).split("\n")]
    numbers = [i for i, line in enumerate(lines, 1) if line.strip()]
    return [lines[i - 1] for i in numbers], numbers


def _jsonl(name: str, content: bytes) -> Table:
    lines, numbers = _lines(name, content)
    records = [parse_json(line, f"{name}: line {n}") for line, n in zip(lines, numbers, strict=True)]
    return from_records(name, records, "line", numbers)


def _text(name: str, content: bytes) -> Table:
    lines, numbers = _lines(name, content)
    return Table(name, {"text": [line.strip() for line in lines]}, "line", numbers)


def _json(name: str, content: bytes) -> Table:
    records = parse_json(decode(content, name), name)
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
