"""`load_prompts`: the one entry point for every way to name a contrast set."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from os.path import exists
from pathlib import Path
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import listed, parse_json, parse_yaml
from ot_lens.prompts.data import CLASSES, ContrastSet
from ot_lens.prompts.documents import Collected, parse_description, read_document, read_sources
from ot_lens.prompts.duplicates import NEAR, check_threshold
from ot_lens.prompts.presets import PRESETS, SETS, described_set
from ot_lens.prompts.rows import by_split, rows_of
from ot_lens.prompts.sources import (
    PREFIX,
    REFUSAL_DIRECTION_SEED,
    Record,
    read_any,
    read_refusal_direction,
    split_column,
)
from ot_lens.prompts.splitting import Settings, draw_splits, parse_sample
from ot_lens.prompts.tables import Table, decode, from_records, read_bytes, read_table, sha256

# Files of the prompts that the package ships for its own models.
SHIPPED = {"organism": "prompts.json", "smollm2": "requests.json"}


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
    delimiter: str | None = None,
) -> ContrastSet:
    """Load a contrast set.

    Args:
        source: One of

            - "organism", the prompts of the embedded models; "smollm2", everyday requests, some of which the
              adapters of SmolLM2 decline; "refusal_direction[@REVISION]", the splits of that repository,
              drawn as it draws them; "paper", the data of arXiv 2603.04355; "polyrefuse:LANGUAGE", that of
              arXiv 2505.17306 in one language;
            - a file of both classes: JSON, {"splits": {"train": {"harmful": [...], "harmless": [...]}, "val":
              ..., "test": ...}} or {"harmful": [...], "harmless": [...]}, where a prompt is a string or
              {"text", "answer", "answers", "category"}; or a table (CSV, TSV, JSONL, JSON list, parquet) with
              columns for text and class, and optionally split, category, answer, answers; instead of a text,
              a conversation (messages, turns, conversations), whose first user turn is the prompt;
            - a dataset `hf:NAME[@REVISION][:CONFIG][:SPLIT][#COLUMN]` with such columns (needs the extra
              `hub`, as do presets without `root`);
            - {"harmful": SOURCE, "harmless": SOURCE}, where SOURCE is a file of one class (also plain text,
              one prompt per line), FILE#COLUMN, a preset of `preset_table`, a dataset, {"source", "columns",
              "licence", "revision", "delimiter"}, a list of these, or {"train": SOURCE, "val": SOURCE,
              "test": SOURCE};
            - a YAML or JSON file of {"sources": {"harmful": ..., "harmless": ...}} and optionally name,
              licence, seed, sample, root, deduplicate, near_duplicates, which override the arguments; or that
              mapping itself. File names in it are relative to the file.
        seed: Seed of the draws; no effect on a file that names its splits. A pool without splits is shuffled
            and cut 50 / 15 / 35 %.
        sample: (train, val): that many prompts per class, with the rest or the named source as test; or
            (train, val, test); or either by class.
        columns: Column by role (text, label, split, category, answer, answers), if names do not tell.
        labels: "harmful" or "harmless" by value of the label column, if they do not tell.
        root: Folder to read presets from instead of the network: a clone of refusal_direction or of the set's
            own repository, or the bare files.
        deduplicate: Before drawing, drop duplicates within a class, and drop from train and val what is also
            in test and from train what is also in val. Not applied to "organism", "smollm2" and
            "refusal_direction", which are loaded as published.
        near_duplicates: Jaccard similarity of character 5-grams from which prompts count as duplicates
            between splits and within a pool that is still to be split; None: exact ones only (after NFKC,
            letter case and white space).
        delimiter: Character between the cells of CSV and TSV files. Default: comma and tab, and an error if
            the header suggests another one.

    Returns:
        The contrast set, with at least one prompt per class and split. Its `manifest` says what was read,
        drawn and dropped.

    Raises:
        PromptError: If a source is missing, unreachable or invalid, a prompt is in both classes, or too few
            are left.
    """
    check_threshold(near_duplicates)
    folder = None if root is None else Path(root)
    settings = Settings(
        seed,
        parse_sample(sample),
        columns or {},
        labels or {},
        folder,
        deduplicate,
        near_duplicates,
        delimiter,
    )
    collected = _read(source, settings)
    settings = collected.settings
    origin = "prompts" if isinstance(source, Mapping) else str(source)
    splits, left_out = draw_splits(collected.pools, settings, origin)
    sources = "; ".join(dict.fromkeys(str(r["source"]) for r in collected.records))
    licences = "; ".join(dict.fromkeys(str(r.get("licence", "unknown")) for r in collected.records))
    return ContrastSet(
        collected.name,
        **splits,
        licence=collected.licence or licences,
        source=collected.source or sources,
        provenance={
            "sources": collected.records,
            "seed": settings.seed,
            "sample": {label: size and list(size) for label, size in settings.sample.items()},
            "deduplicated": settings.deduplicate,
            "near_duplicates": settings.near if settings.deduplicate else None,
            "left_out": left_out,
        },
    )


def _read(source: str | Path | Mapping[str, Any], settings: Settings) -> Collected:
    if isinstance(source, Mapping):
        return read_sources(parse_description(source, "prompts"), settings, "prompts")
    name = str(source)
    shipped = SHIPPED.get(name.partition(":")[0])
    if shipped is not None:
        return _shipped(name, shipped, settings)
    if name.partition("@")[0] == "refusal_direction":
        return _published(settings, name.partition("@")[2] or None)
    described = described_set(name)
    if described is not None:
        return read_sources(parse_description(described, name), settings, name)
    if name in PRESETS:
        label = PRESETS[name].label
        raise PromptError(
            f"{name} holds {label} prompts only: give both classes, as "
            f"{{'{label}': '{name}', '{next(c for c in CLASSES if c != label)}': SOURCE}}."
        )
    uncut, column = split_column(name, settings.base)
    if column:
        settings = replace(settings, columns={**settings.columns, "text": column})
    if uncut.startswith(PREFIX):
        return _tabular(*read_any(uncut, settings.base), settings)
    return _file(Path(uncut), settings)


def _shipped(name: str, file: str, settings: Settings) -> Collected:
    text = (files("ot_lens") / "organism" / "data" / file).read_text("utf-8")
    content = parse_json(text, name, PromptError)
    record = {"source": content["source"], "sha256": sha256(text.encode())}
    return read_document(content, name, record, replace(settings, deduplicate=False))


def _published(settings: Settings, revision: str | None) -> Collected:
    if any(settings.sample.values()):
        raise PromptError("refusal_direction has sizes of its own, 128 / 32: omit sample.")
    pools, records = read_refusal_direction(settings.root, revision)
    known = SETS["refusal_direction"]
    settings = replace(settings, seed=REFUSAL_DIRECTION_SEED, deduplicate=False)
    return Collected("refusal_direction", pools, records, settings, known["licence"], known["source"])


def _file(path: Path, settings: Settings) -> Collected:
    name = str(path)
    if not exists(path):
        raise PromptError(
            f"There is no prompt set {name!r}: give {', '.join(map(repr, SETS))}, hf:DATASET, the path of a "
            "file, or {'harmful': SOURCE, 'harmless': SOURCE}."
        )
    content = read_bytes(path)
    record = {"source": name, "licence": "unknown", "sha256": sha256(content)}
    settings = replace(settings, base=path.parent)
    if path.suffix.lower() in (".yaml", ".yml"):
        document = parse_yaml(decode(content, name), name, PromptError)
        return read_sources(parse_description(document, name), settings, name)
    if path.suffix.lower() not in (".json", ""):
        return _tabular(read_table(path, content, settings.delimiter), record, settings)
    document = parse_json(decode(content, name), name, PromptError)
    if isinstance(document, list) and document:
        return _tabular(from_records(name, document), record, settings)
    if isinstance(document, dict) and "sources" in document:
        return read_sources(parse_description(document, name), settings, name)
    return read_document(document, name, record, settings)


def _tabular(table: Table, record: Record, settings: Settings) -> Collected:
    rows, notes = rows_of(table, settings.columns, settings.labels)
    if any(row.label is None for row in rows):
        raise PromptError(
            f"{table.name}: no column says which prompts are harmful: name it, columns={{'label': ...}}, "
            f"among {listed(table.columns)}; or load {{'harmful': SOURCE, 'harmless': SOURCE}}."
        )
    pools = {label: by_split([row for row in rows if row.label == label]) for label in CLASSES}
    return Collected(Path(table.name).stem, pools, [{**record, "rows": len(rows), **notes}], settings)
