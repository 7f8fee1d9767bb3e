"""Reading one source of prompts (a file, a dataset, a preset), with a record of what was read.

The network is reached through the optional `datasets` library alone.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from os.path import exists, isdir
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import abbreviated
from ot_lens.prompts.presets import PRESETS, REFUSAL_DIRECTION, REFUSAL_DIRECTION_REVISION, Preset
from ot_lens.prompts.rows import Row, of_one_class, rows_of
from ot_lens.prompts.splitting import Pools, Settings
from ot_lens.prompts.tables import Table, from_arrow, read_bytes, read_table, sha256

PREFIX = "hf:"
DEFAULT_BRANCH = "main"
_COMMIT = re.compile(r"/([0-9a-f]{40})/")
Record = dict[str, Any]

REFUSAL_DIRECTION_SEED = 42
# Its draws, in order, from one generator: sizes from pipeline/config.py, order from pipeline/run_pipeline.py.
_DRAWS = (
    ("harmful", "train", 128),
    ("harmless", "train", 128),
    ("harmful", "val", 32),
    ("harmless", "val", 32),
    ("harmless", "test", 100),
)


class Source(BaseModel):
    """A file, PRESET[@REVISION] or hf:NAME[@REVISION][:CONFIG][:SPLIT], and what the user says about it."""

    model_config = ConfigDict(extra="forbid")
    source: str | Path
    columns: dict[str, str] = {}
    licence: str | None = None
    revision: str | None = None
    delimiter: str | None = None


def read_class(source: Source, label: str, settings: Settings) -> tuple[list[Row], list[Record]]:
    """The prompts of one class's source, and a record of each file read."""
    name, column = split_column(str(source.source), settings.base)
    columns = source.columns | ({"text": column} if column else {})
    preset, _, revision = name.partition("@")
    preset, _, language = preset.partition(":")
    if preset in PRESETS:
        known = PRESETS[preset].in_language(language)
        return _read_preset(known, label, source, revision, settings.root)
    given = source.model_dump(include={"licence", "revision", "delimiter"})
    if name.lower().endswith((".csv", ".tsv")):
        given["delimiter"] = source.delimiter or settings.delimiter
    table, record = read_any(name, settings.base, **given)
    rows, notes = rows_of(of_one_class(table, label, columns), columns)
    return rows, [{**record, "rows": len(rows), **notes}]


def read_any(
    name: str,
    base: Path,
    *,
    licence: str | None = None,
    revision: str | None = None,
    delimiter: str | None = None,
) -> tuple[Table, Record]:
    """The table of a file or dataset, and its record."""
    known = {"source": name, "licence": licence or "unknown"}
    if name.startswith(PREFIX):
        table, revision = read_dataset(name, revision, base)
        return table, {**known, "revision": revision, "sha256": None}
    table, record = read_file(base / name, str(base / name), delimiter=delimiter)
    return table, {**known, **record}


def read_file(
    path: Path, name: str, revision: str | None = None, delimiter: str | None = None
) -> tuple[Table, Record]:
    """The table of a file, and its record; a download is cached without the extension of its address."""
    content = read_bytes(path)
    record = {"source": name, "revision": revision, "sha256": sha256(content)}
    return read_table(Path(name), content, delimiter), record


def split_column(name: str, base: Path) -> tuple[str, str | None]:
    """Source and column of SOURCE#COLUMN; an existing file whose name contains '#' is taken literally."""
    if "#" not in name or exists(base / name):
        return name, None
    source, _, column = name.rpartition("#")
    return source, column


def _read_preset(
    preset: Preset, label: str, source: Source, revision: str, root: Path | None
) -> tuple[list[Row], list[Record]]:
    if preset.label != label:
        raise PromptError(f"{preset.name} holds {preset.label} prompts, but is named as a {label} source.")
    known = {"preset": preset.name, "licence": source.licence or preset.licence}
    rows, records = [], []
    for table, record in _preset_tables(preset, revision or source.revision, root):
        included, column, left_out = preset.prompts(table)
        one = included.only(column, "category", "SemanticCategory", "Category")
        new, notes = rows_of(one, {"text": column})
        rows += new
        records.append({**record, **known, "rows": len(new), **notes, "left_out": left_out})
    return rows, records


def _preset_tables(preset: Preset, revision: str | None, root: Path | None) -> list[tuple[Table, Record]]:
    if root is not None:
        return [read_file(path, str(path)) for path in preset.under(root)]
    if preset.home.startswith(PREFIX):
        return [read_any(preset.home, Path(), revision=revision)]
    return [read_published(preset.home, path, revision or DEFAULT_BRANCH) for path in preset.files]


def read_published(repository: str, path: str, revision: str) -> tuple[Table, Record]:
    """The table of a file at a revision (branch, tag or commit) of a GitHub repository, and its record."""
    url = f"https://raw.githubusercontent.com/{repository}/{revision}/{path}"
    return read_file(fetch(url), url, revision)


def read_refusal_direction(root: Path | None, revision: str | None) -> tuple[Pools, list[Record]]:
    """The prompts of refusal_direction, from a clone or from GitHub, and a record of each of its files.

    All harmful test prompts are used: JailbreakBench, HarmBench test and StrongREJECT. Its pipeline then
    filters train and val by the model's refusal score: see `filter_by_behaviour`.
    """
    generator = random.Random(REFUSAL_DIRECTION_SEED)  # noqa: S311 - the published draw, the same stream as random.seed(42)
    pools: dict[str, dict[str | None, list[Row]]] = {"harmful": {}, "harmless": {}}
    records = []
    for label, split, size in (*_DRAWS, ("harmful", "test", None)):
        rows, record = _read_split(label, split, root, revision or REFUSAL_DIRECTION_REVISION)
        if size is not None:
            if len(rows) < size:
                raise PromptError(
                    f"{record['source']} has {len(rows)} prompts, fewer than the {size} to draw."
                )
            rows = generator.sample(rows, size)
        pools[label][split] = rows
        records.append({**record, "class": label, "split": split, "drawn": len(rows)})
    return pools, records


def _read_split(label: str, split: str, root: Path | None, revision: str) -> tuple[list[Row], Record]:
    path = f"dataset/splits/{label}_{split}.json"
    if root is None:
        table, record = read_published(REFUSAL_DIRECTION, path, revision)
    else:
        table, record = read_file(root / path, str(root / path))
    rows, notes = rows_of(table, {"text": "instruction"})
    return rows, {**record, "rows": len(rows), **notes}


def read_dataset(name: str, revision: str | None = None, base: Path = Path()) -> tuple[Table, str | None]:
    """The table of hf:NAME[@REVISION][:CONFIG][:SPLIT], hub dataset or folder, and its revision if known."""
    path, *parts = name.removeprefix(PREFIX).split(":")
    path, _, pinned = path.partition("@")
    if not path or not all(parts) or len(parts) > 2:
        raise PromptError(f"{name!r} is not a dataset: write hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN].")
    config, wanted = (None, parts[0]) if len(parts) == 1 else (parts or (None, None))
    revision = pinned or revision
    path = str(base / path) if isdir(base / path) else path
    splits = _reached(name, lambda datasets: datasets.load_dataset(path, config, revision=revision))
    split = wanted or (next(iter(splits)) if len(splits) == 1 else None)
    if split not in splits:
        raise PromptError(
            f"{name}: {'no split ' + repr(split) if split else 'several splits'}: name one of "
            f"{', '.join(splits)}, as {PREFIX}NAME:SPLIT or {PREFIX}NAME:CONFIG:SPLIT."
        )
    rows = splits[split]
    commit = commit_of([file["filename"] for file in rows.cache_files])
    # It may have been a CSV file, whose first row became the names of the columns.
    table = replace(from_arrow(name, rows.with_format("arrow")[:]), header=True)
    return table, commit or revision


def commit_of(cached: Sequence[str]) -> str | None:
    """The commit that cached files of a hub dataset belong to: `datasets` names their folder after it."""
    commits = {commit for file in cached for commit in _COMMIT.findall(Path(file).as_posix())}
    return commits.pop() if len(commits) == 1 else None


def fetch(url: str) -> Path:
    """Download a file into the cache of `datasets`."""
    return Path(_reached(url, lambda datasets: datasets.DownloadManager().download(url)))


def _reached(name: str, read: Callable[[Any], Any]) -> Any:
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise PromptError(
            f"Prompts from the network need the datasets library ({error}): pip install 'ot-lens[hub]', or "
            "use a local copy (a file, or root=FOLDER for a preset)."
        ) from error
    try:
        return read(datasets)
    # Errors of the hub itself are OSErrors.
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise PromptError(
            f"{name} cannot be read ({abbreviated(error.__cause__ or error)}): check name, split, access and "
            "connection, or use a local copy (a file, 'hf:FOLDER', or root=FOLDER for a preset)."
        ) from error
