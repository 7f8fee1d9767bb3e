"""Writing activations to disk: safetensors shards, resumed where they stood, one process at a time."""

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

    A stopped capture goes on where it stood, and a torn or altered shard is found by its checksum. What the
    finished folder holds depends on the plan alone, byte by byte, and not on what happened on the way.
    """

    def __init__(self, folder: str | Path, plan: CapturePlan) -> None:
        self.folder = Path(folder)
        self.plan = plan
        self._sums: dict[str, str] = {}
        self._whole: set[str] = set()
        self._held = ExitStack()

    def __enter__(self) -> "ActivationStore":
        """Hold the folder and read what is there.

        Raises:
            RunFolderError: If another process holds it, it holds anything else, or cannot be written.
        """
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder))
            self._claim()
            remove_temporaries(self.folder)
            self._sums, sound = read_checksums(self.folder)
            if not sound:
                write_checksums(self.folder, self._sums, self._order)
            self._whole = {shard.name for shard in self.plan.shards if self._is_whole(shard.name)}
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go."""
        self._held.close()

    def missing(self) -> list[Shard]:
        """Shards of the plan that are not there or not whole, in its order."""
        return [shard for shard in self.plan.shards if shard.name not in self._whole]

    def write(self, shard: Shard, values: Float[Tensor, "layer batch position d"]) -> None:
        """Write one shard, then the checksum that vouches for it.

        Raises:
            RunFolderError: If the folder cannot be written; finished shards stay.
        """
        content = save({TENSOR: values.contiguous()})
        checksum = hashlib.sha256(content).hexdigest()
        write_bytes(shard_path(self.folder, shard.name), content)
        if self._sums.get(shard.name) != checksum:
            add_checksum(self.folder, shard.name, checksum)
        self._sums[shard.name] = checksum
        self._whole.add(shard.name)

    def finish(self) -> Activations:
        """Put the checksums in order, and open the activations.

        Raises:
            RunFolderError: If shards are missing.
        """
        left = self.missing()
        if left:
            raise RunFolderError(f"{self.folder} lacks {len(left)} shards: write them before it is finished.")
        write_checksums(self.folder, self._sums, self._order)
        return open_stored(self.folder, self._index, self._sums, whole=self._whole)

    @property
    def _order(self) -> list[str]:
        return [shard.name for shard in self.plan.shards]

    @property
    def _index(self) -> Index:
        entries = {s.name: ShardEntry(label=s.label, indices=list(s.indices)) for s in self.plan.shards}
        return Index(key=dict(self.plan.key), shards=entries)

    def _is_whole(self, name: str) -> bool:
        path = shard_path(self.folder, name)
        return name in self._sums and path.is_file() and sha256_file(path) == self._sums[name]

    def _claim(self) -> None:
        """Check that the folder is ours, or make it so."""
        if (self.folder / INDEX).exists():
            _check_same(self.folder, read_index(self.folder), self._index)
            return
        known = {self.folder / LOCK, *temporaries(self.folder)}
        foreign = sorted(path.name for path in self.folder.iterdir() if path not in known)
        if foreign:
            raise RunFolderError(
                f"{self.folder} holds other files ({foreign[0]}) and no {INDEX}: choose another folder."
            )
        write_index(self.folder, self._index)


def _check_same(folder: Path, found: Index, ours: Index) -> None:
    different = differences(ours.key, found.key)
    if different:
        theirs = "; ".join(_told(name, found.key) for name in different)
        raise RunFolderError(
            f"{folder} holds activations of another capture ({', '.join(different)} differs; there "
            f"{theirs}): choose another folder."
        )
    if ours.shards != found.shards:
        raise RunFolderError(
            f"{folder} holds the same capture in other batches: choose another folder, or use the ot_lens "
            "that wrote it."
        )


def _told(name: str, key: dict[str, Any]) -> str:
    text = str(key.get(name, "none"))
    return f"{name} = {text if len(text) <= 40 else text[:37] + '...'}"
