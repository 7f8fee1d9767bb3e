"""Every reader of ot_lens, with valid files to begin from and structures to alter."""

import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import save

import ot_lens as otl
from ot_lens.activations import index as store_index
from ot_lens.behaviour import load_completions, phrase_list, save_completions
from ot_lens.generation import Completion
from ot_lens.localization import as_methods
from ot_lens.study import RunFolder, StudyConfig, read_config
from ot_lens.study.checks import check_choices
from ot_lens.study.drawing import about
from ot_lens.study.findings import findings
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


@dataclass(frozen=True)
class Reader:
    """A reader: valid files, what of them is made hostile, and how they are read."""

    name: str
    files: Files
    read: Callable[[Path], object]
    structures: st.SearchStrategy | None = None
    targets: tuple[str, ...] = ()

    @property
    def weight(self) -> float:
        """Its share of the cases, as a multiple of the usual one."""
        return SHARES.get(self.name, 1.0)

    @property
    def hostile(self) -> tuple[str, ...]:
        """The files that are made hostile."""
        return self.targets or tuple(self.files)


def _one(name: str, document: object, encode: Callable[[object], bytes] = cases.as_json) -> st.SearchStrategy:
    return cases.altered(document).map(lambda found: {name: encode(found)})


# -------------------------------------------------------------------------------------- configuration
def _yaml(document: object) -> bytes:
    return yaml.dump(document, Dumper=yaml.Dumper, allow_unicode=True).encode("utf-8", "surrogatepass")


def _read_config(folder: Path) -> None:
    config = read_config(folder / "study.yaml")
    check_choices(config)
    as_methods(config.methods)
    json.dumps(config.model_dump(mode="json"))


def configurations() -> Iterator[Reader]:
    content = StudyConfig(judge={"preset": "harmbench"}, layer_sets=[[1, 2]]).model_dump(mode="json")
    text = otl.study.config.commented_yaml() if hasattr(otl, "study") else yaml.safe_dump(content)
    files = {"study.yaml": text.encode()}
    yield Reader("config.yaml", files, _read_config, _one("study.yaml", content, _yaml))


# -------------------------------------------------------------------------------------------- prompts
def _csv(separator: str = ",") -> bytes:
    return "\n".join([separator.join(("text", "label")), *(separator.join(row) for row in BOTH)]).encode()


def _parquet(table: pd.DataFrame) -> bytes:
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


def _jsonl(rows: object) -> bytes:
    return b"\n".join(cases.as_json(row) for row in rows) if isinstance(rows, list) else cases.as_json(rows)


def _text(rows: object) -> bytes:
    return "\n".join(map(str, rows if isinstance(rows, list) else [rows])).encode("utf-8", "surrogatepass")


def _cells(rows: object) -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    return "\n".join(",".join(map(str, r.values())) if isinstance(r, dict) else str(r) for r in rows).encode(
        "utf-8", "surrogatepass"
    )


def prompts() -> Iterator[Reader]:
    tables = {
        "p.csv": (_csv(), _cells, [{"text": "text", "label": "label"}, *({"t": t, "l": c} for t, c in BOTH)]),
        "p.tsv": (_csv("\t"), None, None),
        "p.jsonl": (_jsonl(ROWS), _jsonl, ROWS),
        "p.ndjson": (_jsonl(ROWS), None, None),
        "p.json": (cases.as_json(ROWS), cases.as_json, ROWS),
        "p.parquet": (_parquet(pd.DataFrame(ROWS)), None, None),
    }
    for name, (content, encode, document) in tables.items():
        structures = _tables(name) if name == "p.parquet" else None
        if document is not None:
            structures = _one(name, document, encode)
        yield Reader(f"prompts {name[1:]}", {name: content}, _whole(name), structures)
    yield Reader(
        "prompts document", {"d.json": cases.as_json(DOCUMENT)}, _whole("d.json"), _one("d.json", DOCUMENT)
    )
    lines = [text for text, label in BOTH if label == "harmful"]
    yield Reader(
        "prompts .txt",
        {"bad.txt": BESIDE["bad.txt"], "good.txt": BESIDE["good.txt"]},
        _of_one_class("bad.txt"),
        _one("bad.txt", lines, _text),
        targets=("bad.txt",),
    )
    for name, encode in (("s.yaml", _yaml), ("s.json", cases.as_json)):
        files = {name: encode(DESCRIPTION), **BESIDE}
        yield Reader(
            f"prompts description {name[1:]}",
            files,
            _whole(name),
            _one(name, DESCRIPTION, encode),
            (name,),
        )
    yield _presets()


def _presets() -> Reader:
    splits = {
        f"dataset/splits/{label}_{split}.json": cases.as_json(
            [
                {"instruction": f"{label} {split} {i} {text}", "category": None}
                for i in range(12)
                for text in SENTENCES
            ]
        )
        for label in ("harmful", "harmless")
        for split in ("train", "val", "test")
    }
    target = "dataset/splits/harmless_test.json"
    document = json.loads(splits[target])[:8]
    return Reader(
        "prompts refusal_direction",
        splits,
        lambda folder: otl.load_prompts("refusal_direction", root=folder),
        _one(target, document),
        (target, "dataset/splits/harmful_train.json"),
    )


# ---------------------------------------------------------------------------------- tables of parquet
def _kinds() -> list:
    import pyarrow as pa

    return [
        pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(),
        pa.binary(), pa.large_string(), pa.null(), pa.timestamp("ns"), pa.date32(), pa.time64("ns"),
        pa.duration("s"), pa.decimal128(30, 3), pa.list_(pa.string()), pa.list_(pa.int64()), pa.binary(3),
        pa.struct([("a", pa.string())]), pa.dictionary(pa.int32(), pa.string()),
        pa.map_(pa.string(), pa.int64()),
    ]  # fmt: skip


def _column(draw, rows: int):
    import pyarrow as pa

    kind = draw(st.sampled_from(_kinds()))
    cells = [draw(cases.scalars) for _ in range(min(rows, 5))]
    cells = [cells[i % len(cells)] for i in range(rows)] if cells else []
    for attempt in (cells, [str(cell).encode("utf-8", "replace").decode() for cell in cells], [None] * rows):
        with suppress(pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
            return pa.array(attempt, type=kind)
    return pa.nulls(rows)


def _tables(name: str, valid: pd.DataFrame | None = None) -> st.SearchStrategy:
    """Parquet that is whole as a file, with other columns, types, values and metadata than expected."""
    import pyarrow as pa
    from pyarrow import parquet

    start = pa.Table.from_pandas(pd.DataFrame(ROWS) if valid is None else valid, preserve_index=False)

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


def tables() -> dict[str, pd.DataFrame]:
    """Small tables of a run, by name."""
    layers = 3
    points, ellipses = made.plane(layers, n=12)
    return {
        "localization": made.localization(layers, methods=made.METHODS[:1] + made.METHODS[5:7], n=16).assign(
            p_value=0.01, p_holm=0.02, test="mcnemar", note=""
        ),
        "geometry": made.geometry(layers),
        "spectra": made.spectra(layers, components=6),
        "cosines": made.cosines(layers),
        "plane": points,
        "plane_ellipses": ellipses,
        "class_angles": made.class_angles(layers),
        "layer_angles": made.layer_angles(layers),
        "map_quality": made.map_quality(layers),
        "visibility": made.visibility(layers),
    }


# ---------------------------------------------------------------------------------------- run folders
def run_folder() -> Files:
    """The files of a small run, without figures."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        folder = RunFolder.start(
            run, StudyConfig(methods=["mean_shift", {"name": "pca_ot", "k": 1}]), resume=False
        )
        folder.save_manifest(
            finished=True,
            model={"name": "organism:multi", "n_layers": 3, "d_model": 4},
            prompts={"name": "organism", "sha256": {"test": "0" * 64}},
            executors=["local"],
        )
        for name, table in tables().items():
            folder.write_table(name, table)
        for split in ("train", "test"):
            for name, content in _store().items():
                (run / "activations" / split).mkdir(parents=True, exist_ok=True)
                (run / "activations" / split / name).write_bytes(content)
        for layer in range(3):
            for method in ("mean_shift", "pca_ot-k1"):
                _map().save(run / "maps" / method / f"layer-{layer:03d}.safetensors")
        return {
            str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()
        }


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
    small = {name: content for name, content in files.items() if not name.startswith("tables/")}
    manifest = json.loads(files["manifest.json"])
    yield Reader("manifest", small, _open_run, _one("manifest.json", manifest), ("manifest.json",))
    yield Reader(
        "manifest facts",
        {"manifest.json": files["manifest.json"]},
        _report,
        _one("manifest.json", manifest),
    )
    for name in ("localization", "geometry"):
        target = f"tables/{name}.parquet"
        own = {"manifest.json": files["manifest.json"], target: files[target]}
        yield Reader(f"table {name}", own, _read_tables, _tables(target, tables()[name]), (target,))


# ----------------------------------------------------------------------------------------- activations
def _store() -> Files:
    from hashlib import sha256

    generator = torch.Generator().manual_seed(0)
    shards = {"harmful-00000": [0, 1, 2], "harmful-00001": [3], "harmless-00000": [0, 1]}
    files = {
        f"{name}.safetensors": save({"activations": torch.randn(3, len(held), 1, 4, generator=generator)})
        for name, held in shards.items()
    }
    entries = {name: {"label": name.split("-")[0], "indices": held} for name, held in shards.items()}
    key = {
        "layers": [0, 1, 2],
        "positions": [-1],
        "hook": "resid_pre",
        "d_model": 4,
        "model": "organism:multi",
    }
    files[store_index.INDEX] = cases.as_json({"schema_version": 2, "key": key, "shards": entries})
    sums = [
        f"{sha256(content).hexdigest()}  {name}\n"
        for name, content in files.items()
        if name.endswith("tensors")
    ]
    files[store_index.CHECKSUMS] = "".join(sums).encode()
    return files


def _load_activations(folder: Path) -> None:
    acts = otl.load_activations(folder)
    repr(acts), acts._repr_html_(), acts.size()
    acts.harmful(layer=acts.layers[0], position=acts.positions[0])
    acts.stacked("harmless", position=acts.positions[-1])
    acts.data["harmful"]


def _tensors(name: str, content: bytes) -> st.SearchStrategy:
    """Safetensors with other headers, and bodies of other lengths."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]

    @st.composite
    def make(draw):
        text = cases.as_json(draw(cases.altered(header)))
        told = draw(st.sampled_from([len(text)] * 6 + [2**63, 2**32, 99_000_000, 0, len(text) - 1]))
        end = draw(st.sampled_from([len(body)] * 6 + [0, len(body) // 2, len(body) + 64]))
        return {name: struct.pack("<Q", told) + text + (body + b"\x7f" * 64)[:end]}

    return make()


def stores() -> Iterator[Reader]:
    files = _store()
    index = json.loads(files[store_index.INDEX])
    shard = "harmful-00001.safetensors"
    yield Reader(
        "activations index",
        files,
        _load_activations,
        _one(store_index.INDEX, index),
        (store_index.INDEX,),
    )
    yield Reader("activations checksums", files, _load_activations, None, (store_index.CHECKSUMS,))
    yield Reader("activations shards", files, _vouched(shard), _tensors(shard, files[shard]), (shard,))


def _vouched(shard: str) -> Callable[[Path], object]:
    """Reading with a checksum that fits the hostile shard: its writer can write that too."""
    from hashlib import sha256

    def read(folder: Path) -> None:
        acts = otl.load_activations(folder)
        acts.data._sums[shard.removesuffix(".safetensors")] = sha256(
            (folder / shard).read_bytes()
        ).hexdigest()
        _read_all(acts)

    def _read_all(acts) -> None:
        repr(acts), acts.size()
        acts.harmful(layer=acts.layers[0], position=acts.positions[0])
        acts.data["harmful"]

    return read


# ----------------------------------------------------------------------------------------------- maps
def _map() -> AffineMap:
    from ot_lens.transport.info import FitInfo

    generator = torch.Generator().manual_seed(1)
    U, V = torch.randn(4, 2, generator=generator), torch.randn(4, 2, generator=generator)
    info = FitInfo(method="pca_ot", layer=1, position=-1, k=2, n_harmful=9, n_harmless=9, notes=("a note",))
    return AffineMap(U.double(), V.double(), torch.ones(4).double(), torch.ones(4).double(), info)


def _saved(thing) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        thing.save(Path(place) / "m.safetensors")
        return (Path(place) / "m.safetensors").read_bytes()


def _use_map(kind) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        found = kind.load(folder / "m.safetensors")
        affine = found if isinstance(found, AffineMap) else found.affine
        repr(found), affine._repr_html_(), affine.at(0.5), affine.is_identity
        found.map(torch.zeros(2, affine.d_model, dtype=torch.float64))

    return read


def _described_map(content: bytes) -> st.SearchStrategy:
    """A map whose description, a JSON text inside of the header, is altered."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    about_it = json.loads(header["__metadata__"]["ot_lens"])

    def encode(document: object) -> Files:
        told = {**header, "__metadata__": {"ot_lens": json.dumps(document)}}
        text = json.dumps(told).encode()
        return {"m.safetensors": struct.pack("<Q", len(text)) + text + body}

    return st.one_of(cases.altered(about_it).map(encode), _tensors("m.safetensors", content))


def maps() -> Iterator[Reader]:
    affine = _map()
    mask = SupportMask(
        AffineMap(affine.U[:, :0], affine.V[:, :0], affine.bias, affine.scale),
        affine.bias - 9,
        affine.bias + 9,
    )
    for name, thing in (("AffineMap", affine), ("SupportMask", mask)):
        content = _saved(thing)
        yield Reader(
            f"map {name}", {"m.safetensors": content}, _use_map(type(thing)), _described_map(content)
        )


# ------------------------------------------------------------------------------- runs of refusal_direction
def _pickled(tensor: torch.Tensor) -> bytes:
    held = io.BytesIO()
    torch.save(tensor, held)
    return held.getvalue()


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
        "generate_directions/mean_diffs.pt": _pickled(means),
        "direction.pt": _pickled(means[-1, 1].clone()),
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
    documents = st.one_of(
        *(_one(name, json.loads(content)) for name, content in files.items() if name.endswith("json"))
    )
    texts = tuple(name for name in files if name.endswith("json"))
    yield Reader("refusal_direction json", files, _read_refusal_run, documents, texts)
    binary = tuple(name for name in files if name.endswith("pt"))
    yield Reader("refusal_direction pt", files, _read_refusal_run, None, binary)


# ----------------------------------------------------------------------------------- answers and phrases
def answers() -> Iterator[Reader]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "c.jsonl"
        completions = [Completion(f"answer {i}", 3 + i, i == 2) for i in range(4)]
        save_completions(path, SENTENCES[:4], completions, info={"model": "organism"})
        content = path.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    yield Reader(
        "completions",
        {"c.jsonl": content},
        lambda f: load_completions(f / "c.jsonl"),
        _one("c.jsonl", rows, _jsonl),
    )
    phrases = {"name": "mine", "version": 2, "phrases": ["I cannot", "Sorry"], "case_sensitive": True}
    yield Reader(
        "phrases .json",
        {"p.json": cases.as_json(phrases)},
        lambda f: phrase_list(f / "p.json").matches("I"),
        _one("p.json", phrases),
    )
    yield Reader(
        "phrases .txt", {"p.txt": b"I cannot\nSorry\n"}, lambda f: phrase_list(str(f / "p.txt")), None
    )


# --------------------------------------------------------------------------------------- model folders
def model_folder() -> Files:
    """A tiny Llama with a word tokenizer, as a hub would hold it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests import checkpoints

    words = checkpoints.tokenizer("llama")
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with tempfile.TemporaryDirectory() as place:
        LlamaForCausalLM(config).save_pretrained(place)
        words.save_pretrained(place)
        return {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}


def _load_model(folder: Path) -> None:
    from ot_lens.behaviour import model_phrases, refusal_token_ids
    from ot_lens.models import backend, encode, model_record

    model = otl.load_model(folder, device="cpu")
    model_record(model)
    encode(backend(model), ["w1 w2", "w3"])
    model_phrases(model), refusal_token_ids(model)


def _read_architecture(folder: Path) -> None:
    from ot_lens.models.sizes import model_size

    model_size(str(folder))


def models() -> list[Reader]:
    """The readers of model folders, which take a hundred times as long as the others."""
    files = model_folder()
    made_of = {name: json.loads(files[name]) for name in files if name.endswith(".json")}
    altered = st.one_of(*(_one(name, document) for name, document in made_of.items()))
    config = {"config.json": files["config.json"]}
    return [
        Reader("model folder", files, _load_model, altered),
        Reader("model config", config, _read_architecture, _one("config.json", made_of["config.json"])),
    ]


# Shares of the cases: fewer where one takes long.
SHARES = {
    "config.yaml": 0.5, "prompts .csv": 0.4, "prompts .tsv": 0.4, "prompts .jsonl": 0.6, "prompts .json": 0.6,
    "prompts .txt": 0.4, "prompts refusal_direction": 0.3, "table localization": 0.15, "table geometry": 0.5,
    "activations index": 1.6, "activations checksums": 1.5, "activations shards": 1.2, "completions": 1.6,
    "refusal_direction json": 0.4, "refusal_direction pt": 1.4, "phrases .txt": 2.0,
}  # fmt: skip


def all_readers() -> list[Reader]:
    """Every reader but that of model folders, which is slow and has its own campaign."""
    np.seterr(all="ignore")
    return [
        *configurations(), *prompts(), *runs(run_folder()), *stores(), *maps(), *refusal_runs(), *answers(),
    ]  # fmt: skip
