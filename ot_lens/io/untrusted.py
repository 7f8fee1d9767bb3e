"""The way in for files of unknown origin: regular files of a bounded size, JSON and YAML as plain data."""

import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from pydantic_core import from_json

from ot_lens.errors import OtLensError

MIB = 2**20
# PyYAML takes seconds for this much; no configuration comes near.
MOST_YAML = MIB // 8
# Half of the control characters and the halves of surrogate pairs, which no file or terminal takes.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
DEEPEST = 60
LISTED = 600
REASON = 300
_BITS = 1024

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 3


def quoted(value: object) -> str:
    """A value in a message, cut short: it may be as large as the file it came from."""
    return _SHORT.repr(value)


def listed(names: Iterable[str]) -> str:
    """Names in a message, cut short likewise."""
    text = ", ".join(map(str, names))
    return text if len(text) <= LISTED else f"{text[:LISTED]} ..."


def abbreviated(error: BaseException) -> str:
    """What another library complains of, in one line, cut short: it may quote the file."""
    text = " ".join(str(error).split())
    return (text if len(text) <= REASON else f"{text[:REASON]} ...") or type(error).__name__


def regular_size(path: Path, error: type[OtLensError]) -> int:
    """Bytes of a regular file; a pipe, a device or a folder would never end or cannot be read.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        OtLensError: Of the kind `error`, if it is no regular file or cannot be reached.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as cause:  # a loop of links; a name that no file system takes
        raise error(f"{quoted(str(path))} cannot be read ({_reason(cause)}): check the path.") from cause
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise error(f"{path} is {kind}: name a file.")
    return found.st_size


def check_size(path: Path, most: int, error: type[OtLensError]) -> int:
    """Bytes of a regular file that is not larger than its kind can be; see `regular_size`.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        OtLensError: Of the kind `error`, if it is no regular file, or larger than `most` bytes.
    """
    size = regular_size(path, error)
    if size > most:
        raise error(
            f"{path} has {size / MIB:,.0f} MiB, more than the {most / MIB:,.5g} MiB that are read: "
            "is it the right file?"
        )
    return size


def read_bounded(path: Path, most: int, error: type[OtLensError]) -> bytes:
    """The bytes of a regular file of at most `most` bytes.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        OtLensError: Of the kind `error`, if it is something else than such a file.
    """
    check_size(path, most, error)
    try:
        with path.open("rb") as file:
            # One more than allowed: files of /proc say that they are empty.
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as cause:
        raise error(f"{path} cannot be read ({_reason(cause)}): check its permissions.") from cause
    if len(content) > most:
        raise error(f"{path} does not end within {most / MIB:,.5g} MiB: is it the right file?")
    return content


def _reason(cause: Exception) -> str:
    return str(getattr(cause, "strerror", None) or cause)


def parse_json(text: str | bytes, name: str, error: type[OtLensError]) -> Any:
    """JSON as plain data: nesting and the digits of a number are bounded, half surrogate pairs are refused.

    Args:
        text: The document.
        name: What it is, for messages.
        error: Kind of error.

    Raises:
        OtLensError: Of the kind `error`, if it is no such document.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as cause:
        raise error(f"{name}: Invalid JSON: {cause}. Correct it there.") from cause


def parse_yaml(text: str, name: str, error: type[OtLensError]) -> Any:
    """YAML as plain data: no tag makes an object, and no alias makes much out of little.

    Raises:
        OtLensError: Of the kind `error`, if it is not YAML, or holds an alias, deep nesting, a control
            character or a number beyond all bounds.
    """
    if len(text) > MOST_YAML:
        raise error(f"{name} holds more than the {MOST_YAML // 1024} KiB of YAML that are read.")
    try:
        found = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    # Beside its own errors: a date that is none, a number of too many digits, one that overflows.
    except (yaml.YAMLError, ValueError, OverflowError) as cause:
        raise error(f"{name} is not readable YAML: {abbreviated(cause)}") from cause
    _check_scalars(found, name, error)
    return found


class _PlainLoader(yaml.SafeLoader):
    """A SafeLoader without aliases, which make much out of little, and with bounded nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias: write out what it stands for")
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _check_scalars(content: Any, name: str, error: type[OtLensError]) -> None:
    for value in _scalars(content):
        if isinstance(value, str) and (found := CONTROL.search(value)):
            raise error(f"{name}: control character U+{ord(found[0]):04X} in {quoted(value)}: remove it.")
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise error(f"{name}: a whole number of more than {_BITS} bits: no field takes it.")


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
