"""The two small files of a store: an index written once, and checksums added as shards are finished.

index.json       the key of the capture, and which prompts each shard holds
shards.sha256    one line per finished shard, in the format of `sha256sum`
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, TypeAdapter, ValidationError

from ot_lens.errors import RunFolderError
from ot_lens.io.files import MAX_JSON_BYTES, read_json, write_json, write_text, writing
from ot_lens.io.untrusted import quoted, read_bounded

SCHEMA = 2
INDEX, CHECKSUMS = "index.json", "shards.sha256"
_LINE = re.compile(r"([0-9a-f]{64})  ([a-z]+-\d{5,})\.safetensors")

# No separator and no dot: a name cannot lead out of the folder.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z]+-\d{5,}$")]
Label = Annotated[str, StringConstraints(pattern=r"^(harmful|harmless)$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ShardEntry(_Strict):
    """Which prompts of a class a shard holds, in its order."""

    label: Label
    indices: Annotated[list[Annotated[int, Field(ge=0)]], FailFast(), Field(min_length=1)]


_ENTRY: TypeAdapter[tuple[str, ShardEntry]] = TypeAdapter(tuple[Name, ShardEntry])


class Index(_Strict):
    """What a store holds."""

    schema_version: Literal[2] = 2
    key: dict[str, Any]
    shards: dict[Name, ShardEntry] = Field(min_length=1)


def read_index(folder: Path) -> Index:
    """Read and check the index of a store."""
    content = read_json(folder / INDEX)
    if isinstance(content, dict) and content.get("schema_version", 1) != SCHEMA:
        raise RunFolderError(
            f"{folder / INDEX} does not have schema version {SCHEMA}: use the version of ot_lens that wrote "
            "it, or capture into a new folder."
        )
    try:
        _check_entries(content)
        return Index.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        location = quoted(".".join(map(str, first["loc"])))
        raise RunFolderError(
            f"{folder / INDEX} is damaged at {location} ({first['msg']}): restore it, or capture into a new "
            "folder."
        ) from error


def _check_entries(content: Any) -> None:
    """Check one shard after the other and stop at the first fault: a large file may have millions."""
    entries = content.get("shards") if isinstance(content, dict) else None
    for entry in entries.items() if isinstance(entries, dict) else ():
        _ENTRY.validate_python(entry)


def write_index(folder: Path, index: Index) -> None:
    """Write the index; equal content gives equal bytes."""
    write_json(folder / INDEX, index.model_dump(mode="json"))


def read_checksums(folder: Path) -> tuple[dict[str, str], bool]:
    """SHA-256 by shard name, and whether every line was complete."""
    try:
        content = read_bounded(folder / CHECKSUMS, MAX_JSON_BYTES, RunFolderError)
    except FileNotFoundError:
        return {}, True
    text = content.decode("ascii", errors="replace")
    *lines, rest = text.split("\n")
    matches = [_LINE.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in matches if match is not None}
    return sums, all(matches) and not rest


def write_checksums(folder: Path, sums: Mapping[str, str], order: Iterable[str]) -> None:
    """Rewrite the checksums in the order of the shards, unless the file is already the same."""
    text = "".join(_line(name, sums[name]) for name in order if name in sums)
    path = folder / CHECKSUMS
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def add_checksum(folder: Path, name: str, checksum: str) -> None:
    """Add a finished shard, at a cost independent of their number."""
    path = folder / CHECKSUMS
    with writing(path), open(path, "ab", buffering=0, opener=_open_no_link) as file:
        rest = _line(name, checksum).encode()
        while rest:  # the last block of a full disk takes part of a line
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _open_no_link(path: str, flags: int) -> int:
    """Open the file itself: through a link, the checksum would be appended to another file."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _line(name: str, checksum: str) -> str:
    return f"{checksum}  {name}.safetensors\n"
