"""Reading files of unknown origin: regular files of bounded size, JSON and YAML as plain data."""

import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
MAX_DIGITS = 256
INTEGER = "tag:yaml.org,2002:int"

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


def check_size(path: Path, limit: int, error: type[OtLensError]) -> int:
    """Size in bytes of a regular file of at most `limit` bytes; a pipe or a device might never end.

    Raises:
        FileNotFoundError: If there is no such file.
        OtLensError: Of the kind `error`, if it is not a regular file, too large or cannot be reached.
    """
    with _reading(path, error, "check the path"):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise error(f"{path} is {kind}: give a file.")
    if status.st_size > limit:
        raise error(
            f"{path} has {status.st_size / MIB:,.0f} MiB, but at most {limit / MIB:,.5g} MiB are read: "
            "is it the right file?"
        )
    return status.st_size


def read_bounded(path: Path, limit: int, error: type[OtLensError]) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; raises like `check_size`."""
    check_size(path, limit, error)
    with _reading(path, error, "check its permissions"), path.open("rb") as file:
        content = file.read(limit + 1)  # files in /proc report a size of 0
    if len(content) > limit:
        raise error(f"{path} does not end within {limit / MIB:,.5g} MiB: is it the right file?")
    return content


@contextmanager
def _reading(path: Path, error: type[OtLensError], remedy: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as cause:  # a loop of links; a name that no file system accepts
        reason = getattr(cause, "strerror", None) or cause
        raise error(f"{quoted(str(path))} cannot be read ({reason}): {remedy}.") from cause


def read_text(path: Path, limit: int, error: type[OtLensError], *, missing: str = "check the path") -> str:
    """The text of a UTF-8 file of at most `limit` bytes; `missing` is the remedy if there is no file."""
    try:
        return read_bounded(path, limit, error).decode("utf-8-sig")
    except FileNotFoundError as cause:
        raise error(f"There is no file {quoted(str(path))}: {missing}.") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8 text ({cause.reason} at byte {cause.start}).") from cause


def parse_json(text: str | bytes, name: str, error: type[OtLensError]) -> Any:
    """JSON as plain data, with bounded nesting and numbers; no NaN and no half surrogate pairs."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as cause:
        raise error(f"{name}: Invalid JSON: {cause}.") from cause


def parse_yaml(text: str, name: str, error: type[OtLensError]) -> Any:
    """YAML as plain data, without aliases, control characters and huge numbers; tags create no objects."""
    if len(text) > MAX_YAML:
        raise error(f"{name} is longer than the {MAX_YAML // 1024} KiB of YAML that are read.")
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    # PyYAML also lets through: invalid dates, numbers with too many digits, numbers that overflow.
    except (yaml.YAMLError, ValueError, OverflowError) as cause:
        raise error(f"{name} is not readable YAML: {abbreviated(cause)}") from cause


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

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if control := CONTROL.search(value):
            raise ValueError(f"control character U+{ord(control[0]):04X} in {quoted(value)}: remove it")
        if node.tag == INTEGER and len(value) > MAX_DIGITS:
            raise ValueError(f"a whole number of more than {MAX_DIGITS} digits does not fit any field")
        return value
