"""Hugging Face datasets by name, and single files by address, through the optional `datasets` library."""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import abbreviated
from ot_lens.prompts.tables import Table, from_arrow

PREFIX = "hf:"
_COMMIT = re.compile(r"/([0-9a-f]{40})/")


def read_dataset(name: str, revision: str | None = None) -> tuple[Table, str | None]:
    """The table of one split of a dataset on the hub or in a local dataset folder, and its revision if known.

    Args:
        name: hf:NAME[@REVISION][:CONFIG][:SPLIT]; a single part after the name is the split.
        revision: Used if `name` has none.

    Raises:
        PromptError: If the hub cannot be reached, or has no such dataset, configuration or split.
    """
    path, *parts = name.removeprefix(PREFIX).split(":")
    path, _, pinned = path.partition("@")
    if not path or not all(parts) or len(parts) > 2:
        raise PromptError(f"{name!r} is not a dataset: write hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN].")
    config, wanted = (None, parts[0]) if len(parts) == 1 else (parts or (None, None))
    revision = pinned or revision
    datasets = _library()
    splits = _reached(name, lambda: datasets.load_dataset(path, config, revision=revision))
    split = wanted or (next(iter(splits)) if len(splits) == 1 else None)
    if split not in splits:
        raise PromptError(
            f"{name}: {'no split ' + repr(split) if split else 'several splits'}: name one of "
            f"{', '.join(splits)}, as {PREFIX}NAME:SPLIT or {PREFIX}NAME:CONFIG:SPLIT."
        )
    rows = splits[split]
    commit = commit_of([file["filename"] for file in rows.cache_files])
    return from_arrow(name, rows.with_format("arrow")[:]), commit or revision


def commit_of(cached: Sequence[str]) -> str | None:
    """The commit that cached files of a hub dataset belong to: `datasets` names their folder after it."""
    commits = {commit for file in cached for commit in _COMMIT.findall(Path(file).as_posix())}
    return commits.pop() if len(commits) == 1 else None


def fetch(address: str) -> Path:
    """Download a file by its https address into the cache of `datasets`."""
    datasets = _library()
    return Path(_reached(address, lambda: datasets.DownloadManager().download(address)))


def _library() -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise PromptError(
            f"Prompts from the network need the datasets library ({error}): pip install 'ot-lens[hub]', or "
            "use a local copy (a file, or root=FOLDER for a preset)."
        ) from error


def _reached(name: str, read: Callable[[], Any]) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        return read()
    except (DatasetsError, OSError, ValueError) as error:  # errors of the hub itself are OSErrors
        raise PromptError(
            f"{name} cannot be read ({abbreviated(error.__cause__ or error)}): check name, split, access and "
            "connection, or use a local copy (a file, 'hf:FOLDER', or root=FOLDER for a preset)."
        ) from error
