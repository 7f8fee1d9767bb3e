"""Writing activations to disk: safetensors shards, resumable, one process at a time."""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxtyping import Float
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
from ot_lens.activations.key import differences
from ot_lens.activations.shards import CapturePlan, Shard
from ot_lens.activations.stored import TENSOR, open_stored, shard_path
from ot_lens.errors import RunFolderError
from ot_lens.io.files import LOCK, locked, remove_temporaries, sha256_file, temporaries, write_bytes


class ActivationStore:
    """A folder of shards, open for writing inside a `with` block.

    An interrupted capture resumes, and a torn or altered shard is detected by its checksum. The bytes of the
    finished folder depend on the plan only, not on interruptions.
    """

    def __init__(self, folder: str | Path, plan: CapturePlan) -> None:
        self.folder = Path(folder)
        self.plan = plan
        self._sums: dict[str, str] = {}
        self._complete: set[str] = set()
        self._lock = ExitStack()

    def __enter__(self) -> "ActivationStore":
        """Lock the folder and read its state.

        Raises:
            RunFolderError: If another process has locked it, it holds other files, or cannot be written.
        """
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
        """Write one shard, then its checksum.

        Raises:
            RunFolderError: If the folder cannot be written; finished shards are kept.
        """
        content = save({TENSOR: values.contiguous()})
        checksum = hashlib.sha256(content).hexdigest()
        write_bytes(shard_path(self.folder, shard.name), content)
        if self._sums.get(shard.name) != checksum:
            add_checksum(self.folder, shard.name, checksum)
        self._sums[shard.name] = checksum
        self._complete.add(shard.name)

    def finish(self) -> Activations:
        """Sort the checksums, and open the activations.

        Raises:
            RunFolderError: If shards are missing.
        """
        missing = self.missing()
        if missing:
            raise RunFolderError(f"{self.folder} lacks {len(missing)} shards: write them before finishing.")
        write_checksums(self.folder, self._sums, self._order)
        return open_stored(self.folder, self._index, self._sums, verified=self._complete)

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
