"""A store of activations on disk: safetensors shards, resumable, written by one process at a time."""

import hashlib
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor

from ot_lens.activations.data import Activations
from ot_lens.activations.index import (
    INDEX,
    Index,
    ShardEntry,
    add_checksum,
    read_checksums,
    read_index,
    write_checksums,
    write_index,
)
from ot_lens.activations.plan import CapturePlan, Shard, differences
from ot_lens.activations.stored import TENSOR, StoredActivations, shard_path
from ot_lens.errors import RunFolderError
from ot_lens.io.files import LOCK, locked, remove_temporaries, sha256_file, temporaries, write_bytes


class ActivationStore:
    """A folder of shards, open for writing inside a `with` block."""

    def __init__(self, folder: str | Path, plan: CapturePlan) -> None:
        self.folder = Path(folder)
        self.plan = plan
        self._sums: dict[str, str] = {}
        self._complete: set[str] = set()
        self._lock = ExitStack()

    def __enter__(self) -> "ActivationStore":
        """Lock the folder and read its state."""
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder))
            self._claim()
            remove_temporaries(self.folder)
            self._sums, sound = read_checksums(self.folder)
            if not sound:
                write_checksums(self.folder, self._sums, self._order)
            self._complete = {shard.name for shard in self.plan.shards if self._is_complete(shard.name)}
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock the folder."""
        self._lock.close()

    def missing(self) -> list[Shard]:
        """Shards of the plan that are missing or damaged, in its order."""
        return [shard for shard in self.plan.shards if shard.name not in self._complete]

    def write(self, shard: Shard, values: Float[Tensor, "layer batch position d"]) -> None:
        """Write one shard, then its checksum."""
        content = save({TENSOR: values.contiguous()})
        checksum = hashlib.sha256(content).hexdigest()
        write_bytes(shard_path(self.folder, shard.name), content)
        if self._sums.get(shard.name) != checksum:
            add_checksum(self.folder, shard.name, checksum)
        self._sums[shard.name] = checksum
        self._complete.add(shard.name)

    def finish(self) -> Activations:
        """Sort the checksums, and open the activations."""
        missing = self.missing()
        if missing:
            raise RunFolderError(f"{self.folder} lacks {len(missing)} shards: write them before finishing.")
        write_checksums(self.folder, self._sums, self._order)
        return _open(self.folder, self._index, self._sums, verified=self._complete)

    @property
    def _order(self) -> list[str]:
        return [shard.name for shard in self.plan.shards]

    @property
    def _index(self) -> Index:
        entries = {s.name: ShardEntry(label=s.label, indices=list(s.indices)) for s in self.plan.shards}
        return Index(key=dict(self.plan.key), shards=entries)

    def _is_complete(self, name: str) -> bool:
        path = shard_path(self.folder, name)
        return name in self._sums and path.is_file() and sha256_file(path) == self._sums[name]

    def _claim(self) -> None:
        """Check that the folder is of this capture, or write its index."""
        if (self.folder / INDEX).exists():
            _check_same(self.folder, read_index(self.folder), self._index)
            return
        known = {self.folder / LOCK, *temporaries(self.folder)}
        foreign = sorted(path.name for path in self.folder.iterdir() if path not in known)
        if foreign:
            raise RunFolderError(
                f"{self.folder} holds other files ({foreign[0]}) but no {INDEX}: choose another folder."
            )
        write_index(self.folder, self._index)


def load_activations(folder: str | Path) -> Activations:
    """Activations from a folder that `capture(..., store=folder)` filled.

    Only the index is read now: a layer is read on access, and each shard is checked against its checksum when
    it is first read.

    Raises:
        RunFolderError: If the folder holds no activations or an unfinished capture, or a shard is missing or
            altered; the last also later, when the shard is read.
    """
    folder = Path(folder)
    index = read_index(folder)
    sums, _ = read_checksums(folder)
    if any(name not in sums for name in index.shards):
        raise RunFolderError(f"{folder} holds an unfinished capture: capture into it again to continue.")
    return _open(folder, index, sums)


def _open(
    folder: Path, index: Index, sums: Mapping[str, str], *, verified: Collection[str] = ()
) -> Activations:
    """Activations of a finished store; the checksums of `verified` shards are not checked again."""
    try:
        axes = _Axes.model_validate(index.key)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise RunFolderError(
            f"{folder}: the index has no valid {name} ({first['msg']}): capture into a new folder."
        ) from error
    sizes = len(axes.layers), len(axes.positions), axes.d_model
    stored = StoredActivations(folder, index, sums, sizes, verified)
    return Activations(stored, axes.layers, axes.positions, axes.hook, index.key)


class _Axes(BaseModel):
    """The axes of a store, from its key."""

    model_config = ConfigDict(strict=True)
    layers: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    positions: Annotated[
        tuple[int | Literal["mean", "first", "thought_end"], ...], Field(min_length=1, strict=False)
    ]
    hook: str
    d_model: int = Field(ge=1)


def _check_same(folder: Path, stored: Index, ours: Index) -> None:
    different = differences(ours.key, stored.key)
    if different:
        values = "; ".join(_entry(name, stored.key) for name in different)
        raise RunFolderError(
            f"{folder} holds another capture, which differs in {values}: choose another folder."
        )
    if ours.shards != stored.shards:
        raise RunFolderError(
            f"{folder} holds the same capture in other batches: choose another folder, or use the version of "
            "ot_lens that wrote it."
        )


def _entry(name: str, key: dict[str, Any]) -> str:
    text = str(key.get(name, "none"))
    return f"{name} = {text if len(text) <= 40 else text[:37] + '...'}"
