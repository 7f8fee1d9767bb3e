"""Contrast sets written down: a JSON document that holds the prompts, or a description of their sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import first_fault, listed, quoted
from ot_lens.prompts.data import CLASSES, SPLITS, Prompt
from ot_lens.prompts.rows import Row, checked_text
from ot_lens.prompts.sources import Folders, Source, read_class
from ot_lens.prompts.splitting import Pools

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Collected:
    """Prompts before they are split, and what is known of them.

    Attributes:
        name: Name of the set.
        pools: Prompts by class and split.
        records: A record of each file or dataset read.
        licence: As stated for the whole set, if it is.
        source: Likewise, in words.
    """

    name: str
    pools: Pools
    records: list[dict[str, Any]]
    licence: str | None = None
    source: str | None = None


class _PromptRow(BaseModel):
    model_config = ConfigDict(extra="ignore")
    text: str = Field(min_length=1)
    answer: str | None = None
    answers: Annotated[tuple[str, ...], FailFast()] = ()
    category: str | None = None


# Only the first fault is reported: a large file may have millions.
_Prompts = Annotated[list[_PromptRow | str], FailFast()]


class _ContrastRows(BaseModel):
    model_config = ConfigDict(extra="forbid")
    harmful: _Prompts
    harmless: _Prompts


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str | None = None
    licence: str = "unknown"
    source: str = "unknown"
    splits: dict[str, _ContrastRows] | None = None
    harmful: _Prompts = []
    harmless: _Prompts = []


def read_document(content: Any, file: str, record: dict[str, Any]) -> Collected:
    """The prompts of a JSON document of both classes, with or without splits; see `load_prompts`."""
    try:
        document = _Document.model_validate(content)
    except ValidationError as error:
        field, message = first_fault(error)
        message = message if field else "it should be an object with the lists harmful and harmless"
        raise PromptError(f"{file}: {field or 'the file'}: {message}. See load_prompts.") from error
    name = document.name or Path(file).stem
    records = [{**record, "licence": document.licence}]
    return Collected(name, _pools(document, file), records, document.licence, document.source)


def _pools(document: _Document, file: str) -> Pools:
    splits = document.splits
    if splits is None:
        return {c: {None: _rows(getattr(document, c), f"{file}: {c}")} for c in CLASSES}
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise PromptError(f"{file}: no split {missing[0]!r}: name all of {', '.join(SPLITS)}.")
    return {c: {s: _rows(getattr(splits[s], c), f"{file}: splits.{s}.{c}") for s in SPLITS} for c in CLASSES}


def _rows(prompts: Sequence[_PromptRow | str], location: str) -> list[Row]:
    rows = []
    for i, given in enumerate(prompts):
        row = _PromptRow.model_construct(text=given) if isinstance(given, str) else given
        text = checked_text(row.text, f"{location}.{i}")
        rows.append(Row(Prompt(text, row.answer, row.answers, row.category), f"{location}.{i}"))
    return rows


class Description(BaseModel):
    """A prompt set by its sources; the other fields are those of `load_prompts`."""

    model_config = ConfigDict(extra="forbid")
    sources: dict[str, Any]
    name: str | None = None
    licence: str | None = None
    seed: int | None = Field(None, ge=0)
    sample: list[int] | tuple[int, ...] | dict[str, list[int] | tuple[int, ...]] | None = None
    root: str | Path | None = None
    deduplicate: bool | None = None
    near_duplicates: float | None = None


class _SourceFields(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str | Path
    columns: dict[str, str] = {}
    licence: str | None = None
    revision: str | None = None


def parse_description(content: Any, origin: str) -> Description:
    """Validate a description; a mapping of the two classes alone is short for {"sources": ...}."""
    if not isinstance(content, Mapping):
        raise PromptError(f"{origin}: describe a prompt set as {{harmful: SOURCE, harmless: SOURCE}}.")
    if "sources" not in content and set(content) & set(CLASSES):
        content = {"sources": content}
    description = _validated(Description, content, origin)
    if set(description.sources) != set(CLASSES):
        raise PromptError(
            f"{origin}: sources of {listed(description.sources) or 'nothing'}: give those of "
            f"{' and '.join(CLASSES)}."
        )
    return description


def read_sources(description: Description, folders: Folders, origin: str) -> Collected:
    """The prompts of all sources of a description."""
    pools: dict[str, dict[str | None, list[Row]]] = {label: {} for label in CLASSES}
    records, names = [], []
    for label in CLASSES:
        for split, sources in _by_split(description.sources[label], f"{origin}: {label}").items():
            for source in sources:
                rows, read = read_class(source, label, folders)
                pools[label].setdefault(split, []).extend(rows)
                records += [{**record, "class": label, "split": split} for record in read]
                names.append(source.name)
        if any(row.split for row in pools[label].get(None, [])):
            pool = pools[label][None]
            pools[label] = {split: [row for row in pool if row.split == split] for split in SPLITS}
    name = description.name or " + ".join(dict.fromkeys(names))
    return Collected(name, pools, records, description.licence)


def _by_split(value: Any, field: str) -> dict[str | None, list[Source]]:
    if isinstance(value, Mapping) and set(value) & set(SPLITS):
        unknown = set(value) - set(SPLITS)
        if unknown:
            raise PromptError(
                f"{field}: no split {quoted(unknown.pop())}: the splits are {', '.join(SPLITS)}."
            )
        return {split: _sources(value[split], f"{field}.{split}") for split in SPLITS if split in value}
    return {None: _sources(value, field)}


def _sources(value: Any, field: str) -> list[Source]:
    if isinstance(value, str | Path):
        return [Source(str(value))]
    if isinstance(value, Mapping):
        fields = _validated(_SourceFields, value, field)
        return [replace(Source(str(fields.source)), **fields.model_dump(exclude={"source"}))]
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
