"""Hostile files: mutated bytes, altered structures, odd kinds of files. Equal seeds make equal cases."""

import copy
import json
import math
import operator
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from pathlib import Path

from hypothesis import strategies as st

# Numbers at the edges of what lengths and offsets are kept in.
EDGES = [0, 1, -1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
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
    """A few mutations of a valid file's bytes."""
    result = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(result) + 1)
        length = min(draw.choice((1, 2, 4, 8, 40, 400)), len(result) - at)
        draw.choice(MUTATIONS)(result, at, length, others, draw)
    return bytes(result)


def _turn_a_bit(content, at, length, others, draw):
    if length:
        content[at] ^= 1 << draw.randrange(8)


def _overwrite(content, at, length, others, draw):
    content[at : at + length] = draw.randbytes(length)


def _cut_off(content, at, length, others, draw):
    del content[at:]


def _remove(content, at, length, others, draw):
    del content[at : at + length]


def _repeat(content, at, length, others, draw):
    content[at:at] = content[at : at + length] * draw.choice((1, 2, 50))


def _insert_or_replace(content, at, length, others, draw):
    content[at : at + draw.choice((0, length))] = draw.choice(TOKENS)


def _put_an_edge(content, at, length, others, draw):
    size = draw.choice((1, 2, 4, 8))
    edge = draw.choice(EDGES) % 2 ** (8 * size)
    content[at : at + size] = edge.to_bytes(size, draw.choice(("little", "big")))


def _splice(content, at, length, others, draw):
    other = draw.choice(others)
    start = draw.randrange(len(other) + 1)
    content[at : at + length] = other[start : start + draw.choice((8, 60, 1000))]


# Tokens twice, since they are the most likely to reach a parser.
MUTATIONS = (_turn_a_bit, _overwrite, _cut_off, _remove, _repeat, _put_an_edge, _splice) + (
    _insert_or_replace,
) * 2


# ------------------------------------------------------------------------------------------- structures
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [*EDGES, 10**40, -(10**400), 0.0, -0.0, 1e308, math.inf, -math.inf, math.nan, 1e-320, 2.5]
    ),
    st.sampled_from(TEXTS),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(TEXTS) | st.text(max_size=8), inner, max_size=4),
    ),
    max_leaves=8,
)


def paths(document: object, path: tuple = ()) -> Iterator[tuple]:
    """Where the parts of a document are, the document itself first."""
    yield path
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from paths(value, (*path, key))


def altered(document: object) -> st.SearchStrategy:
    """A document with one to four of its parts replaced, removed, renamed, doubled or added to."""
    places = [path for path in paths(document) if path]

    @st.composite
    def make(draw):
        result = copy.deepcopy(document)
        for _ in range(draw(st.integers(1, 4))):
            if not places:
                return draw(values)
            with suppress(LookupError, TypeError):  # an earlier alteration removed the place
                _alter(result, draw(st.sampled_from(places)), draw)
        return result

    return st.one_of(*[make()] * 9, values)


def _alter(document, path, draw) -> None:
    *above, last = path
    part = reduce(operator.getitem, above, document)
    kind = draw(st.integers(0, 4))
    if kind == 0:
        del part[last]
    elif kind == 1 and isinstance(part, dict):
        part[draw(st.sampled_from(TEXTS))] = part.pop(last)
    elif kind == 2 and isinstance(part, list):
        part.append(copy.deepcopy(part[last]))
    elif kind == 3 and isinstance(part, dict):
        part[draw(st.text(max_size=6))] = draw(values)
    else:
        part[last] = draw(values)


def as_json(document: object) -> bytes:
    """JSON with whatever Python writes that is none: NaN, half surrogate pairs as escapes."""
    return json.dumps(document).encode()


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
