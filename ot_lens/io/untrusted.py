"""Reading files of unknown origin: regular files of bounded size, JSON and YAML as plain data."""

import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import from_json

from ot_lens.errors import OtLensError

MIB = 2**20
MAX_YAML = MIB // 8  # characters; PyYAML takes seconds for as many, and no configuration comes near
# Control characters except tab and line breaks, and halves of surrogate pairs.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
MAX_DEPTH = 60
MAX_LISTED = 600
MAX_REASON = 300
MAX_BITS = 1024

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 80
_REPR.maxlevel = 3


def quoted(value: object) -> str:
    """A value for a message, truncated: it may be as large as the file it came from."""
    return _REPR.repr(value)


def listed(names: Iterable[str]) -> str:
    """Names for a message, separated by commas and truncated."""
    text = ", ".join(map(str, names))
    return text if len(text) <= MAX_LISTED else f"{text[:MAX_LISTED]} ..."


def abbreviated(error: BaseException) -> str:
    """The message of another library's error on one line, truncated: it may quote the file."""
    text = " ".join(str(error).split())
    return (text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ...") or type(error).__name__


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Location ("splits.train.0"; "" for the whole document) and message of the first validation error."""
    first = error.errors()[0]
    return listed([".".join(str(key)[:MAX_LISTED] for key in first["loc"])]), first["msg"]


def regular_size(path: Path, error: type[OtLensError]) -> int:
    """Size in bytes of a regular file; a pipe or a device might never end.

    Raises:
        FileNotFoundError: If there is no such file.
        OtLensError: Of the kind `error`, if it is not a regular file or cannot be reached.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as cause:  # a loop of links; a name that no file system accepts
        raise error(f"{quoted(str(path))} cannot be read ({_reason(cause)}): check the path.") from cause
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise error(f"{path} is {kind}: give a file.")
    return status.st_size


def check_size(path: Path, limit: int, error: type[OtLensError]) -> int:
    """Size in bytes of a regular file of at most `limit` bytes; raises like `regular_size`."""
    size = regular_size(path, error)
    if size > limit:
        raise error(
            f"{path} has {size / MIB:,.0f} MiB, but at most {limit / MIB:,.5g} MiB are read: "
            "is it the right file?"
        )
    return size


def read_bounded(path: Path, limit: int, error: type[OtLensError]) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; raises like `regular_size`."""
    check_size(path, limit, error)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)  # files in /proc report a size of 0
    except FileNotFoundError:
        raise
    except OSError as cause:
        raise error(f"{path} cannot be read ({_reason(cause)}): check its permissions.") from cause
    if len(content) > limit:
        raise error(f"{path} does not end within {limit / MIB:,.5g} MiB: is it the right file?")
    return content


def read_text(path: Path, limit: int, error: type[OtLensError], *, missing: str = "check the path") -> str:
    """The text of a UTF-8 file of at most `limit` bytes; `missing` is the remedy if there is no file.

    Raises:
        OtLensError: Of the kind `error`, if it is missing, not a regular file, too large or not UTF-8.
    """
    try:
        return read_bounded(path, limit, error).decode("utf-8-sig")
    except FileNotFoundError as cause:
        raise error(f"There is no file {quoted(str(path))}: {missing}.") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8 text ({cause.reason} at byte {cause.start}).") from cause


def _reason(cause: Exception) -> str:
    return str(getattr(cause, "strerror", None) or cause)


def parse_json(text: str | bytes, name: str, error: type[OtLensError]) -> Any:
    """JSON as plain data, with bounded nesting and numbers; no NaN and no half surrogate pairs.

    Raises:
        OtLensError: Of the kind `error`, if the document `name` is not valid.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as cause:
        raise error(f"{name}: Invalid JSON: {cause}.") from cause


def parse_yaml(text: str, name: str, error: type[OtLensError]) -> Any:
    """YAML as plain data: tags create no objects, and aliases, which can expand without bound, are refused.

    Raises:
        OtLensError: Of the kind `error`, if it is not YAML, too long or too deep, or holds an alias, a
            control character or a huge number.
    """
    if len(text) > MAX_YAML:
        raise error(f"{name} is longer than the {MAX_YAML // 1024} KiB of YAML that are read.")
    try:
        content = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    # PyYAML also lets through: invalid dates, numbers with too many digits, numbers that overflow.
    except (yaml.YAMLError, ValueError, OverflowError) as cause:
        raise error(f"{name} is not readable YAML: {abbreviated(cause)}") from cause
    _check_scalars(content, name, error)
    return content


class _PlainLoader(yaml.SafeLoader):
    """A SafeLoader without aliases and with bounded nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias: write out what it refers to")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _check_scalars(content: Any, name: str, error: type[OtLensError]) -> None:
    for value in _scalars(content):
        if isinstance(value, str) and (control := CONTROL.search(value)):
            raise error(f"{name}: control character U+{ord(control[0]):04X} in {quoted(value)}: remove it.")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise error(f"{name}: a whole number of more than {MAX_BITS} bits does not fit any field.")


def _scalars(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from _scalars(value)
    elif isinstance(content, list | tuple | set):
        for value in content:
            yield from _scalars(value)
    else:
        yield content
