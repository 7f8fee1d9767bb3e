"""Hostile files: mutated bytes, altered structures, odd kinds of files. Equal seeds make equal cases."""

import copy
import io
import json
import math
import operator
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

# Numbers at the edges of what lengths and offsets are kept in.
EDGES = [0, 1, -1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
EXTREMES = [0, -1, 3, 10**9, 1e308, -1e308, math.inf, -math.inf, math.nan, 1e-320]
NUMBERS = [*EDGES, *EXTREMES, 10**40, -(10**400), -0.0, 2.5]
TOKENS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n\n", b'"', b"'", b"{", b"}", b"[",
    b"]", b",", b":", b": ", b"- ", b"&a ", b"*a", b"<<: ", b"!!python/object/apply:os.system ",
    b"!!binary ", b"!!set ", b"? ", b"|\n", b"%YAML 9.9\n", b"---\n", b"...", b"NaN", b"Infinity",
    b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"[" * 300, b"{" * 300, b'{"a":' * 300, b"\\ud800",
    b"\\u0000", b"null", b"true", b"../", b"..\\", b"/etc/passwd", b"\x1b[2J", b"\xe2\x80\xae",
    b"\xe2\x80\xa8", b"$x^{", b"\\frac{", b"<script>", b"{{ 7*7 }}", b"{% for", b"%s%n", b"2020-99-99",
    b"1:" * 50, b"0x" + b"f" * 400, b"PAR1", b"PK\x03\x04", b"\x80\x04", b"A" * 3000, b"1_", b"=cmd",
]  # fmt: skip
TEXTS = [
    "", " ", "\x00", "\ud800", "\x1b]0;owned\x07", "../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x",
    "a" * 5000, "$x^{", "<script>alert(1)</script>", "{{ 7*7 }}", "\u202e", "\u2028", "nan", "1e999",
    "None", "0", "-1", "1.5", "\U0001f600" * 50, "harmful", "all", "pca_ot", "organism", "hf:/etc", "%s",
    "{0}", "\n\n", "=1+1", "é\u0301",
]  # fmt: skip


def mutated(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """A few mutations of a valid file's bytes: parts removed, repeated, overwritten, inserted or cut off."""
    result = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(result) + 1)
        part = bytes(result[at : at + draw.choice((1, 2, 4, 8, 40, 400))])
        end = draw.choice((at, at + len(part), at + len(part), at + len(part), len(result)))
        result[at:end] = _replacement(part, others, draw)
    return bytes(result)


def _replacement(part: bytes, others: list[bytes], draw: random.Random) -> bytes:
    other, size = draw.choice(others), draw.choice((1, 2, 4, 8))
    start, edge = draw.randrange(len(other) + 1), draw.choice(EDGES) % 2 ** (8 * size)
    candidates = [
        b"",
        part * draw.choice((2, 50)),
        draw.randbytes(len(part)),
        bytes(byte ^ 1 << draw.randrange(8) for byte in part[:1]) + part[1:],
        edge.to_bytes(size, draw.choice(("little", "big"))),
        other[start : start + draw.choice((8, 60, 1000))],
        *[draw.choice(TOKENS)] * 2,  # the most likely to reach a parser
    ]
    return draw.choice(candidates)


# ------------------------------------------------------------------------------------------- structures
def value(draw: random.Random, depth: int = 0) -> object:
    """A JSON value at the edge of what is expected, or a small structure of them."""
    kind = draw.randrange(8)
    if kind == 0 and depth < 3:
        return [value(draw, depth + 1) for _ in range(draw.randrange(5))]
    if kind == 1 and depth < 3:
        return {draw.choice(TEXTS): value(draw, depth + 1) for _ in range(draw.randrange(5))}
    return draw.choice((draw.choice(NUMBERS), draw.choice(TEXTS), draw.choice((None, True, False))))


def paths(document: object, path: tuple = ()) -> Iterator[tuple]:
    """Where the parts of a document are."""
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, part in items:
            yield (*path, key)
            yield from paths(part, (*path, key))


def altered(document: object, draw: random.Random) -> object:
    """A document with one to four of its parts replaced, removed, renamed, doubled or added to."""
    places, result = list(paths(document)), copy.deepcopy(document)
    if not places or draw.random() < 0.1:
        return value(draw)
    for _ in range(draw.randint(1, 4)):
        with suppress(LookupError, TypeError):  # an earlier alteration removed the place
            _alter(result, draw.choice(places), draw)
    return result


def _alter(document: Any, path: tuple, draw: random.Random) -> None:
    *above, last = path
    part, kind = reduce(operator.getitem, above, document), draw.randrange(5)
    if kind == 0:
        del part[last]
    elif kind == 1 and isinstance(part, dict):
        part[draw.choice(TEXTS)] = part.pop(last)
    elif kind == 2 and isinstance(part, list):
        part.append(copy.deepcopy(part[last]))
    elif kind == 3 and isinstance(part, dict):
        part[draw.choice(TEXTS)] = value(draw)
    else:
        part[last] = value(draw)


def as_json(document: object) -> bytes:
    """JSON with whatever Python writes that is none: NaN, half surrogate pairs as escapes."""
    return json.dumps(document).encode()


# ---------------------------------------------------------------------------------- tables of parquet
TYPES = [
    pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(),
    pa.binary(), pa.large_string(), pa.null(), pa.timestamp("ns"), pa.date32(), pa.time64("ns"),
    pa.duration("s"), pa.decimal128(30, 3), pa.list_(pa.string()), pa.list_(pa.int64()), pa.binary(3),
    pa.struct([("a", pa.string())]), pa.dictionary(pa.int32(), pa.string()), pa.map_(pa.string(), pa.int64()),
]  # fmt: skip


def as_parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def odd_table(valid: pd.DataFrame, draw: random.Random) -> bytes:
    """Parquet that is whole as a file, with columns of other names, types and values than expected."""
    table = pa.Table.from_pandas(valid, preserve_index=False)
    table = table.slice(0, draw.choice((0, 1, 7, len(table))))
    for _ in range(draw.randint(1, 3)):
        title = draw.choice([*table.column_names, "text", "value", "\x00", "a" * 300, "$x^{"])
        column, at = _odd_column(len(table), draw), draw.randrange(table.num_columns)
        table = table.append_column(title, column) if at == 0 else table.set_column(at, title, column)
    try:
        return as_parquet(table)
    except (pa.ArrowException, ValueError):  # what parquet cannot hold
        return b"PAR1"


def _odd_column(rows: int, draw: random.Random) -> pa.Array:
    kind, cell = draw.choice(TYPES), value(draw)
    if pa.types.is_map(kind):  # pyarrow ends the process on a list with None
        return pa.array([[(repr(cell), draw.choice((0, -1, None)))]] * rows, kind)
    for content in (cell, str(cell).encode("utf-8", "replace").decode()):
        with suppress(pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
            return pa.array([content] * rows, type=kind)
    return pa.nulls(rows, kind)


# ------------------------------------------------------------------------------------- kinds of files
def _link(target: str):
    return lambda path: path.symlink_to(target)


def _tebibyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


KINDS = {
    "absent": lambda path: None,
    "empty": Path.touch,
    "folder": Path.mkdir,
    "fifo": os.mkfifo,
    "endless": _link("/dev/zero"),
    "random": _link("/dev/urandom"),
    "terminal": _link("/dev/full"),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": _link("nowhere"),
    "process": _link("/proc/self/environ"),
    "tebibyte": _tebibyte,
}


def remove(path: Path) -> None:
    """Remove whatever kind of file that is."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
