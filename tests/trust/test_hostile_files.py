"""Hostile files: no reader hangs, allocates without bound, executes, writes, or fails without a name."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import ot_lens as otl
from ot_lens.errors import ConfigError, ModelError, OtLensError, PromptError, RunFolderError
from ot_lens.explorer.runs import OpenRun
from ot_lens.io.files import read_json
from ot_lens.study import RunFolder, parse_config, read_config
from tests.trust import hostile_readers as readers
from tests.trust.hostile_campaign import lay_out

SOURCES = Path(otl.__file__).parent


@pytest.mark.campaign
@pytest.mark.parametrize(("what", "count"), [("file", 4000), ("model", 2000)])
def test_every_file_is_read_or_refused_and_nothing_else_happens(
    what, count, finished_run, tmp_path, record_property
):
    """In a process of its own, whose memory is limited and whose signals are those of the command line."""
    program = [sys.executable, "-W", "ignore", "-m", "tests.trust.hostile_campaign"]
    done = subprocess.run(
        [*program, what, str(finished_run), str(tmp_path / "run"), str(count)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-2_000:])
    found = json.loads(done.stdout.splitlines()[-1])
    record_property("outcomes", found)
    for name, counts in found.items():
        assert sum(counts.values()) > counts.get("read", 0), name
    assert sum(counts.get("read", 0) for counts in found.values()) > len(found)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# -------------------------------------------------------------------------------------- configurations
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nmethods: *a", "an alias"),
        ("prompts: " + "[" * 500 + "]" * 500, "nested more than 60 deep"),
        ("seed: 2020-99-99", "month must be in 1..12"),
        ("seed: 0x" + "f" * 5000, "more than 256 digits"),
        ("seed: " + "9" * 5000, "more than 256 digits"),
        ("seed: 1" + ":59" * 2000 + ".5", "too large"),
        ('model: "\\0"', "control character U\\+0000"),
        ('model: "\\ud800"', "control character U\\+D800"),
        ("# " + "x" * 200_000, "128 KiB|0.125 MiB"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("trust_remote_code: true", "--trust-remote-code"),
    ],
)
def test_a_hostile_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(tmp_path / "c.yaml")
    assert len(str(caught.value)) < 500


def test_a_configuration_alone_runs_no_code_of_a_model(tmp_path):
    (tmp_path / "c.yaml").write_text("model: someone/model\ntrust_remote_code: true\n")
    assert read_config(tmp_path / "c.yaml", trust_remote_code=True).trust_remote_code
    (tmp_path / "c.yaml").write_text("model: someone/model\n")
    assert not read_config(tmp_path / "c.yaml", trust_remote_code=True).trust_remote_code


# --------------------------------------------------------------------------------------------- bombs
def peak_of(code: str, *arguments: str) -> tuple[str, float]:
    """What code prints in its own process, and by how many MiB the memory of the process grew."""
    script = (
        "import resource, sys; import ot_lens as otl, pyarrow.parquet, torch\n"
        "from ot_lens.errors import OtLensError\n"
        "from ot_lens.study import RunFolder\n"
        "grown = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = grown()\n"
        f"try:\n    {code}\n    print('read', end='')\n"
        "except OtLensError as error:\n    print(error, end='')\n"
        "print(f'\\n{(grown() - before) / 1024}')"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    said, grown = done.stdout.rsplit("\n", 2)[:2]
    return said, float(grown)


def test_a_table_of_a_kilobyte_does_not_become_gigabytes(tmp_path):
    codes = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 1_000_000]))
    parquet.write_table(pa.table({"text": codes}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 3_000
    (tmp_path / "good.txt").write_text("\n".join(readers.SENTENCES))
    code = "otl.load_prompts({'harmful': sys.argv[1], 'harmless': sys.argv[2]})"
    said, grown = peak_of(code, str(tmp_path / "bomb.parquet"), str(tmp_path / "good.txt"))
    assert "texts expand to" in said
    assert grown < 300


def test_declared_cells_and_columns_are_bounded(tmp_path):
    parquet.write_table(pa.table({"text": pa.nulls(21_000_000, pa.int8())}), tmp_path / "long.parquet")
    parquet.write_table(pa.table({f"c{i}": ["x"] for i in range(1_100)}), tmp_path / "wide.parquet")
    rows = [{f"c{i}": i, "text": str(i)} for i in range(1_100)]
    (tmp_path / "wide.json").write_text(json.dumps(rows))
    (tmp_path / "wide.csv").write_text(",".join(f"c{i}" for i in range(1_100)) + "\n")
    for name in ("long.parquet", "wide.parquet", "wide.json", "wide.csv"):
        with pytest.raises(PromptError, match="cells" if name == "long.parquet" else "columns"):
            otl.load_prompts(tmp_path / name)


def test_a_large_honest_table_is_read(tmp_path):
    labels = ["harmful", "harmless"] * 10_000
    table = pd.DataFrame({"text": [f"prompt {i} of many" for i in range(20_000)], "label": labels})
    table.to_parquet(tmp_path / "t.parquet")
    found = otl.load_prompts(tmp_path / "t.parquet", near_duplicates=None)
    assert sum(found.counts()["train"].values()) == 10_000
    layers = pd.array([1, None] * 50_000, dtype="Int64")
    folder = RunFolder(tmp_path, {})
    folder.write_table("long", pd.DataFrame({"value": range(100_000), "method": "pca_ot", "layer": layers}))
    stored = pd.read_parquet(tmp_path / "tables/long.parquet")
    pd.testing.assert_frame_equal(folder.read_table("long"), stored)


def test_of_millions_of_faults_one_is_reported(tmp_path):
    (tmp_path / "d.json").write_text('{"harmful": [' + "1," * 1_000_000 + '1], "harmless": []}')
    said, grown = peak_of("otl.load_prompts(sys.argv[1])", str(tmp_path / "d.json"))
    assert "harmful" in said
    assert len(said) < 500
    assert grown < 500
    shards = ",".join(f'"{i}":1' for i in range(200_000))
    (tmp_path / "index.json").write_text(f'{{"schema_version": 2, "key": {{}}, "shards": {{{shards}}}}}')
    with pytest.raises(RunFolderError, match="is damaged") as caught:
        otl.load_activations(tmp_path)
    assert len(str(caught.value)) < 2_000


# --------------------------------------------------------------------------------------------- pickles
class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_no_pickle_of_a_published_run_is_executed(tmp_path):
    canary, run = tmp_path / "canary", tmp_path / "run"
    run.mkdir()
    assert pickle.loads(pickle.dumps(Payload(canary))) == 0
    canary.unlink()  # the payload works
    for save in (
        lambda path: torch.save(Payload(canary), path),
        lambda path: torch.save(Payload(canary), path, _use_new_zipfile_serialization=False),
        lambda path: path.write_bytes(pickle.dumps(Payload(canary))),
        lambda path: torch.save({"direction": torch.zeros(4), "x": Payload(canary)}, path),
    ):
        save(run / "direction.pt")
        with pytest.raises(RunFolderError, match="damaged, or more than a tensor"):
            otl.read_refusal_direction_run(run)
        assert not canary.exists()


def test_tensors_larger_than_their_file_are_refused(tmp_path):
    torch.save(torch.zeros(1).expand(10**9), tmp_path / "direction.pt")
    with pytest.raises(RunFolderError, match="1000000000 values in"):
        otl.read_refusal_direction_run(tmp_path)
    torch.save(torch.zeros(4).to_sparse(), tmp_path / "direction.pt")
    with pytest.raises(RunFolderError):
        otl.read_refusal_direction_run(tmp_path)
    torch.save(torch.zeros(4), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "direction.pt", "w") as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name) + b"\x00" * 10**6, compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(RunFolderError, match="compressed"):
        otl.read_refusal_direction_run(tmp_path)


PIPES = {("helpers.py", "pickle.load(self._process.stdout)")}


def test_the_sources_never_load_a_pickle():
    """torch.load only with weights_only; no unpickling of arrays, no YAML that makes objects.

    Helpers speak in pickles with the process that started them, and read no file.
    """
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        text = path.read_text("utf-8")
        for call in re.findall(
            r"(?:torch|np|numpy|pickle|joblib|dill|cloudpickle|marshal|yaml|shelve)\.\w*load\w*\([^)]*\)",
            text,
        ):
            if (path.name, call) not in PIPES:
                found.setdefault(call, []).append(path.name)
        assert not re.search(
            r"(?<![.\w])(?:eval|exec)\(|read_pickle|allow_pickle\s*=\s*True|Unpickler\(", text
        ), path
    assert all("weights_only=True" in call or "Loader=_PlainLoader" in call for call in found), found
    assert any("weights_only=True" in call for call in found)


def test_pickles_in_parquet_are_ignored(tmp_path):
    canary = tmp_path / "canary"
    table = pa.table({"value": [1.0, 2.0], "blob": [pickle.dumps(Payload(canary))] * 2})
    (tmp_path / "tables").mkdir()
    parquet.write_table(table, tmp_path / "tables" / "t.parquet")
    with pytest.raises(RunFolderError, match="'blob' holds binary"):
        RunFolder(tmp_path, {}).read_table("t")
    column = {"name": "value", "numpy_type": "object", "pandas_type": "bytes"}
    marks = json.dumps({"columns": [column], "index_columns": ["value"]}).encode()
    marked = table.drop_columns("blob").replace_schema_metadata({b"pandas": marks})
    parquet.write_table(marked, tmp_path / "tables" / "t.parquet")
    assert list(RunFolder(tmp_path, {}).read_table("t")["value"]) == [1.0, 2.0]
    assert not canary.exists()


FOOTERS = """
import os, struct, sys, pyarrow as pa
from io import BytesIO
from pyarrow import parquet
from ot_lens.errors import PromptError
from ot_lens.io.parquet import read_arrow
file = BytesIO()
parquet.write_table(pa.table({"text": ["abc", "de"], "x": [1.0, 2.0]}), file)
good = file.getvalue()
start = len(good) - 8 - struct.unpack("<I", good[-8:-4])[0]
ends = set()
for place in range(start, len(good) - 8, int(sys.argv[1])):
    bad = bytearray(good)
    bad[place] ^= 1 << place % 8
    child = os.fork()
    if child == 0:
        try:
            read_arrow(bytes(bad), "t", PromptError)
        except PromptError:
            os._exit(1)
        os._exit(0)
    ends.add(os.waitpid(child, 0)[1])
print(sorted(ends))
"""


def test_no_bit_of_a_parquet_footer_aborts_the_process(full_size):
    # A chunk of another type than its statistics: pyarrow ends the process where it is asked about the chunk.
    code = [sys.executable, "-c", FOOTERS, "1" if full_size else "3"]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == str([0, 256])


# --------------------------------------------------------------------------------------- model folders
@pytest.fixture(scope="module")
def model_files() -> readers.Files:
    return readers.model_folder()


@pytest.fixture
def evil(tmp_path, model_files) -> Path:
    """A model folder to be made hostile."""
    return lay_out(tmp_path / "evil", model_files)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


CODE = """
import pathlib
pathlib.Path({canary!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): model_type = "evil"
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""


def test_code_that_comes_with_a_model_runs_only_if_it_is_trusted(evil, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    (evil / "evil.py").write_text(CODE.format(canary=str(canary)))
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change_json(evil / "config.json", model_type="evil", auto_map=classes)
    words = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    change_json(evil / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=words)
    with pytest.raises(ModelError, match="trust_remote_code"):
        otl.load_model(evil, device="cpu")
    assert not canary.exists()
    # The control.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    with suppress(OtLensError):  # the model may fail to load, but its code has run
        otl.load_model(evil, device="cpu", trust_remote_code=True)
    assert canary.exists()


def test_pickled_weights_of_a_model_are_not_executed(evil, tmp_path):
    (evil / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload(tmp_path / "canary")}, evil / "pytorch_model.bin")
    with pytest.raises(ModelError):
        otl.load_model(evil, device="cpu")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
        "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
        "{% set x = messages|attr('append')('y') %}{{ lipsum.__globals__['os'].popen('touch CANARY') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ messages[99]['content']['x'] + 3 }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_hostile_chat_template_reaches_nothing(tmp_path, evil, template):
    (evil / "chat_template.jinja").write_text(template.replace("CANARY", str(tmp_path / "canary")))
    model = otl.load_model(evil, device="cpu")
    with pytest.raises(PromptError, match="he chat template of"):
        otl.models.encode(otl.models.backend(model), ["w1"])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("config.json", "num_hidden_layers", 10**9),
        ("config.json", "hidden_size", 2**40),
        ("config.json", "intermediate_size", []),
        ("tokenizer_config.json", "model_max_length", []),
    ],
)
def test_impossible_sizes_of_a_model_are_refused(evil, file, name, value):
    change_json(evil / file, **{name: value})
    with pytest.raises(ModelError, match=name):
        otl.load_model(evil, device="cpu")


# ------------------------------------------------------------------------------ paths that leave a run
@pytest.fixture(scope="module")
def run_files(finished_run: Path) -> readers.Files:
    return readers.run_folder(finished_run)


@pytest.fixture
def run(tmp_path, run_files) -> Path:
    return lay_out(tmp_path / "run", run_files)


@pytest.mark.parametrize(
    "place", ["tables", "activations/train", "activations/train/shards.sha256", "maps", "figures"]
)
def test_a_run_with_a_link_is_refused(run, tmp_path, place):
    outside = tmp_path / "outside"
    if (run / place).exists():
        shutil.move(run / place, outside)
    else:
        outside.mkdir()
    (run / place).symlink_to(outside)
    with pytest.raises(RunFolderError, match="is a link"):
        RunFolder.open(run)


def test_a_run_folder_itself_may_be_a_link(run, tmp_path):
    (tmp_path / "latest").symlink_to(run)
    assert RunFolder.open(tmp_path / "latest").finished


def test_names_of_shards_are_not_paths(run):
    index = read_json(run / "activations/train/index.json")
    first = index["shards"].pop("harmful-00000")
    for name in (
        "../outside",
        "/etc/passwd",
        "..\\outside-00000",
        "harmful-00000/../x",
        "C:\\x",
        "a\x00b",
        "harmful-00000\n",
    ):
        change_json(run / "activations/train/index.json", shards={**index["shards"], name: first})
        with pytest.raises(RunFolderError, match="is damaged"):
            otl.load_activations(run / "activations/train")


def test_the_names_of_distant_layers_stay_short(run):
    key = read_json(run / "activations/train/index.json")["key"]
    key["layers"] = [0, *range(10**12, 10**12 + len(key["layers"]) - 1)]
    change_json(run / "activations/train/index.json", key=key)
    assert "layers 0, 1000000000000" in repr(otl.load_activations(run / "activations/train"))


@pytest.mark.parametrize(
    "parameters",
    [
        *(
            {"k": value}
            for value in ("../../outside", "/etc", {"a" * 300: None}, "a" * 300, ["1/..", 2], "ā" * 100)
        ),
        {"../outside": 1},
    ],
)
def test_parameters_of_methods_are_not_paths(run, parameters):
    """They are part of the name of a folder."""
    config = {"methods": ["mean_shift", {"name": "pca_ot", **parameters}]}
    with pytest.raises(ConfigError, match="short words and numbers"):
        parse_config(config)
    change_json(run / "manifest.json", config=config)
    opened = OpenRun(run)
    assert opened.config is None
    assert opened.map_folders == {}


def test_parameters_of_methods_are_words_and_numbers():
    full = {"name": "pca_ot", "k": 4, "ridge": 1e-6, "mean_shift": "full"}
    assert parse_config({"methods": ["rfa", full, {"name": "leace", "shrinkage": None}]}).methods[1] == full


def test_nothing_is_appended_to_the_target_of_a_link(tmp_path):
    from ot_lens.activations.index import add_checksum

    (tmp_path / "store").mkdir()
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "store" / "shards.sha256").symlink_to(tmp_path / "outside")
    with pytest.raises(RunFolderError, match="Cannot write"):
        add_checksum(tmp_path / "store", "harmful-00000", "0" * 64)
    assert (tmp_path / "outside").read_text() == "mine"


# ------------------------------------------------------------------------------------ the command line
@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        ("run study.yaml --out new", "study.yaml"),
        ("run own.yaml --out new", "prompts.json"),
        ("run study.yaml --out run --resume", "run/manifest.json"),
        ("explore run --no-browser", "run/manifest.json"),
        ("figures run", "run/manifest.json"),
        ("figures run --against run", "run/activations/train/index.json"),
        ("study paper --model ./model --estimate", "model/config.json"),
        ("organism evaluate --variant ./model --n 2", "model/tokenizer_config.json"),
    ],
)
def test_a_damaged_file_ends_a_command_in_one_line(
    command, tmp_path, run_files, model_files, arguments, target
):
    files = {"study.yaml": b"seed: 3", "own.yaml": b"prompts: prompts.json"}
    files |= {f"run/{name}": content for name, content in run_files.items()}
    files |= {f"model/{name}": content for name, content in model_files.items()}
    lay_out(tmp_path, files)
    for damaged in (b"\xff\xfe\x00", b"[" * 500, b"!!python/object/apply:os.system ['true']", b'"\\e]0;x"'):
        (tmp_path / target).write_bytes(damaged)
        code, _, said = command(*arguments.split())
        assert (code, len(said.strip().splitlines())) == (2, 1), said
        assert "Traceback" not in said
        assert "\x1b" not in said


def test_a_hostile_name_is_escaped_on_the_terminal(tmp_path):
    missing = os.fsdecode(b"no\xffsuch\x1b[2J.yaml")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"}
    command = [sys.executable, "-m", "ot_lens.cli", "run", missing]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "xff" in done.stderr.replace("udc", "x")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "\x1b" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_csv_without_a_header_is_reported(tmp_path):
    for content in (b'"' + b"x" * 200_000, b"text\rlabel\r"):
        (tmp_path / "p.csv").write_bytes(content)
        with pytest.raises(PromptError):
            otl.load_prompts(tmp_path / "p.csv")
