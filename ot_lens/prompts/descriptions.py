"""A prompt set described by its sources: a mapping in Python, or the same in YAML or JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import listed, parse_yaml, quoted
from ot_lens.prompts.data import CLASSES, SPLITS
from ot_lens.prompts.drawing import Pools
from ot_lens.prompts.sources import Places, Source, read_class

_Model = TypeVar("_Model", bound=BaseModel)


class Description(BaseModel):
    """A prompt set by its sources; fields beside `sources` are those of `load_prompts`."""

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


@dataclass(frozen=True)
class Gathered:
    """What a description's sources hold, with the record of each."""

    name: str
    pools: Pools
    records: list[dict[str, Any]]


def read_yaml(text: str, name: str) -> Any:
    """Parse YAML; aliases and tags make no objects.

    Raises:
        PromptError: If it is not YAML.
    """
    return parse_yaml(text, name, PromptError)


def parse_description(content: Any, origin: str) -> Description:
    """Validate a description; a mapping of the two classes alone is short for {"sources": ...}.

    Raises:
        PromptError: If a field is unknown or not what it should be.
    """
    if not isinstance(content, Mapping):
        raise PromptError(f"{origin}: a prompt set is described by {{harmful: SOURCE, harmless: SOURCE}}.")
    if "sources" not in content and set(content) & set(CLASSES):
        content = {"sources": content}
    found = _validated(Description, content, origin)
    if set(found.sources) != set(CLASSES):
        raise PromptError(
            f"{origin}: sources of {listed(found.sources) or 'nothing'}: name those of "
            f"{' and '.join(CLASSES)}."
        )
    return found


def gather(description: Description, places: Places, origin: str) -> Gathered:
    """Read all sources of a description.

    Raises:
        PromptError: If one is not described rightly or cannot be read.
    """
    pools: dict[str, dict[str | None, list[Any]]] = {label: {} for label in CLASSES}
    records, names = [], []
    for label in CLASSES:
        for split, sources in _by_split(description.sources[label], f"{origin}: {label}").items():
            for source in sources:
                rows, read = read_class(source, label, places)
                pools[label].setdefault(split, []).extend(rows)
                records += [{**record, "class": label, "split": split} for record in read]
                names.append(source.name)
        pools[label] = _by_own_split(pools[label])
    return Gathered(description.name or " + ".join(dict.fromkeys(names)), pools, records)


def _by_split(value: Any, where: str) -> dict[str | None, list[Source]]:
    if isinstance(value, Mapping) and set(value) & set(SPLITS):
        unknown = set(value) - set(SPLITS)
        if unknown:
            raise PromptError(
                f"{where}: no split {quoted(unknown.pop())}: the splits are {', '.join(SPLITS)}."
            )
        return {split: _sources(value[split], f"{where}.{split}") for split in SPLITS if split in value}
    return {None: _sources(value, where)}


def _sources(value: Any, where: str) -> list[Source]:
    if isinstance(value, str | Path):
        return [Source(str(value))]
    if isinstance(value, Mapping):
        fields = _validated(_SourceFields, value, where)
        return [replace(Source(str(fields.source)), **fields.model_dump(exclude={"source"}))]
    if not isinstance(value, list | tuple) or not value:
        raise PromptError(
            f"{where}: {quoted(value)} is no source: name a file, a preset, or hf:DATASET, or list several."
        )
    return [source for i, part in enumerate(value) for source in _sources(part, f"{where}.{i}")]


def _by_own_split(groups: dict[str | None, list[Any]]) -> dict[str | None, list[Any]]:
    """A pool whose rows name their own splits, as those splits."""
    rows = groups.get(None, [])
    if not any(row.split for row in rows):
        return groups
    return {split: [row for row in rows if row.split == split] for split in SPLITS}


def _validated(model: type[_Model], content: Any, where: str) -> _Model:
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise PromptError(
                f"{where}: unknown field {quoted(place)}: the fields are {', '.join(model.model_fields)}."
            ) from error
        raise PromptError(f"{where}: {place}: {first['msg']} (got {quoted(first['input'])}).") from error
