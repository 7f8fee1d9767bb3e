"""Reading activations from disk: shards are memory-mapped, and only what is needed is read."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ot_lens.activations.index import Index, ShardEntry
from ot_lens.errors import RunFolderError
from ot_lens.io.files import sha256_file
from ot_lens.io.untrusted import MIB
from ot_lens.prompts import CLASSES

Shape = tuple[int, int, int, int]
TENSOR = "activations"
MOST_SHARD = 64 * 1024 * MIB
# Under the names of safetensors.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def shard_path(folder: Path, name: str) -> Path:
    """The file of a shard."""
    return folder / f"{name}.safetensors"


class StoredActivations:
    """Both classes of a store, outside memory: a mapping as far as `dict` needs one."""

    def __init__(
        self,
        folder: Path,
        index: Index,
        sums: Mapping[str, str],
        sizes: tuple[int, int, int],
        verified: Collection[str],
    ) -> None:
        self.folder = folder
        self._sums = dict(sums)
        self._verified = set(verified)
        self._shards = {label: _shards_of(folder, index, label) for label in CLASSES}
        layers, positions, width = sizes
        self._shapes: dict[str, Shape] = {
            label: (layers, sum(len(entry.indices) for entry in shards.values()), positions, width)
            for label, shards in self._shards.items()
        }
        self.dtype = self._check_headers()

    def keys(self) -> tuple[str, ...]:
        """The classes."""
        return CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(CLASSES)

    def shape(self, label: str) -> Shape:
        """Layers, prompts, positions and width of a class."""
        return self._shapes[label]

    def size(self) -> int:
        """Bytes on disk."""
        names = [name for shards in self._shards.values() for name in shards]
        return sum(shard_path(self.folder, name).stat().st_size for name in names)

    def rows(self, label: str, layer: int, position: int) -> Float[Tensor, "n d"]:
        """Samples of a class in prompt order, at indices of its layer and position axes."""
        _, n, _, width = self._shapes[label]
        values = torch.empty(n, width, dtype=self.dtype)
        for name, entry in self._shards[label].items():
            with self._open(name) as shard:
                values[torch.tensor(entry.indices)] = shard[layer, :, position]
        return values

    def __getitem__(self, label: str) -> Float[Tensor, "layer n position d"]:
        """A whole class, read into memory."""
        values = torch.empty(self._shapes[label], dtype=self.dtype)
        for name, entry in self._shards[label].items():
            with self._open(name) as shard:
                values[:, torch.tensor(entry.indices)] = shard[:]
        return values

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        """The tensor of a shard, mapped; its checksum is verified the first time."""
        path = shard_path(self.folder, name)
        if name not in self._verified:
            if not path.is_file() or sha256_file(path) != self._sums[name]:
                raise _altered(path)
            self._verified.add(name)
        with _mapped(path) as shard:
            yield shard

    def _check_headers(self) -> torch.dtype:
        """Compare every shard's header with the index; returns their common dtype."""
        dtypes = set()
        for label, shards in self._shards.items():
            layers, _, positions, width = self._shapes[label]
            for name, entry in shards.items():
                path = shard_path(self.folder, name)
                with _mapped(path) as shard:
                    if shard.get_shape() != [layers, len(entry.indices), positions, width]:
                        raise _altered(path)
                    dtypes.add(shard.get_dtype())
        if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
            raise RunFolderError(
                f"The shards of {self.folder} hold {', '.join(sorted(dtypes))}: capture into a new folder."
            )
        return _DTYPES[dtypes.pop()]


@contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    # Opening a pipe would wait for its writer; a file far larger than a batch is not a shard.
    if not path.is_file() or path.stat().st_size > MOST_SHARD:
        raise _altered(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file.get_slice(TENSOR)
    except (SafetensorError, OSError) as error:
        raise _altered(path) from error


def _shards_of(folder: Path, index: Index, label: str) -> dict[str, ShardEntry]:
    """The shards of a class; together they must hold every prompt once."""
    shards = {name: entry for name, entry in index.shards.items() if entry.label == label}
    indices = sorted(i for entry in shards.values() for i in entry.indices)
    if not indices or indices != list(range(len(indices))):
        raise RunFolderError(
            f"{folder}: the index does not list every {label} prompt once: capture into a new folder."
        )
    return shards


def _altered(path: Path) -> RunFolderError:
    return RunFolderError(
        f"{path} is missing or altered: capture into this folder again, which redoes only that shard."
    )
