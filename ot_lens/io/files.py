"""Files that are whole or absent: write beside, flush to disk, rename; and folders that one process holds."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from ot_lens.errors import CannotWriteError, RunFolderError
from ot_lens.io.untrusted import MIB, read_bounded

LOCK = ".lock"
# An index of five million prompts has as much.
MOST_JSON = 32 * MIB
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.\w+)?")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the disk or the folder into one error that names `path`.

    Raises:
        CannotWriteError: If the block raises an OSError (read-only folder, full disk).
    """
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno in FULL else "check the disk and the folder's permissions"
        raise CannotWriteError(f"cannot write {path}: {error.strerror or error}; {remedy}.") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes the name.

    The temporary name keeps the suffix, since writers choose formats by it. On any failure it is removed
    and whatever stood at `path` is still there.

    Raises:
        CannotWriteError: If the folder cannot be written (read-only, full disk).
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with writing(path), ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.callback(_remove, temporary)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)


def _remove(path: Path) -> None:
    # A folder that has become read-only must not hide the error that is on its way.
    with suppress(OSError):
        path.unlink()


def temporaries(folder: Path) -> list[Path]:
    """Files that `atomic_path` left in a folder because its process was killed, or still writes."""
    return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]


def remove_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left behind. Only for who holds the folder (see `locked`).

    Raises:
        CannotWriteError: If the folder cannot be written.
    """
    for left in temporaries(folder):
        with writing(left):
            left.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, against other processes; the lock ends with the process that has it.

    Raises:
        RunFolderError: If another process holds the folder, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    with ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout as error:
                raise RunFolderError(
                    f"{folder} is in use by another process: let it end, or choose another folder."
                ) from error
            # While it is still held: whoever waits for a lock file that is gone makes a new one.
            stack.callback(_remove, folder / LOCK)
        yield


def release(folder: Path) -> None:
    """Remove the lock that a process left which was killed as it let the folder go."""
    if (folder / LOCK).exists():
        with suppress(RunFolderError), locked(folder):
            pass


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys sorted, so that equal content gives equal bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunFolderError: If it is missing, not JSON, or larger than such a file can be.
    """
    try:
        content = read_bounded(path, MOST_JSON, RunFolderError)
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is missing: the folder is not a run, or it is incomplete.") from error
    try:
        # NaN and Infinity, which are no JSON, are what Python writes.
        return from_json(content, allow_inf_nan=True)
    except ValueError as error:
        raise RunFolderError(
            f"{path} is not valid JSON ({error}): restore it or start in a new folder."
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
