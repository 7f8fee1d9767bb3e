"""Every reader of ot_lens, with valid files to begin from and structures to alter."""

import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import yaml
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.torch import save

import ot_lens as otl
from ot_lens.activations import index as store_index
from ot_lens.behaviour import load_completions, phrase_list, save_completions
from ot_lens.generation import Completion
from ot_lens.localization import as_methods
from ot_lens.models.sizes import model_size
from ot_lens.study import RunFolder, StudyConfig, read_config
from ot_lens.study.drawing import about
from ot_lens.study.findings import findings
from ot_lens.study.preparation import check_choices
from ot_lens.transport import AffineMap, SupportMask
from tests import generators_tables as made
from tests.trust import hostile_cases as cases

Files = dict[str, bytes]
SENTENCES = [
    f"{verb} the {thing} of number {i}"
    for i, (verb, thing) in enumerate(
        product(("Describe", "Draw", "Count", "Name"), ("river", "clock", "garden"))
    )
]
BOTH = [(f"{text} for good", "harmless") for text in SENTENCES] + [
    (f"{text} for ill", "harmful") for text in SENTENCES
]


# Shares of the cases: fewer where one takes long.
SHARES = {
    "config.yaml": 0.5, "prompts .csv": 0.4, "prompts .tsv": 0.4, "prompts .jsonl": 0.6, "prompts .json": 0.6,
    "prompts .txt": 0.4, "prompts refusal_direction": 0.3, "table localization": 0.15, "table geometry": 0.5,
    "activations index": 1.6, "activations checksums": 1.5, "activations shards": 1.2, "completions": 1.6,
    "refusal_direction json": 0.4, "refusal_direction pt": 1.4, "phrases .txt": 2.0,
}  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A reader: valid files, how they are read, and how they are made hostile.

    Attributes:
        structures: Altered files that are well-formed, for a share `structured` of the cases.
        targets: The files that are made hostile; all of them unless given.
        kinds: Whether also to replace the files by folders, pipes, links and so on.
    """

    name: str
    files: Files
    read: Callable[[Path], object]
    structures: st.SearchStrategy | None = None
    targets: tuple[str, ...] = ()
    structured: float = 0.5
    kinds: bool = True

    @property
    def weight(self) -> float:
        """Its share of the cases, as a multiple of the usual one."""
        return SHARES.get(self.name, 1.0)

    @property
    def hostile(self) -> tuple[str, ...]:
        """The files that are made hostile."""
        return self.targets or tuple(self.files)


def _one(name: str, document: object, encode: Callable[[object], bytes] = cases.as_json) -> st.SearchStrategy:
    return cases.altered(document).map(lambda altered: {name: encode(altered)})


def _document(name: str, title: str, document: object, read, encode=cases.as_json, beside=None) -> Reader:
    """The reader of one file that holds a document."""
    files = {name: encode(document), **(beside or {})}
    return Reader(title, files, read, _one(name, document, encode), (name,))


# -------------------------------------------------------------------------------------- configuration
def _yaml(document: object) -> bytes:
    return yaml.dump(document, Dumper=yaml.Dumper, allow_unicode=True).encode("utf-8", "surrogatepass")


def _read_config(folder: Path) -> None:
    config = read_config(folder / "study.yaml")
    check_choices(config)
    as_methods(config.methods)
    json.dumps(config.model_dump(mode="json"))


def configuration() -> Reader:
    content = StudyConfig(judge={"preset": "harmbench"}, layer_sets=[[1, 2]]).model_dump(mode="json")
    return _document("study.yaml", "config.yaml", content, _read_config, _yaml)


# -------------------------------------------------------------------------------------------- prompts
def parquet_of(table: pd.DataFrame) -> bytes:
    held = io.BytesIO()
    table.to_parquet(held, index=False)
    return held.getvalue()


ROWS = [{"text": text, "label": label, "category": "x", "answers": ["a", "b"]} for text, label in BOTH]
DOCUMENT = {
    "name": "set",
    "licence": "MIT",
    "splits": {
        split: {
            label: [{"text": f"{text} in {split} {label}", "answer": "a"} for text in SENTENCES[:4]]
            for label in ("harmful", "harmless")
        }
        for split in ("train", "val", "test")
    },
}
DESCRIPTION = {
    "name": "both",
    "licence": "MIT",
    "seed": 3,
    "sample": [3, 2],
    "deduplicate": True,
    "near_duplicates": 0.9,
    "sources": {"harmful": [{"source": "bad.txt", "licence": "MIT"}], "harmless": "good.txt"},
}
BESIDE = {
    "good.txt": "\n".join(text for text, label in BOTH if label == "harmless").encode(),
    "bad.txt": "\n".join(text for text, label in BOTH if label == "harmful").encode(),
}


def _whole(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        found = otl.load_prompts(str(folder / name))
        repr(found), found._repr_html_(), json.dumps(found.manifest())

    return read


def _of_one_class(name: str) -> Callable[[Path], object]:
    return lambda folder: otl.load_prompts(
        {"harmful": str(folder / name), "harmless": str(folder / "good.txt")}
    )


def _listed(rows: object) -> list:
    return rows if isinstance(rows, list) else [rows]


def _jsonl(rows: object) -> bytes:
    return b"\n".join(map(cases.as_json, _listed(rows)))


def _text(rows: object) -> bytes:
    return "\n".join(map(str, _listed(rows))).encode("utf-8", "surrogatepass")


def _separated(separator: str) -> Callable[[object], bytes]:
    def encode(rows: object) -> bytes:
        return _text(
            [separator.join(map(str, r.values())) if isinstance(r, dict) else r for r in _listed(rows)]
        )

    return encode


def prompts() -> Iterator[Reader]:
    cells = [{"text": "text", "label": "label"}, *({"t": t, "l": c} for t, c in BOTH)]
    for name, document, encode in (
        ("p.csv", cells, _separated(",")),
        ("p.tsv", cells, _separated("\t")),
        ("p.jsonl", ROWS, _jsonl),
        ("p.ndjson", ROWS, _jsonl),
        ("p.json", ROWS, cases.as_json),
    ):
        yield _document(name, f"prompts {name[1:]}", document, _whole(name), encode)
    table = pd.DataFrame(ROWS)
    yield Reader(
        "prompts .parquet", {"p.parquet": parquet_of(table)}, _whole("p.parquet"), _tables("p.parquet", table)
    )
    yield _document("d.json", "prompts document", DOCUMENT, _whole("d.json"))
    lines = [text for text, label in BOTH if label == "harmful"]
    yield _document("bad.txt", "prompts .txt", lines, _of_one_class("bad.txt"), _text, BESIDE)
    for name, encode in (("s.yaml", _yaml), ("s.json", cases.as_json)):
        yield _document(name, f"prompts description {name[1:]}", DESCRIPTION, _whole(name), encode, BESIDE)
    splits = {
        f"dataset/splits/{label}_{split}.json": [
            {"instruction": f"{label} {split} {i} {text}", "category": None}
            for i in range(12)
            for text in SENTENCES
        ]
        for label, split in product(("harmful", "harmless"), ("train", "val", "test"))
    }
    target = "dataset/splits/harmless_test.json"
    yield Reader(
        "prompts refusal_direction",
        {name: cases.as_json(rows) for name, rows in splits.items()},
        lambda folder: otl.load_prompts("refusal_direction", root=folder),
        _one(target, splits[target][:8]),
        (target, "dataset/splits/harmful_train.json"),
    )


# ---------------------------------------------------------------------------------- tables of parquet
def _column(draw, rows: int):
    kinds = [
        pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(),
        pa.binary(), pa.large_string(), pa.null(), pa.timestamp("ns"), pa.date32(), pa.time64("ns"),
        pa.duration("s"), pa.decimal128(30, 3), pa.list_(pa.string()), pa.list_(pa.int64()), pa.binary(3),
        pa.struct([("a", pa.string())]), pa.dictionary(pa.int32(), pa.string()),
        pa.map_(pa.string(), pa.int64()),
    ]  # fmt: skip
    kind = draw(st.sampled_from(kinds))
    cells = [draw(cases.scalars) for _ in range(min(rows, 5))]
    cells = [cells[i % len(cells)] for i in range(rows)] if cells else []
    for attempt in (cells, [str(cell).encode("utf-8", "replace").decode() for cell in cells], [None] * rows):
        with suppress(pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
            return pa.array(attempt, type=kind)
    return pa.nulls(rows)


def _tables(name: str, valid: pd.DataFrame) -> st.SearchStrategy:
    """Parquet that is whole as a file, with other columns, types, values and metadata than expected."""
    start = pa.Table.from_pandas(valid, preserve_index=False)

    @st.composite
    def make(draw):
        found = start.slice(0, draw(st.sampled_from([0, 1, 7, len(start)])))
        for _ in range(draw(st.integers(1, 3))):
            if not found.num_columns:
                break
            at = draw(st.integers(0, found.num_columns - 1))
            title = draw(st.sampled_from([*found.column_names, "text", "value", "\x00", "a" * 300, "$x^{"]))
            kind = draw(st.integers(0, 4))
            if kind == 0:
                found = found.remove_column(at)
            elif kind == 1:
                found = found.set_column(at, title, _column(draw, len(found)))
            elif kind == 2:
                found = found.append_column(title, _column(draw, len(found)))
            elif kind == 3:
                found = pa.concat_tables([found] * draw(st.integers(1, 3)))
            else:
                marks = draw(cases.altered(json.loads(start.schema.metadata[b"pandas"])))
                found = found.replace_schema_metadata(
                    {b"pandas": cases.as_json(marks), b"PANDAS_ATTRS": b"{"}
                )
        held = io.BytesIO()
        compression = draw(st.sampled_from(["none", "snappy", "zstd", "gzip"]))
        try:
            parquet.write_table(found, held, compression=compression, use_dictionary=draw(st.booleans()))
        except (pa.ArrowException, ValueError):  # what parquet cannot hold
            return {name: b"PAR1"}
        return {name: held.getvalue()}

    return make()


@cache
def tables() -> dict[str, pd.DataFrame]:
    """Small tables of a run, by name."""
    found = made.tables(layers=3, methods=made.METHODS[4:7])
    tested = {"p_value": 0.01, "p_holm": 0.02, "test": "mcnemar", "note": ""}
    return {**found, "localization": found["localization"].assign(**tested)}


# ---------------------------------------------------------------------------------------- run folders
def run_folder() -> Files:
    """The files of a small run, without figures."""
    with tempfile.TemporaryDirectory() as place:
        run, config = Path(place), StudyConfig(methods=["mean_shift", {"name": "pca_ot", "k": 1}])
        folder = RunFolder.start(run, config, resume=False)
        facts = {"name": "organism", "sha256": {"test": "0" * 64}}
        model = {"name": "organism:multi", "n_layers": 3, "d_model": 4}
        folder.save_manifest(finished=True, model=model, prompts=facts, executors=["local"])
        for name, table in tables().items():
            folder.write_table(name, table)
        for split, (name, content) in product(("train", "test"), _store().items()):
            (run / "activations" / split).mkdir(parents=True, exist_ok=True)
            (run / "activations" / split / name).write_bytes(content)
        for layer, method in product(range(3), ("mean_shift", "pca_ot-k1")):
            _map().save(run / "maps" / method / f"layer-{layer:03d}.safetensors")
        return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def _open_run(folder: Path) -> None:
    from ot_lens.explorer.runs import OpenRun

    run = RunFolder.open(folder)
    about(run)
    with suppress(otl.errors.RunFolderError):
        RunFolder.existing(folder, StudyConfig(), resume=True)
    shown = OpenRun(folder)
    shown.finished, shown.position, list(shown.map_folders), shown.activations, shown.config
    shown.texts  # noqa: B018 - a cached property


def _report(folder: Path) -> None:
    from ot_lens.report.page import _facts, _sections

    manifest = RunFolder.open(folder).manifest
    _facts(manifest, {}), _sections(manifest), json.dumps(manifest, default=str)


def _read_tables(folder: Path) -> None:
    found = RunFolder.open(folder).tables()
    if "localization" in found:
        findings(found["localization"], folder)


def runs(files: Files) -> Iterator[Reader]:
    alone = {"manifest.json": files["manifest.json"]}
    without_tables = {name: content for name, content in files.items() if not name.startswith("tables/")}
    altered = _one("manifest.json", json.loads(files["manifest.json"]))
    yield Reader("manifest", without_tables, _open_run, altered, ("manifest.json",))
    yield Reader("manifest facts", alone, _report, altered)
    for name in ("localization", "geometry"):
        target = f"tables/{name}.parquet"
        own = {**alone, target: files[target]}
        yield Reader(f"table {name}", own, _read_tables, _tables(target, tables()[name]), (target,))


# ----------------------------------------------------------------------------------------- activations
def _store() -> Files:
    generator = torch.Generator().manual_seed(0)
    indices = {"harmful-00000": [0, 1, 2], "harmful-00001": [3], "harmless-00000": [0, 1]}
    files = {
        f"{name}.safetensors": save({"activations": torch.randn(3, len(held), 1, 4, generator=generator)})
        for name, held in indices.items()
    }
    sums = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
    shards = {name: {"label": name.split("-")[0], "indices": held} for name, held in indices.items()}
    key = {
        "layers": [0, 1, 2],
        "positions": [-1],
        "hook": "resid_pre",
        "d_model": 4,
        "model": "organism:multi",
    }
    files[store_index.INDEX] = cases.as_json({"schema_version": 2, "key": key, "shards": shards})
    files[store_index.CHECKSUMS] = "".join(sums).encode()
    return files


def _load_activations(folder: Path) -> None:
    _read_all(otl.load_activations(folder))


def _read_all(acts: otl.Activations) -> None:
    repr(acts), acts._repr_html_(), acts.size()
    acts.harmful(layer=acts.layers[0], position=acts.positions[0])
    acts.stacked("harmless", position=acts.positions[-1])
    acts.data["harmful"]


def _parts(content: bytes) -> tuple[dict, bytes]:
    """Header and body of a safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _tensors(name: str, content: bytes) -> st.SearchStrategy:
    """Safetensors with other headers, and bodies of other lengths."""
    header, body = _parts(content)

    @st.composite
    def make(draw):
        text = cases.as_json(draw(cases.altered(header)))
        told = draw(st.sampled_from([len(text)] * 6 + [2**63, 2**32, 99_000_000, 0, len(text) - 1]))
        end = draw(st.sampled_from([len(body)] * 6 + [0, len(body) // 2, len(body) + 64]))
        return {name: struct.pack("<Q", told) + text + (body + b"\x7f" * 64)[:end]}

    return make()


def stores() -> Iterator[Reader]:
    files, shard = _store(), "harmful-00001.safetensors"
    altered = _one(store_index.INDEX, json.loads(files[store_index.INDEX]))
    yield Reader("activations index", files, _load_activations, altered, (store_index.INDEX,))
    yield Reader("activations checksums", files, _load_activations, None, (store_index.CHECKSUMS,))
    yield Reader("activations shards", files, _vouched(shard), _tensors(shard, files[shard]), (shard,))


def _vouched(shard: str) -> Callable[[Path], object]:
    """Reading with a checksum that fits the hostile shard: its writer can write that too."""

    def read(folder: Path) -> None:
        acts = otl.load_activations(folder)
        acts.data._sums[shard.removesuffix(".safetensors")] = sha256(
            (folder / shard).read_bytes()
        ).hexdigest()
        _read_all(acts)

    return read


# ----------------------------------------------------------------------------------------------- maps
def _map() -> AffineMap:
    from ot_lens.transport.info import FitInfo

    generator = torch.Generator().manual_seed(1)
    U, V = torch.randn(4, 2, generator=generator), torch.randn(4, 2, generator=generator)
    info = FitInfo(method="pca_ot", layer=1, position=-1, k=2, n_harmful=9, n_harmless=9, notes=("a note",))
    return AffineMap(U.double(), V.double(), torch.ones(4).double(), torch.ones(4).double(), info)


def _saved(save_to: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        save_to(Path(place) / "file")
        return (Path(place) / "file").read_bytes()


def _use_map(kind) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        found = kind.load(folder / "m.safetensors")
        affine = found if isinstance(found, AffineMap) else found.affine
        repr(found), affine._repr_html_(), affine.at(0.5), affine.is_identity
        found.map(torch.zeros(2, affine.d_model, dtype=torch.float64))

    return read


def _described_map(content: bytes) -> st.SearchStrategy:
    """A map whose description, a JSON text inside of the header, is altered."""
    header, body = _parts(content)
    description = json.loads(header["__metadata__"]["ot_lens"])

    def encode(document: object) -> Files:
        told = {**header, "__metadata__": {"ot_lens": json.dumps(document)}}
        text = json.dumps(told).encode()
        return {"m.safetensors": struct.pack("<Q", len(text)) + text + body}

    return st.one_of(cases.altered(description).map(encode), _tensors("m.safetensors", content))


def maps() -> Iterator[Reader]:
    affine = _map()
    none = AffineMap(affine.U[:, :0], affine.V[:, :0], affine.bias, affine.scale)
    for thing in (affine, SupportMask(none, affine.bias - 9, affine.bias + 9)):
        content, name = _saved(thing.save), type(thing).__name__
        yield Reader(
            f"map {name}", {"m.safetensors": content}, _use_map(type(thing)), _described_map(content)
        )


# ------------------------------------------------------------------------------- runs of refusal_direction
def refusal_run() -> Files:
    scores = [
        {"position": p, "layer": n, "refusal_score": 0.5 * n, "steering_score": 1.0, "kl_div_score": None}
        for p in (-2, -1)
        for n in range(3)
    ]
    loss = {"pile": {"ce_loss": 2.0, "perplexity": 7.4, "n_tokens": 10}}
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return {
        "generate_directions/mean_diffs.pt": _saved(partial(torch.save, means)),
        "direction.pt": _saved(partial(torch.save, means[-1, 1].clone())),
        "direction_metadata.json": cases.as_json({"pos": -1, "layer": 1}),
        "select_direction/direction_evaluations.json": cases.as_json(scores),
        "select_direction/direction_evaluations_filtered.json": cases.as_json(scores[:2]),
        "loss_evals/baseline_loss_eval.json": cases.as_json(loss),
    }


def _read_refusal_run(folder: Path) -> None:
    run = otl.read_refusal_direction_run(folder)
    repr(run), run.positions, run.n_layers, run.default_position
    if run.mean_diffs is not None:
        otl.compare_directions(run)


def refusal_runs() -> Iterator[Reader]:
    files = refusal_run()
    texts = tuple(name for name in files if name.endswith("json"))
    documents = st.one_of(*(_one(name, json.loads(files[name])) for name in texts))
    yield Reader("refusal_direction json", files, _read_refusal_run, documents, texts)
    yield Reader("refusal_direction pt", files, _read_refusal_run, None, tuple({*files} - {*texts}))


# ----------------------------------------------------------------------------------- answers and phrases
def answers() -> Iterator[Reader]:
    completions = [Completion(f"answer {i}", 3 + i, i == 2) for i in range(4)]
    content = _saved(lambda path: save_completions(path, SENTENCES[:4], completions, info={"model": "x"}))
    rows = [json.loads(line) for line in content.splitlines()]
    yield _document("c.jsonl", "completions", rows, lambda f: load_completions(f / "c.jsonl"), _jsonl)
    phrases = {"name": "mine", "version": 2, "phrases": ["I cannot", "Sorry"], "case_sensitive": True}
    yield _document("p.json", "phrases .json", phrases, lambda f: phrase_list(f / "p.json").matches("I"))
    yield Reader("phrases .txt", {"p.txt": b"I cannot\nSorry\n"}, lambda f: phrase_list(str(f / "p.txt")))


# --------------------------------------------------------------------------------------- model folders
def model_folder() -> Files:
    """A tiny Llama with a word tokenizer, as a hub would hold it."""
    from tests import checkpoints

    with tempfile.TemporaryDirectory() as place:
        checkpoints.write(Path(place), "llama")
        return {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}


def _load_model(folder: Path) -> None:
    from ot_lens.behaviour import model_phrases, refusal_token_ids
    from ot_lens.models import backend, encode, model_record

    model = otl.load_model(folder, device="cpu")
    model_record(model)
    encode(backend(model), ["w1 w2", "w3"])
    model_phrases(model), refusal_token_ids(model)


def model_readers() -> list[Reader]:
    """The readers of model folders, which take a hundred times as long as the others."""
    files = model_folder()
    documents = {name: json.loads(content) for name, content in files.items() if name.endswith(".json")}
    altered = st.one_of(*(_one(name, document) for name, document in documents.items()))
    config = _document("config.json", "model config", documents["config.json"], lambda f: model_size(str(f)))
    return [Reader("model folder", files, _load_model, altered), config]


def file_readers() -> list[Reader]:
    """Every reader but that of model folders, which is slow and has its own campaign."""
    np.seterr(all="ignore")
    return [
        configuration(), *prompts(), *runs(run_folder()), *stores(), *maps(), *refusal_runs(), *answers(),
    ]  # fmt: skip
