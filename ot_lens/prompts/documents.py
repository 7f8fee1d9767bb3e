"""Contrast sets written down: a JSON document that holds the prompts, or a description of their sources."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import isdir
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ot_lens.errors import PromptError, one_of
from ot_lens.io.untrusted import first_fault, quoted
from ot_lens.prompts.data import CLASSES, SPLITS
from ot_lens.prompts.duplicates import check_threshold
from ot_lens.prompts.presets import PRESETS, SETS
from ot_lens.prompts.rows import CONVERSATIONS, Row, by_split, rows_of
from ot_lens.prompts.sources import PREFIX, Record, Source, read_class
from ot_lens.prompts.splitting import Pools, Settings, parse_sample
from ot_lens.prompts.tables import from_records

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Collected:
    """Prompts before they are split, a record of each file read, and licence and source if stated."""

    name: str
    pools: Pools
    records: list[Record]
    settings: Settings
    licence: str | None = None
    source: str | None = None


class _Classes(BaseModel):
    model_config = ConfigDict(extra="forbid")
    harmful: list[Any]
    harmless: list[Any]


class _Document(BaseModel):
    name: str | None = None
    licence: str = "unknown"
    source: str = "unknown"
    splits: dict[Literal["train", "val", "test"], _Classes] | None = None
    harmful: list[Any] = []
    harmless: list[Any] = []


def read_document(content: Any, file: str, record: Record, settings: Settings) -> Collected:
    """The prompts of a JSON document of both classes, with or without splits; see `load_prompts`."""
    if not isinstance(content, Mapping):
        raise PromptError(
            f"{file} should be an object with the lists harmful and harmless; see load_prompts."
        )
    document = _validated(_Document, content, file)
    pools = {label: _by_split(document, label, file) for label in CLASSES}
    records = [{**record, "licence": document.licence}]
    name = document.name or Path(file).stem
    return Collected(name, pools, records, settings, document.licence, document.source)


def _by_split(document: _Document, label: str, file: str) -> dict[str | None, list[Row]]:
    if document.splits is None:
        return {None: _rows(f"{file}: {label}", getattr(document, label))}
    return {
        split: _rows(f"{file}: splits.{split}.{label}", getattr(classes, label))
        for split, classes in document.splits.items()
    }


def _rows(location: str, prompts: list[Any]) -> list[Row]:
    table = from_records(location, prompts)
    conversations = "text" not in table.columns and CONVERSATIONS & table.columns.keys()
    return rows_of(table, {} if conversations else {"text": "text"})[0]


def _both_classes(sources: dict[str, Any]) -> dict[str, Any]:
    if set(sources) != set(CLASSES):
        raise ValueError(f"give those of {' and '.join(CLASSES)}")
    return sources


class Description(BaseModel):
    """A prompt set by its sources; the other fields are those of `load_prompts`."""

    model_config = ConfigDict(extra="forbid")
    sources: Annotated[dict[str, Any], AfterValidator(_both_classes)]
    name: str | None = None
    licence: str | None = None
    seed: int | None = Field(None, ge=0)
    sample: list[int] | tuple[int, ...] | dict[str, list[int] | tuple[int, ...]] | None = None
    root: str | Path | None = None
    deduplicate: bool | None = None
    near_duplicates: float | None = None


def parse_description(content: Any, origin: str) -> Description:
    """Validate a description; a mapping of the two classes alone is short for {"sources": ...}."""
    if not isinstance(content, Mapping):
        raise PromptError(f"{origin}: describe a prompt set as {{harmful: SOURCE, harmless: SOURCE}}.")
    if "sources" not in content and set(content) & set(CLASSES):
        content = {"sources": content}
    return _validated(Description, content, origin)


def relative_to(folder: Path, source: Any) -> Any:
    """A source or description as a file in `folder` names it: relative file names count from there."""
    if isinstance(source, Mapping):
        paths = {"sources", "source", "root", *CLASSES, *SPLITS}
        return {key: relative_to(folder, v) if key in paths else v for key, v in source.items()}
    if isinstance(source, list | tuple):
        return [relative_to(folder, item) for item in source]
    if not isinstance(source, str):
        return source
    if source.startswith(PREFIX):
        path = source.removeprefix(PREFIX)
        return f"{PREFIX}{folder / path}" if isdir(folder / path.partition(":")[0]) else source
    name = source.partition("@")[0].partition(":")[0]
    return source if name in (*SETS, *PRESETS) else str(folder / source)


def read_sources(description: Description, settings: Settings, origin: str) -> Collected:
    """The prompts of all sources of a description, under its own settings where it has some."""
    settings = _overridden(settings, description)
    pools: dict[str, dict[str | None, list[Row]]] = {label: {} for label in CLASSES}
    records, names = [], []
    for label, described in sorted(description.sources.items()):
        for split, sources in _sources_by_split(described, f"{origin}: {label}").items():
            for source in sources:
                rows, read = read_class(source, label, settings)
                pools[label].setdefault(split, []).extend(rows)
                records += [{**record, "class": label, "split": split} for record in read]
                names.append(str(source.source))
        if None in pools[label]:
            pools[label] = by_split(pools[label][None])
    name = description.name or " + ".join(dict.fromkeys(names))
    return Collected(name, pools, records, settings, description.licence)


def _overridden(settings: Settings, description: Description) -> Settings:
    given = description.model_dump(include={"seed", "deduplicate"}, exclude_none=True)
    if description.sample is not None:
        given["sample"] = parse_sample(description.sample)
    if "near_duplicates" in description.model_fields_set:
        check_threshold(description.near_duplicates)
        given["near"] = description.near_duplicates
    if description.root is not None:
        given["root"] = settings.base / description.root
    return replace(settings, **given)


def _sources_by_split(value: Any, field: str) -> dict[str | None, list[Source]]:
    if isinstance(value, Mapping) and set(value) & set(SPLITS):
        for split in value:
            one_of(f"split of {field}", split, SPLITS, PromptError)
        return {split: _sources(value[split], f"{field}.{split}") for split in SPLITS if split in value}
    return {None: _sources(value, field)}


def _sources(value: Any, field: str) -> list[Source]:
    if isinstance(value, str | Path):
        return [Source(source=value)]
    if isinstance(value, Mapping):
        return [_validated(Source, value, field)]
    if not isinstance(value, list | tuple) or not value:
        raise PromptError(
            f"{field}: {quoted(value)} is not a source: give a file, a preset, hf:DATASET, or a list."
        )
    return [source for i, item in enumerate(value) for source in _sources(item, f"{field}.{i}")]


def _validated(model: type[_Model], content: Any, origin: str) -> _Model:
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        field, message = first_fault(error)
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            message = f"unknown field; the fields are {', '.join(model.model_fields)}"
        raise PromptError(f"{origin}: {field}: {message} (got {quoted(first['input'])}).") from error
