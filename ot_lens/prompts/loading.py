"""`load_prompts`: one door for every way to name a contrast set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from os.path import exists
from pathlib import Path
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import listed
from ot_lens.prompts.data import CLASSES, SPLITS, ContrastSet
from ot_lens.prompts.descriptions import gather, parse_description, read_yaml
from ot_lens.prompts.documents import read_document
from ot_lens.prompts.drawing import Drawing, Pools, draw_splits, parse_sample
from ot_lens.prompts.duplicates import NEAR, check_threshold
from ot_lens.prompts.hub import PREFIX
from ot_lens.prompts.presets import PAPER, PRESETS, REFUSAL_DIRECTION, REFUSAL_DIRECTION_LICENCE, SETS
from ot_lens.prompts.published import SEED, read_refusal_direction
from ot_lens.prompts.rows import Row, rows_of
from ot_lens.prompts.sources import Places, Source, read_any, split_column
from ot_lens.prompts.tables import Table, from_records, parse_json, read_table
from ot_lens.prompts.text_files import decode, read_bytes, sha256


@dataclass(frozen=True)
class _Read:
    """A source, read: the prompts, what is known of them, and how they are to be drawn."""

    name: str
    origin: str
    pools: Pools
    records: list[dict[str, Any]]
    drawing: Drawing
    licence: str | None = None
    source: str | None = None


def load_prompts(
    source: str | Path | Mapping[str, Any],
    *,
    seed: int = 0,
    sample: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    deduplicate: bool = True,
    near_duplicates: float | None = NEAR,
) -> ContrastSet:
    """Load a contrast set.

    Args:
        source: One of

            - "organism", the prompts of the embedded models; "refusal_direction[@REVISION]", the splits of
              that repository, drawn as it draws them; "paper", the data of arXiv 2603.04355;
            - a file of both classes: JSON, {"splits": {"train": {"harmful": [...], "harmless": [...]}, "val":
              ..., "test": ...}} or {"harmful": [...], "harmless": [...]}, a prompt being a string or {"text",
              "answer", "answers", "category"}; or a table (CSV, TSV, JSONL, JSON list, parquet) with columns
              for text and class, and perhaps split, category, answer, answers;
            - a dataset `hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN]` with such columns;
            - {"harmful": SOURCE, "harmless": SOURCE}, where SOURCE is a file of one class (also plain text,
              a prompt a line), FILE#COLUMN, a preset of `preset_table`, a dataset, {"source", "columns",
              "licence", "revision"}, a list of these, or {"train": SOURCE, "val": SOURCE, "test": SOURCE};
            - a YAML or JSON file of {"sources": {"harmful": ..., "harmless": ...}} and, beside it, any of
              name, licence, seed, sample, root, deduplicate, near_duplicates, which win over the arguments;
              or that mapping itself. File names in it are relative to the file.
        seed: Seed of what is drawn; without effect on a file that names its splits. A pool without splits is
            shuffled and cut 50 / 15 / 35 %.
        sample: (train, val): that many prompts a class, the rest or the named source being test; or (train,
            val, test); or either by class.
        columns: Column by role (text, label, split, category, answer, answers), where names do not tell.
        labels: "harmful" or "harmless" by value of the label column, where they do not tell.
        root: Folder where presets are read instead of from the network: a clone of refusal_direction or of
            the set's own repository, or the bare files.
        deduplicate: Drop, before anything is drawn, duplicates within a class, and from train and val what is
            in test or, from train, in val. Not applied to "organism" and "refusal_direction", which are
            given as published.
        near_duplicates: Jaccard similarity of character 5-grams from which prompts count as the same between
            splits, and within a pool that is still to be split; None: exact ones only (after NFKC, letter
            case and white space).

    Returns:
        The contrast set, with at least one prompt a class and split. Its `manifest` says what was read,
        drawn and left out.

    Raises:
        PromptError: If a source is missing, unreachable or not valid, a prompt is in both classes, or too few
            are left.
    """
    check_threshold(near_duplicates)
    drawing = Drawing(seed, parse_sample(sample), deduplicate, near_duplicates)
    places = Places(root=None if root is None else Path(root))
    read = _read(source, drawing, places, columns or {}, labels or {})
    splits, left_out = draw_splits(read.pools, read.drawing, read.origin)
    record = _record(read, left_out)
    sources = "; ".join(dict.fromkeys(str(r["source"]) for r in read.records))
    licences = "; ".join(dict.fromkeys(str(r.get("licence", "unknown")) for r in read.records))
    return ContrastSet(
        read.name,
        **splits,
        licence=read.licence or licences,
        source=read.source or sources,
        provenance=record,
    )


def _record(read: _Read, left_out: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "sources": read.records,
        "seed": read.drawing.seed,
        "sample": {label: size and list(size) for label, size in read.drawing.sample.items()},
        "deduplicated": read.drawing.deduplicate,
        "near_duplicates": read.drawing.near if read.drawing.deduplicate else None,
        "left_out": left_out,
    }


def _read(
    source: str | Path | Mapping[str, Any],
    drawing: Drawing,
    places: Places,
    columns: Mapping[str, str],
    labels: Mapping[str, str],
) -> _Read:
    if isinstance(source, Mapping):
        return _described(source, "prompts", drawing, places)
    name = str(source)
    if name == "organism":
        return _organism(drawing)
    if name.partition("@")[0] == "refusal_direction":
        return _published(drawing, places, name.partition("@")[2] or None)
    if name == "paper":
        return _described(PAPER, "paper", drawing, places)
    if name in PRESETS:
        label = PRESETS[name].label
        raise PromptError(
            f"{name} holds {label} prompts only: give both classes, as "
            f"{{'{label}': '{name}', '{next(c for c in CLASSES if c != label)}': SOURCE}}."
        )
    wanted, column = split_column(name, places.base)
    columns = {**columns, **({"text": column} if column else {})}
    if name.startswith(PREFIX):
        table, record = read_any(Source(wanted), places.base)
        return _tabular(table, record, wanted, columns, labels, drawing)
    return _file(Path(wanted), name, drawing, places, columns, labels)


def _organism(drawing: Drawing) -> _Read:
    text = (files("ot_lens") / "organism" / "data" / "prompts.json").read_text("utf-8")
    found = read_document(parse_json(text, "organism"), "organism")
    record = {"source": found.source, "licence": found.licence, "sha256": sha256(text.encode())}
    drawing = replace(drawing, deduplicate=False)
    return _Read("organism", "organism", found.pools, [record], drawing, found.licence, found.source)


def _published(drawing: Drawing, places: Places, revision: str | None) -> _Read:
    if any(drawing.sample.values()):
        raise PromptError("refusal_direction has its own sizes, 128 / 32: leave sample out.")
    pools, records = read_refusal_direction(places.root, revision)
    drawing = replace(drawing, seed=SEED, deduplicate=False)
    source = SETS["refusal_direction"][1]
    return _Read(
        "refusal_direction", REFUSAL_DIRECTION, pools, records, drawing, REFUSAL_DIRECTION_LICENCE, source
    )


def _described(content: Any, origin: str, drawing: Drawing, places: Places) -> _Read:
    found = parse_description(content, origin)
    if found.seed is not None:
        drawing = replace(drawing, seed=found.seed)
    if found.sample is not None:
        drawing = replace(drawing, sample=parse_sample(found.sample))
    if found.deduplicate is not None:
        drawing = replace(drawing, deduplicate=found.deduplicate)
    if "near_duplicates" in found.model_fields_set:
        check_threshold(found.near_duplicates)
        drawing = replace(drawing, near=found.near_duplicates)
    if found.root is not None:
        places = replace(places, root=places.base / found.root)
    gathered = gather(found, places, origin)
    return _Read(gathered.name, origin, gathered.pools, gathered.records, drawing, found.licence)


def _file(
    path: Path,
    name: str,
    drawing: Drawing,
    places: Places,
    columns: Mapping[str, str],
    labels: Mapping[str, str],
) -> _Read:
    if not exists(path):
        raise PromptError(
            f"no prompt set {name!r}: give {', '.join(map(repr, SETS))}, hf:DATASET, the path of an existing "
            "file, or {'harmful': SOURCE, 'harmless': SOURCE}."
        )
    content = read_bytes(path)
    record = {"source": str(path), "licence": "unknown", "sha256": sha256(content)}
    beside = replace(places, base=path.parent)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _described(read_yaml(decode(content, str(path)), str(path)), str(path), drawing, beside)
    if path.suffix.lower() not in (".json", ""):
        return _tabular(read_table(path, content), record, str(path), columns, labels, drawing)
    found = parse_json(decode(content, str(path)), str(path))
    if isinstance(found, list) and found:
        return _tabular(from_records(str(path), found), record, str(path), columns, labels, drawing)
    if isinstance(found, dict) and "sources" in found:
        return _described(found, str(path), drawing, beside)
    document = read_document(found, str(path))
    record |= {"licence": document.licence}
    named = document.name or path.stem
    return _Read(named, str(path), document.pools, [record], drawing, document.licence, document.source)


def _tabular(
    table: Table,
    record: dict[str, Any],
    origin: str,
    columns: Mapping[str, str],
    labels: Mapping[str, str],
    drawing: Drawing,
) -> _Read:
    rows = rows_of(table, columns, labels)
    if any(row.label is None for row in rows):
        raise PromptError(
            f"{origin}: no column says which prompts are harmful: name it, columns={{'label': ...}}, among "
            f"{listed(table.columns)}; or load {{'harmful': SOURCE, 'harmless': SOURCE}}."
        )
    pools = {label: _grouped([row for row in rows if row.label == label]) for label in CLASSES}
    return _Read(Path(origin).stem, origin, pools, [{**record, "rows": len(rows)}], drawing)


def _grouped(rows: list[Row]) -> dict[str | None, list[Row]]:
    if all(row.split is None for row in rows):
        return {None: rows}
    found = {split: [row for row in rows if row.split == split] for split in SPLITS}
    return {split: group for split, group in found.items() if group}
