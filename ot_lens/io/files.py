"""Files that are complete or absent (written to a temporary name, flushed, renamed), and locked folders."""

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
MAX_JSON_BYTES = 32 * MIB  # an index of five million prompts
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.\w+)?")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a CannotWriteError that names `path`."""
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in DISK_FULL else "check the disk and the permissions"
        raise CannotWriteError(f"Cannot write {path}: {error.strerror or error}; {remedy}.") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; on success it is flushed to disk and renamed to `path`.

    On any failure the temporary file is removed and the previous content of `path` is untouched.
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
    # A folder that has become read-only must not hide the error being raised.
    with suppress(OSError):
        path.unlink()


def temporaries(folder: Path) -> list[Path]:
    """Temporary files of `atomic_path`: of a process that was killed, or still being written."""
    return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]


def remove_temporaries(folder: Path) -> None:
    """Remove the leftovers of killed writers; only the holder of the folder's lock may (see `locked`)."""
    for path in temporaries(folder):
        with writing(path):
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, created if needed, against other processes; the lock ends with the process."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    with ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout as error:
                raise RunFolderError(
                    f"{folder} is in use by another process: wait for it to end, or choose another folder."
                ) from error
            # Removed while still held: a process waiting for a lock file that is gone creates a new one.
            stack.callback(_remove, folder / LOCK)
        yield


def release(folder: Path) -> None:
    """Remove the lock file of a process that was killed while releasing the folder."""
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
    """Read a JSON file of a run, or raise a RunFolderError."""
    try:
        content = read_bounded(path, MAX_JSON_BYTES, RunFolderError)
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is missing: the folder is not a run, or it is incomplete.") from error
    try:
        return from_json(content, allow_inf_nan=True)  # Python writes NaN and Infinity, which JSON lacks
    except ValueError as error:
        raise RunFolderError(
            f"{path} is not valid JSON ({error}): restore it or start in a new folder."
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
