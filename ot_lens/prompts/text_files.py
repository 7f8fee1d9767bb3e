"""Bytes of a prompt file, decoded; every way in which that fails has its line."""

import codecs
import hashlib
from os.path import isdir  # unlike Path.is_dir it takes names that no file system takes
from pathlib import Path

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import MIB, read_bounded

# The largest public sets have a tenth of it.
MOST = 1024 * MIB
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        PromptError: If it is missing, no regular file, unreadable, or larger than a prompt set can be.
    """
    if isdir(path):
        raise PromptError(f"{path} is a folder: name a file in it, or a dataset folder as 'hf:{path}'.")
    try:
        return read_bounded(path, MOST, PromptError)
    except FileNotFoundError as error:
        raise PromptError(f"no file {str(path)!r}: check the path.") from error


def decode(content: bytes, name: str) -> str:
    """Text of a file in UTF-8, or in UTF-16 with a byte order mark; the mark itself is left out.

    Raises:
        PromptError: If a byte does not fit; the message names its line.
    """
    encoding = "utf-16" if content.startswith(_UTF16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise PromptError(
                f"{name}: not UTF-8, and not whole UTF-16 either ({error.reason} at byte {error.start}): "
                "save it as UTF-8."
            ) from error
        # The decoder of "utf-8-sig" counts from behind the mark.
        start = error.start + (len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0)
        line = content.count(b"\n", 0, start) + 1
        found = content[start : start + 1]
        raise PromptError(
            f"{name}: line {line}, byte {start}: not UTF-8 text (byte 0x{found.hex().upper()}, which in "
            f"Latin-1 is {found.decode('latin-1')!r}): save the whole file as UTF-8."
        ) from error


def sha256(content: bytes) -> str:
    """SHA-256 of the bytes."""
    return hashlib.sha256(content).hexdigest()
