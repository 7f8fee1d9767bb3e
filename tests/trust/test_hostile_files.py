"""Hostile files: no reader hangs, allocates without bound, executes, writes, or fails without a name."""

import io
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
from ot_lens.behaviour import load_completions
from ot_lens.errors import ConfigError, ModelError, OtLensError, PromptError, RunFolderError
from ot_lens.explorer.runs import OpenRun
from ot_lens.io.files import read_json
from ot_lens.study import RunFolder, parse_config, read_config
from tests.trust import hostile_readers as readers

QUICK, FULL = 4_000, 110_000
QUICK_MODELS, FULL_MODELS = 100, 4_000
QUICK_COMMANDS, FULL_COMMANDS = 40, 400
SOURCES = Path(otl.__file__).parent


# ---------------------------------------------------------------------------------------- the campaigns
def campaign(*arguments: str, module: str = "hostile_campaign") -> dict:
    """Run a campaign in its own process with limited memory."""
    command = [sys.executable, "-m", f"tests.trust.{module}", *arguments]
    # The default pool of pyarrow reserves address space ahead, which is what is limited.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=SOURCES.parent, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # tokenizers prints of its own on the lines before


def judge(found: dict, record, least: int) -> None:
    tallies = found["readers"]
    total = sum(tally["cases"] for tally in tallies.values())
    record("cases", total)
    record("readers", len(tallies))
    record("slowest case, s", max(tally["slowest"] for tally in tallies.values()))
    record("memory grown, MiB", round(found["grown"] / 2**20))
    for name, tally in tallies.items():
        record(
            f"{name}: cases, refused",
            f"{tally['cases']}, {tally['cases'] - tally['outcomes'].get('read', 0)}",
        )
    faults = [fault for tally in tallies.values() for fault in tally["failures"]]
    assert faults == []
    assert found["untouched"]
    assert total >= least
    assert found["grown"] < 1.5 * 2**30
    # Every reader must both read good files and refuse bad ones.
    outcomes = [set(tally["outcomes"]) for tally in tallies.values()]
    assert all("read" in kinds and len(kinds) > 1 for kinds in outcomes)


def test_every_reader_reads_or_refuses_and_does_nothing_else(full_size, record_property):
    judge(
        campaign("--cases", str(FULL if full_size else QUICK)),
        record_property,
        100_000 if full_size else 3_900,
    )


def test_every_model_folder_is_loaded_or_refused(full_size, record_property):
    n = FULL_MODELS if full_size else QUICK_MODELS
    judge(campaign("--models", "--cases", str(n)), record_property, n)


def test_the_command_line_ends_in_one_line(full_size, record_property):
    """In one process; a sample in separate processes is below."""
    n = FULL_COMMANDS if full_size else QUICK_COMMANDS
    found = campaign("--cases", str(n), module="hostile_commands")
    record_property("commands", found["commands"])
    record_property("commands refused", found["refused"])
    assert found["faults"] == []
    assert found["commands"] >= n
    assert found["refused"] > found["commands"] // 4


# -------------------------------------------------------------------------------------- configurations
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nmethods: *a", "an alias"),
        ("prompts: " + "[" * 500 + "]" * 500, "nested more than 60 deep"),
        ("seed: 2020-99-99", "month must be in 1..12"),
        ("seed: 0x" + "f" * 5000, "more than 1024 bits"),
        ("seed: " + "9" * 5000, "4300 digits"),
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


def repeated_text(path: Path, rows: int, length: int) -> None:
    """Rows of one text, which parquet holds once."""
    codes = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * length]))
    parquet.write_table(pa.table({"text": codes}), path, compression="zstd")


def test_a_table_of_a_kilobyte_does_not_become_gigabytes(tmp_path):
    repeated_text(tmp_path / "bomb.parquet", 20_000, 1_000_000)
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
    for name, message in (
        ("long.parquet", "cells"),
        ("wide.parquet", "columns"),
        ("wide.json", "columns"),
        ("wide.csv", "columns"),
    ):
        with pytest.raises(PromptError, match=message):
            otl.load_prompts(tmp_path / name)


def test_a_large_honest_table_is_read(tmp_path):
    labels = ["harmful", "harmless"] * 10_000
    table = pd.DataFrame({"text": [f"prompt {i} of many" for i in range(20_000)], "label": labels})
    table.to_parquet(tmp_path / "t.parquet")
    found = otl.load_prompts(tmp_path / "t.parquet", near_duplicates=None)
    assert sum(found.counts()["train"].values()) == 10_000
    wide = pd.DataFrame(
        {"value": range(100_000), "method": "pca_ot", "layer": pd.array([1, None] * 50_000, dtype="Int64")}
    )
    folder = RunFolder(tmp_path, {})
    folder.write_table("wide", wide)
    pd.testing.assert_frame_equal(
        folder.read_table("wide"), pd.read_parquet(tmp_path / "tables/wide.parquet")
    )


def test_of_millions_of_faults_one_is_reported(tmp_path):
    (tmp_path / "d.json").write_text('{"harmful": [' + "1," * 1_000_000 + '1], "harmless": []}')
    said, grown = peak_of("otl.load_prompts(sys.argv[1])", str(tmp_path / "d.json"))
    assert "harmful.0" in said
    assert grown < 500
    shards = ",".join(f'"{i}":1' for i in range(200_000))
    (tmp_path / "index.json").write_text(f'{{"schema_version": 2, "key": {{}}, "shards": {{{shards}}}}}')
    said, grown = peak_of("otl.load_activations(sys.argv[1])", str(tmp_path))
    assert "is damaged" in said
    assert grown < 300


# --------------------------------------------------------------------------------------------- pickles
class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_no_pickle_of_a_published_run_is_executed(tmp_path):
    canary = tmp_path / "canary"
    assert pickle.loads(pickle.dumps(Payload(canary))) == 0
    assert canary.exists()  # the payload works
    canary.unlink()
    run = tmp_path / "run"
    run.mkdir()
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


def test_the_sources_never_load_a_pickle():
    """torch.load only with weights_only; no unpickling of arrays, no YAML that makes objects."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        text = path.read_text("utf-8")
        for call in re.findall(
            r"(?:torch|np|numpy|pickle|joblib|dill|cloudpickle|marshal|yaml|shelve)\.\w*load\w*\([^)]*\)",
            text,
        ):
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
    marked = table.drop_columns("blob").replace_schema_metadata(
        {
            b"pandas": json.dumps(
                {
                    "columns": [{"name": "value", "numpy_type": "object", "pandas_type": "bytes"}],
                    "index_columns": ["value"],
                }
            ).encode()
        }
    )
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
for place in range(start, len(good) - 8):
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


def test_no_bit_of_a_parquet_footer_aborts_the_process():
    # A chunk of another type than its statistics: pyarrow ends the process where it is asked about the chunk.
    code = [sys.executable, "-c", FOOTERS]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == str([0, 256])


# --------------------------------------------------------------------------------------- model folders
@pytest.fixture(scope="module")
def folder_of_a_model() -> readers.Files:
    return readers.model_folder()


def lay_out(folder: Path, files: readers.Files) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


CODE = """
import pathlib
pathlib.Path({canary!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): model_type = "evil"
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def folder_with_code(tmp_path, folder_of_a_model) -> Path:
    """A model folder that brings code of its own for configuration, model and tokenizer."""
    folder = lay_out(tmp_path / "evil", folder_of_a_model)
    (folder / "evil.py").write_text(CODE.format(canary=str(tmp_path / "canary")))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def test_code_that_comes_with_a_model_is_not_run(folder_with_code, tmp_path):
    with pytest.raises(ModelError, match="trust_remote_code"):
        otl.load_model(folder_with_code, device="cpu")
    with pytest.raises(ModelError):
        otl.load_model(folder_with_code, device="cpu", trust_remote_code=False)
    assert not (tmp_path / "canary").exists()


def test_code_that_comes_with_a_model_runs_if_it_is_trusted(folder_with_code, tmp_path, monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    with suppress(OtLensError):  # the model may fail to load, but its code has run
        otl.load_model(folder_with_code, device="cpu", trust_remote_code=True)
    assert (tmp_path / "canary").exists()


def test_pickled_weights_of_a_model_are_not_executed(tmp_path, folder_of_a_model):
    folder = lay_out(tmp_path / "evil", folder_of_a_model)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload(tmp_path / "canary")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        otl.load_model(folder, device="cpu")
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
def test_a_hostile_chat_template_reaches_nothing(tmp_path, folder_of_a_model, template):
    folder = lay_out(tmp_path / "evil", folder_of_a_model)
    (folder / "chat_template.jinja").write_text(template.replace("CANARY", str(tmp_path / "canary")))
    model = otl.load_model(folder, device="cpu")
    with pytest.raises(PromptError, match="he chat template of"):
        otl.models.encode(otl.models.backend(model), ["w1"])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("config.json", {"hidden_size": 2**40}, "hidden_size"),
        ("config.json", {"intermediate_size": []}, "intermediate_size"),
        ("tokenizer_config.json", {"model_max_length": []}, "model_max_length"),
    ],
)
def test_impossible_sizes_of_a_model_are_refused(tmp_path, folder_of_a_model, file, change, message):
    folder = lay_out(tmp_path / "evil", folder_of_a_model)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ModelError, match=message):
        otl.load_model(folder, device="cpu")


# ------------------------------------------------------------------------------ paths that leave a run
@pytest.fixture(scope="module")
def files_of_a_run() -> readers.Files:
    return readers.run_folder()


@pytest.fixture
def run(tmp_path, files_of_a_run) -> Path:
    for name, content in files_of_a_run.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "run"


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


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "..\\outside-00000",
        "harmful-00000/../x",
        "C:\\x",
        "a\x00b",
        "harmful-00000\n",
    ],
)
def test_names_of_shards_are_no_paths(run, name):
    index = read_json(run / "activations/train/index.json")
    index["shards"][name] = index["shards"].pop("harmful-00000")
    (run / "activations/train/index.json").write_text(json.dumps(index))
    with pytest.raises(RunFolderError, match="is damaged"):
        otl.load_activations(run / "activations/train")


def test_the_names_of_distant_layers_stay_short(run):
    index = read_json(run / "activations/train/index.json")
    layers = index["key"]["layers"]
    index["key"]["layers"] = [0, *range(10**12, 10**12 + len(layers) - 1)]
    (run / "activations/train/index.json").write_text(json.dumps(index))
    assert "layers 0, 1000000000000" in repr(otl.load_activations(run / "activations/train"))


@pytest.mark.parametrize(
    "parameters",
    [
        {"k": "../../outside"},
        {"k": "/etc"},
        {"../outside": 1},
        {"k": {"a" * 300: None}},
        {"k": "a" * 300},
        {"k": ["1/../..", 2]},
        {"k": "\u0101" * 100},
    ],
)
def test_parameters_of_methods_are_no_paths(run, parameters):
    """They are part of the name of a folder."""
    manifest = read_json(run / "manifest.json")
    manifest["config"] = {"methods": ["mean_shift", {"name": "pca_ot", **parameters}]}
    with pytest.raises(ConfigError, match="short words and numbers"):
        parse_config(manifest["config"])
    (run / "manifest.json").write_text(json.dumps(manifest))
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


@pytest.mark.parametrize(
    "change",
    [
        {"config": []},
        {"config": None},
        {"model": 3},
        {"model": {"name": []}},
        {"prompts": {"sha256": 3}},
        {"versions": None},
        {"finished": "no"},
        {"schema_version": True},
        {"executors": [3]},
    ],
)
def test_an_entry_of_the_wrong_type_is_named(run, change):
    manifest = read_json(run / "manifest.json") | change
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match=next(iter(change))):
        RunFolder.open(run)


# ------------------------------------------------------------------------------------ the command line
def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "ot_lens.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed: 2020-99-99\n", "month"),
        (b'"\\e]0;x\\a": 1\n', "control character"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_hostile_file_causes_one_line_on_the_terminal(tmp_path, content, said):
    (tmp_path / "c.yaml").write_bytes(content)
    done = command("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


def test_a_file_name_that_is_not_text_can_be_reported(tmp_path):
    done = command("run", os.fsdecode(b"no\xffsuch\x1b[2J.yaml"), cwd=tmp_path)
    assert done.returncode == 2
    assert "\\udcff" in done.stderr or "\\xdcff" in done.stderr
    assert "\x1b[2J" not in done.stderr


def test_the_size_of_saved_answers_is_bounded(tmp_path):
    with (tmp_path / "c.jsonl").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RunFolderError, match="at most"):
        load_completions(tmp_path / "c.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunFolderError, match="not a regular file"):
        load_completions(tmp_path / "pipe")


def test_a_csv_without_a_header_is_reported(tmp_path):
    (tmp_path / "p.csv").write_bytes(b'"' + b"x" * 200_000)
    with pytest.raises(PromptError, match="no header"):
        otl.load_prompts(tmp_path / "p.csv")
    held = io.BytesIO(b"text\rlabel\r")
    (tmp_path / "p.csv").write_bytes(held.getvalue())
    with pytest.raises(PromptError):
        otl.load_prompts(tmp_path / "p.csv")
