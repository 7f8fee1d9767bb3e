"""Reading one source of prompts (a file, a dataset, a preset), with a record of what was read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os.path import exists
from pathlib import Path
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.prompts.hub import PREFIX, fetch, read_dataset
from ot_lens.prompts.presets import PRESETS, Preset
from ot_lens.prompts.rows import RECOGNIZED, Row, refuse_other_class, rows_of
from ot_lens.prompts.tables import Table, read_bytes, read_table, sha256

DEFAULT_BRANCH = "main"


@dataclass(frozen=True)
class Source:
    """A source as the user names it.

    Attributes:
        name: A file, PRESET[@REVISION], or hf:NAME[@REVISION][:CONFIG][:SPLIT]; files and datasets with or
            without #COLUMN.
        columns: Column by role, if names do not tell.
        licence: Licence, if the user knows it.
        revision: Revision of the hub dataset or of the preset's repository.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Folders:
    """Where sources are looked for: `base` for relative file paths, `root` for presets."""

    base: Path = Path()
    root: Path | None = None


def read_class(source: Source, label: str, folders: Folders) -> tuple[list[Row], list[dict[str, Any]]]:
    """The prompts of one class's source, and a record of each file read."""
    name, column = split_column(source.name, folders.base)
    columns = {**source.columns, **({"text": column} if column else {})}
    preset, _, revision = name.partition("@")
    if preset in PRESETS:
        pinned = replace(source, revision=revision or source.revision)
        return _read_preset(PRESETS[preset], label, pinned, folders.root)
    table, record = read_any(Source(name, columns, source.licence, source.revision), folders.base)
    refuse_other_class(table, label, columns)
    rows = rows_of(_without_class_and_split(table, columns), columns)
    return rows, [{**record, "rows": len(rows)}]


def read_any(source: Source, base: Path) -> tuple[Table, dict[str, Any]]:
    """The table of a file or dataset, and its record."""
    licence = source.licence or "unknown"
    if source.name.startswith(PREFIX):
        table, revision = read_dataset(source.name, source.revision)
        return table, {"source": source.name, "licence": licence, "revision": revision, "sha256": None}
    path = base / source.name
    content = read_bytes(path)
    record = {"source": str(path), "licence": licence, "revision": None, "sha256": sha256(content)}
    return read_table(path, content), record


def split_column(name: str, base: Path) -> tuple[str, str | None]:
    """Source and column of SOURCE#COLUMN; an existing file whose name contains '#' is taken literally."""
    if "#" not in name or exists(base / name):
        return name, None
    source, _, column = name.rpartition("#")
    return source, column


def _read_preset(
    preset: Preset, label: str, source: Source, root: Path | None
) -> tuple[list[Row], list[dict[str, Any]]]:
    if preset.label != label:
        raise PromptError(f"{preset.name} holds {preset.label} prompts, but is named as a {label} source.")
    rows, records = [], []
    for table, record in _preset_tables(preset, source.revision, root):
        included, column, left_out = preset.prompts(table)
        new = rows_of(included.only(column, "category", "SemanticCategory", "Category"), {"text": column})
        rows += new
        licence = source.licence or preset.licence
        known = {"preset": preset.name, "licence": licence, "rows": len(new), "left_out": left_out}
        records.append({**record, **known})
    return rows, records


def _preset_tables(
    preset: Preset, revision: str | None, root: Path | None
) -> list[tuple[Table, dict[str, Any]]]:
    if root is not None:
        return [_file(path, str(path), None) for path in preset.under(root)]
    if preset.home.startswith(PREFIX):
        return [read_any(Source(preset.home, revision=revision), Path())]
    branch = revision or DEFAULT_BRANCH
    return [_file(fetch(address), address, branch) for address in preset.addresses(branch)]


def _file(path: Path, name: str, revision: str | None) -> tuple[Table, dict[str, Any]]:
    content = read_bytes(path)
    # A download is cached under a hash: only the address has the extension.
    return read_table(Path(name), content), {"source": name, "revision": revision, "sha256": sha256(content)}


def _without_class_and_split(table: Table, columns: Mapping[str, str]) -> Table:
    """The source of one class has a class already, and no splits unless the user names their column."""
    names = (*RECOGNIZED["label"], *RECOGNIZED["split"])
    ignored = {c for c in table.columns if c.lower() in names} - set(columns.values())
    return table.only(*(set(table.columns) - ignored)) if len(table.columns) > 1 else table
