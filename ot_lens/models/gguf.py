"""GGUF files: found, checked, and given to transformers apart from whatever lies in the same folder."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import RLock

from ot_lens.errors import ModelError
from ot_lens.models.files import held_file
from ot_lens.models.reversible import Reversible

SUFFIX = ".gguf"
MAGIC = b"GGUF"
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_REPEATED = ("GGUFReader", "get_tensor_name_map")
_LOCK = RLock()  # on what the `with` block below replaces


def gguf_path(name: str, gguf_file: str | None, revision: str | None) -> Path | None:
    """The GGUF file that a name means, alone or with `gguf_file`; None for other formats.

    Raises:
        ModelError: If there is no such file, it is not complete, or the reader is not installed.
    """
    if gguf_file is None:
        if not name.lower().endswith(SUFFIX):
            return None
        path = Path(name)
    else:
        found = held_file(name, gguf_file, revision)
        path = Path(found) if found is not None else Path(name) / gguf_file
    if not path.is_file():
        raise ModelError(f"No GGUF file {str(path)!r}: check the path, or that the hub can be reached.")
    split = _SPLIT.search(path.name)
    if split and int(split[1]) > 1:
        raise ModelError(
            f"{path.name} is one of {int(split[1])} parts of a GGUF file: merge them first with "
            "'llama-gguf-split --merge FIRST_PART WHOLE.gguf'."
        )
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{path} is not a GGUF file: fetch or copy it again.")
    if find_spec("gguf") is None:
        raise ModelError(f"Reading {path.name} needs gguf: pip install 'ot-lens[gguf]'.")
    return path.absolute()


def gguf_record(path: Path) -> dict[str, str]:
    """Name and SHA-256 of the file."""
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def parsed_once() -> Iterator[None]:
    """Parse a GGUF file once: transformers does so four times, and maps its names anew for every module."""
    library = import_module("gguf")

    def replace(changes: Reversible[None]) -> None:
        for name in _REPEATED:
            own = getattr(library, name)
            remembering = lru_cache(maxsize=1)(own)
            changes.change(partial(setattr, library, name, own), partial(setattr, library, name, remembering))

    with _LOCK, Reversible(replace):
        yield
