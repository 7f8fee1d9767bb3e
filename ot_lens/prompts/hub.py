"""Hugging Face datasets by name, and single files by address, through the `datasets` library."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import abbreviated
from ot_lens.prompts.tables import Table, from_arrow

PREFIX = "hf:"
_COMMIT = re.compile(r"/([0-9a-f]{40})/")


@dataclass(frozen=True)
class DatasetName:
    """A dataset of the hub, or a local dataset folder: hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN]."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def text(self) -> str:
        """As the user writes it."""
        revision = f"@{self.revision}" if self.revision else ""
        return ":".join([f"{PREFIX}{self.name}{revision}", *(p for p in (self.config, self.split) if p)])


def parse_dataset(text: str, revision: str | None = None) -> DatasetName:
    """Parse hf:NAME[@REVISION][:CONFIG][:SPLIT]; one part after the name is the split.

    Raises:
        PromptError: If a part is empty or there are too many.
    """
    name, *parts = text.removeprefix(PREFIX).split(":")
    name, _, pinned = name.partition("@")
    if not name or not all(parts) or len(parts) > 2:
        raise PromptError(f"{text!r}: a dataset is hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN].")
    config, split = (None, parts[0]) if len(parts) == 1 else (parts or (None, None))
    return DatasetName(name, config, split, pinned or revision)


def read_dataset(wanted: DatasetName) -> tuple[Table, str | None]:
    """Read one split of a dataset.

    Returns:
        The table, and the revision that was read, where the hub states it.

    Raises:
        PromptError: If the hub cannot be reached, or has no such dataset, configuration or split.
    """
    import datasets

    found = _reached(
        wanted.text, lambda: datasets.load_dataset(wanted.name, wanted.config, revision=wanted.revision)
    )
    split = wanted.split or (next(iter(found)) if len(found) == 1 else None)
    if split not in found:
        raise PromptError(
            f"{wanted.text}: {'no split ' + repr(split) if split else 'several splits'}: name one of "
            f"{', '.join(found)}, as {PREFIX}NAME:SPLIT or {PREFIX}NAME:CONFIG:SPLIT."
        )
    chosen = found[split]
    revision = commit_of([file["filename"] for file in chosen.cache_files]) or wanted.revision
    return from_arrow(wanted.text, chosen.with_format("arrow")[:]), revision


def commit_of(cached: Sequence[str]) -> str | None:
    """The commit that cached files of a hub dataset stem from: `datasets` names their folder after it."""
    commits = {commit for file in cached for commit in _COMMIT.findall(Path(file).as_posix())}
    return commits.pop() if len(commits) == 1 else None


def fetch(address: str) -> Path:
    """A file by its https address, in the cache of `datasets`.

    Raises:
        PromptError: If it cannot be reached.
    """
    import datasets

    return Path(_reached(address, lambda: datasets.DownloadManager().download(address)))


def _reached(name: str, read: Callable[[], Any]) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        return read()
    except (DatasetsError, OSError, ValueError) as error:  # the hub's own errors are OSErrors
        raise PromptError(
            f"{name} cannot be read ({abbreviated(error.__cause__ or error)}): check name, split, access and "
            "connection, or point at a local copy (a file, 'hf:FOLDER', or root=FOLDER for a preset)."
        ) from error
