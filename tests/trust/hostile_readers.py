"""Every reader of ot_lens, with valid files to begin from and structures to alter."""

import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
import yaml

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
from ot_lens.transport import AffineMap, restrict_to_support
from tests.trust import hostile_cases as cases

Files = dict[str, bytes]
Structures = Callable[[random.Random], Files]
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
    """A reader: valid files, how they are read, and how they are made hostile.

    Attributes:
        structures: Altered files that are well-formed, for half of the cases.
        targets: The files that are made hostile; all of them unless given.
    """

    name: str
    files: Files
    read: Callable[[Path], object]
    structures: Structures | None = None
    targets: tuple[str, ...] = ()

    @property
    def hostile(self) -> tuple[str, ...]:
        """The files that are made hostile."""
        return self.targets or tuple(self.files)


def _altered(documents: dict[str, object], encode: Callable[[object], bytes] = cases.as_json) -> Structures:
    """One of several documents, altered."""

    def make(draw: random.Random) -> Files:
        name = draw.choice(list(documents))
        return {name: encode(cases.altered(documents[name], draw))}

    return make


def _document(name: str, title: str, document: object, read, encode=cases.as_json, beside=None) -> Reader:
    """The reader of one file that holds a document."""
    files = {name: encode(document), **(beside or {})}
    return Reader(title, files, read, _altered({name: document}, encode), (name,))


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
    return b"\n".join(map(cases.as_json, rows if isinstance(rows, list) else [rows]))


def prompts() -> Iterator[Reader]:
    for separator, name in ((",", "p.csv"), ("\t", "p.tsv")):
        lines = [f"text{separator}label", *(f"{text}{separator}{label}" for text, label in BOTH)]
        yield Reader(f"prompts {name[1:]}", {name: "\n".join(lines).encode()}, _whole(name))
    for name, encode in (("p.jsonl", _jsonl), ("p.ndjson", _jsonl), ("p.json", cases.as_json)):
        yield _document(name, f"prompts {name[1:]}", ROWS, _whole(name), encode)
    table = pd.DataFrame(ROWS)
    content = {"p.parquet": cases.as_parquet(pa.Table.from_pandas(table))}
    yield Reader("prompts .parquet", content, _whole("p.parquet"), _odd("p.parquet", table))
    yield _document("d.json", "prompts document", DOCUMENT, _whole("d.json"))
    yield Reader("prompts .txt", BESIDE, _of_one_class("bad.txt"), targets=("bad.txt",))
    for name, encode in (("s.yaml", _yaml), ("s.json", cases.as_json)):
        yield _document(name, f"prompts description {name[1:]}", DESCRIPTION, _whole(name), encode, BESIDE)


# ---------------------------------------------------------------------------------- tables of parquet
def _odd(name: str, table: pd.DataFrame) -> Structures:
    return lambda draw: {name: cases.odd_table(table, draw)}


# ---------------------------------------------------------------------------------------- run folders
def run_folder(run: Path) -> Files:
    """The files of a finished run, without figures and report."""
    paths = [path for path in run.rglob("*") if path.is_file() and "figures" not in path.parts]
    return {str(p.relative_to(run)): p.read_bytes() for p in paths if p.suffix != ".html"}


def _open_run(folder: Path) -> None:
    from ot_lens.explorer.runs import OpenRun

    run = RunFolder.open(folder)
    about(run)
    with suppress(otl.errors.RunFolderError):
        RunFolder.existing(folder, StudyConfig(), resume=True)
    shown = OpenRun(folder)
    shown.finished, shown.position, list(shown.map_folders), shown.activations, shown.config
    shown.texts  # noqa: B018 - a cached property


def _read_tables(folder: Path) -> None:
    found = RunFolder.open(folder).tables()
    if "localization" in found:
        findings(found, folder)


def runs(files: Files) -> Iterator[Reader]:
    alone = {"manifest.json": files["manifest.json"]}
    without_tables = {name: content for name, content in files.items() if not name.startswith("tables/")}
    altered = _altered({"manifest.json": json.loads(files["manifest.json"])})
    yield Reader("manifest", without_tables, _open_run, altered, ("manifest.json",))
    for name in ("localization", "geometry"):
        target = f"tables/{name}.parquet"
        own = {**alone, target: files[target]}
        table = pd.read_parquet(io.BytesIO(files[target]))
        yield Reader(f"table {name}", own, _read_tables, _odd(target, table), (target,))


# ----------------------------------------------------------------------------------------- activations
def _load_activations(folder: Path) -> None:
    _read_all(otl.load_activations(folder))


def _read_all(acts: otl.Activations) -> None:
    repr(acts), acts._repr_html_(), acts.size()
    acts.harmful(layer=acts.layers[0], position=acts.positions[0])
    acts.stacked("harmless", position=acts.positions[-1])
    acts.data["harmful"]


def stores(run: Files) -> Iterator[Reader]:
    store, shard = "activations/train/", "harmful-00001.safetensors"
    files = {name.removeprefix(store): run[name] for name in run if name.startswith(store)}
    altered = _altered({store_index.INDEX: json.loads(files[store_index.INDEX])})
    yield Reader("activations index", files, _load_activations, altered, (store_index.INDEX,))
    yield Reader("activations checksums", files, _load_activations, None, (store_index.CHECKSUMS,))
    yield Reader("activations shards", files, _vouched(shard), None, (shard,))


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


def maps() -> Iterator[Reader]:
    H, S = (torch.randn(9, 4, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2))
    affine = otl.fit_linear_act(H, S)
    for thing in (otl.fit_pca_ot(H, S, k=2), restrict_to_support(affine, H)):
        content, name = _saved(thing.save), type(thing).__name__
        yield Reader(f"map {name}", {"m.safetensors": content}, _use_map(type(thing)))


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
    documents = {name: json.loads(files[name]) for name in texts}
    yield Reader("refusal_direction json", files, _read_refusal_run, _altered(documents), texts)
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


def model_readers(_run: Path) -> list[Reader]:
    """The readers of model folders, which take a hundred times as long as the others."""
    files = model_folder()
    documents = {name: json.loads(content) for name, content in files.items() if name.endswith(".json")}
    config = _document("config.json", "model config", documents["config.json"], lambda f: model_size(str(f)))
    return [Reader("model folder", files, _load_model, _altered(documents)), config]


def file_readers(run: Path) -> list[Reader]:
    """Every reader but that of model folders, which is slow and has its own campaign."""
    files = run_folder(run)
    return [
        configuration(), *prompts(), *runs(files), *stores(files), *maps(), *refusal_runs(), *answers(),
    ]  # fmt: skip
