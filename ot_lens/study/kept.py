"""Pieces of work on the model whose results stay in the run folder: a resumed run goes on after them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ot_lens.execution import Executor
from ot_lens.study.folder import RunFolder
from ot_lens.transport import AffineMap

T = TypeVar("T")


class KeptPieces:
    """Computes pieces on an executor, each once in the life of a run; see `ot_lens.localization.Compute`.

    A result is a map or a list of numbers. What is handed on has been read from the folder, whether or not it
    was computed just now: it does not depend on where a run was stopped.
    """

    def __init__(self, folder: RunFolder, executor: Executor, parts: str) -> None:
        """Choose where pieces are kept.

        Args:
            folder: The run folder.
            executor: Where the model is.
            parts: Folder of the results, below tables/.
        """
        self._folder, self._executor, self._parts = folder, executor, parts

    def __call__(
        self, function: Callable[..., T], pieces: Mapping[str, Any], *arguments: Any
    ) -> dict[str, T]:
        """function(model, *arguments, piece) of every piece, by name."""
        left = [(name, piece) for name, piece in pieces.items() if not self._has(name)]
        if left:
            for name, result in self._executor.stream(_named, left, function, arguments):
                self._write(name, result)
        return {name: self._read(name) for name in pieces}

    def _table(self, name: str) -> str:
        return part_table(self._parts, name)

    def _map(self, name: str) -> Path:
        return self._folder.path / "tables" / f"{self._table(name)}.safetensors"

    def _has(self, name: str) -> bool:
        return self._map(name).is_file() or self._folder.has_table(self._table(name))

    def _write(self, name: str, result: Any) -> None:
        if isinstance(result, AffineMap):
            result.save(self._map(name))
        else:
            self._folder.write_table(self._table(name), pd.DataFrame({"result": result}))

    def _read(self, name: str) -> Any:
        if self._map(name).is_file():
            return AffineMap.load(self._map(name))
        return self._folder.read_table(self._table(name))["result"].tolist()


def part_table(parts: str, name: str) -> str:
    """The table, below a folder of parts, of what is known by a name that no file could have."""
    return f"{parts}/{hashlib.sha256(name.encode()).hexdigest()[:20]}"


def _named(
    model: Any, function: Callable[..., T], arguments: Sequence[Any], pieces: Sequence[tuple[str, Any]]
) -> Iterator[tuple[str, T]]:
    for name, piece in pieces:
        yield name, function(model, *arguments, piece)
