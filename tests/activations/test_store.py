"""A store on disk: what it refuses, what it survives, and what reading it costs."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import ot_lens as otl
from ot_lens.activations import ActivationStore, CaptureSettings, capture_shard, plan_shards
from ot_lens.activations import shards as shards_module
from ot_lens.errors import ActivationError, RunFolderError
from ot_lens.io import files
from ot_lens.io.files import temporaries
from ot_lens.prompts import Contrast
from ot_lens.transport import AffineMap
from tests import checkpoints
from tests.trust.kill_harness import contents

D = 32


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> Any:
    return otl.load_model(llama_folder)


@pytest.fixture(scope="module")
def prompts() -> Contrast:
    return checkpoints.contrast(9)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are computed."""
    names: list[str] = []

    def noted(*args: Any) -> torch.Tensor:
        names.append(args[-1].name)
        return capture_shard(*args)

    monkeypatch.setattr(shards_module, "capture_shard", noted)
    return names


def shift(by: float) -> AffineMap:
    return AffineMap(torch.zeros(D, 0), torch.zeros(D, 0), torch.full((D,), by, dtype=torch.float64))


# --------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_a_store_holds_the_values_of_a_capture_in_memory(model, prompts, tmp_path, dtype):
    asked = {"positions": [-1, -3], "batch_size": 2, "dtype": dtype, "layers": [0, 2, 3]}
    memory = otl.capture(model, prompts, **asked)
    written = otl.capture(model, prompts, **asked, store=tmp_path / "a")
    for stored in (written, otl.load_activations(tmp_path / "a")):
        for name in ("layers", "positions", "hook"):
            assert getattr(stored, name) == getattr(memory, name)
        assert (stored.n_harmful, stored.d_model, stored.dtype) == (9, D, memory.dtype)
        assert stored.dtype == (getattr(torch, dtype) if dtype else torch.float32)
        for label, _ in prompts:
            assert torch.equal(stored.data[label], memory.data[label])
            for position in (-1, -3):
                assert torch.equal(stored.stacked(label, position), memory.stacked(label, position))
        assert stored.harmful(2, -3).dtype == torch.float64
    assert not torch.equal(memory.harmful(2, -1), memory.harmful(3, -1))


def test_opening_reads_no_values_and_a_layer_reads_only_itself(model, prompts, tmp_path, monkeypatch):
    from ot_lens.activations import stored as module

    otl.capture(model, prompts, batch_size=2, store=tmp_path / "a")
    checked: list[Path] = []
    monkeypatch.setattr(module, "sha256_file", lambda path: checked.append(path) or files.sha256_file(path))
    acts = otl.load_activations(tmp_path / "a")
    assert "9 harmful + 9 harmless" in repr(acts)
    assert not checked
    for _ in range(3):
        acts.harmful(1)
    shards = sorted((tmp_path / "a").glob("harmful*"))
    assert sorted(checked) == shards, "each shard is verified once, and those of the other class not at all"


def test_checksums_are_those_of_sha256sum(model, prompts, tmp_path):
    otl.capture(model, prompts, batch_size=2, store=tmp_path)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "shards.sha256"], check=False, cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b": OK") == len(list(tmp_path.glob("*.safetensors")))


def test_the_notebook_summary_escapes_its_values(model, prompts, tmp_path):
    acts = otl.capture(model, prompts, store=tmp_path / "<b>store")
    html = acts._repr_html_()
    assert "&lt;b&gt;store" in html
    assert "<b>store" not in html
    for fact in ("resid_pre", "9 harmful, 9 harmless", "float32", "0-3", "on disk"):
        assert fact in html
    assert "in memory" in otl.capture(model, prompts)._repr_html_()


# --------------------------------------------------------------------------- shards by themselves


def test_shards_written_in_any_order_leave_the_same_bytes(model, prompts, tmp_path):
    otl.capture(model, prompts, batch_size=2, store=tmp_path / "a")
    plan = plan_shards(model, prompts, CaptureSettings(batch_size=2))
    with ActivationStore(tmp_path / "b", plan) as store:
        assert store.missing() == list(plan.shards)
        with pytest.raises(RunFolderError, match=f"lacks {len(plan.shards)} shards"):
            store.finish()
        for shard in reversed(plan.shards):
            store.write(shard, capture_shard(model, prompts, plan, shard))
        assert not store.missing()
        store.finish()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_progress_reports_resumed_prompts_first(model, prompts, tmp_path, computed):
    otl.capture(model, prompts, batch_size=2, store=tmp_path / "a")
    names = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    held = json.loads((tmp_path / "a" / "index.json").read_text())["shards"]["harmful-00001"]["indices"]
    (tmp_path / "a" / "harmful-00001.safetensors").unlink()
    computed.clear()
    told: list[int] = []
    otl.capture(model, prompts, batch_size=2, store=tmp_path / "a", progress=told.append)
    assert told == [18 - len(held), len(held)]
    assert computed == ["harmful-00001"]
    assert sorted(path.name for path in (tmp_path / "a").glob("*.safetensors")) == names


# --------------------------------------------------------------------------- damage


def test_a_torn_or_altered_checksum_costs_only_its_shard(model, prompts, tmp_path, computed):
    otl.capture(model, prompts, batch_size=3, store=tmp_path / "a")
    whole = contents(tmp_path / "a")
    lines = (tmp_path / "a" / "shards.sha256").read_bytes()
    last = len(lines.splitlines(keepends=True)[-1])
    torn = [lines[: len(lines) - cut] for cut in range(1, last + 1, 7)]
    altered = [b"0" * 64 + lines[64:], b"\xff\x00" + lines[2:], lines.replace(b"  ", b" ", 1)]
    for content in [*torn, *altered, lines + b"x", lines + b"\0" * 40]:
        (tmp_path / "a" / "shards.sha256").write_bytes(content)
        computed.clear()
        otl.capture(model, prompts, batch_size=3, store=tmp_path / "a")
        assert len(computed) == (not content.startswith(lines))
        assert contents(tmp_path / "a") == whole


def test_altered_bytes_of_a_shard_are_detected(model, tmp_path, computed):
    prompts = checkpoints.contrast(1)
    otl.capture(model, prompts, layers=[0], store=tmp_path / "a")
    whole = contents(tmp_path / "a")
    path = tmp_path / "a" / "harmless-00000.safetensors"
    good = whole[path.name]
    for at in range(0, len(good), 41):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(RunFolderError, match="missing or altered"):
            otl.load_activations(tmp_path / "a").harmless(0)
    for damage in (lambda: path.write_bytes(good[:50]), path.unlink):
        damage()
        with pytest.raises(RunFolderError, match="missing or altered"):
            otl.load_activations(tmp_path / "a")
        computed.clear()
        otl.capture(model, prompts, layers=[0], store=tmp_path / "a")
        assert computed == ["harmless-00000"]
        assert contents(tmp_path / "a") == whole


OTHER = {"label": "harmful", "indices": [10**15]}


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("schema", {"schema_version": 1}),
        ("damaged", {"shards": {}}),
        ("no valid layers", {"key": {}}),
        (
            "every harmful prompt once",
            {"shards": {"harmful-00000": {"label": "harmful", "indices": [10**15]}}},
        ),
    ],
)
def test_a_hostile_index_is_named_and_changes_no_file(model, prompts, tmp_path, message, change):
    otl.capture(model, prompts, store=tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    change = {**change, "shards": index["shards"] | change["shards"]} if change.get("shards") else change
    (tmp_path / "index.json").write_text(json.dumps(index | change))
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match=message):
        otl.load_activations(tmp_path)
    assert contents(tmp_path) == before


def test_a_shard_of_another_dtype_is_refused(model, prompts, tmp_path):
    otl.capture(model, prompts, store=tmp_path)
    path = next(tmp_path.glob("harmless-*"))
    shape = load(path.read_bytes())["activations"].shape
    path.write_bytes(save({"activations": torch.zeros(shape, dtype=torch.int64)}))
    with pytest.raises(RunFolderError, match="hold F32, I64"):
        otl.load_activations(tmp_path)
    path.write_bytes(save({"other": torch.zeros(shape)}))
    with pytest.raises(RunFolderError, match="altered"):
        otl.load_activations(tmp_path)


# --------------------------------------------------------------------------- whose store it is


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"layers": [1]}, "layers"),
        ({"hook": "mlp_out"}, "hook"),
        ({"positions": "post_instruction"}, "positions"),
        ({"positions": [-1, -2], "reduce": "mean"}, "positions"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"batch_size": 5}, "batch_size"),
        ({"token_budget": 30}, "token_budget"),
        ({"edits": {0: shift(1.0)}}, "tokens"),
    ],
)
def test_a_different_capture_is_refused_by_name_and_the_store_survives(
    model, prompts, tmp_path, changed, name
):
    options = {"layers": [0, 1]}
    for first, second in ((options, options | changed), (options | changed, options)):
        store = tmp_path / str(first == options)
        otl.capture(model, prompts, **first, store=store)
        before = contents(store)
        with pytest.raises(RunFolderError, match=rf"another capture.*{name} = "):
            otl.capture(model, prompts, **second, store=store)
        assert contents(store) == before


def test_other_prompts_and_another_edit_of_the_same_kind_are_refused(model, prompts, tmp_path):
    otl.capture(model, prompts, edits={1: shift(1.0)}, store=tmp_path)
    with pytest.raises(RunFolderError, match="edits = "):
        otl.capture(model, prompts, edits={1: shift(2.0)}, store=tmp_path)
    with pytest.raises(RunFolderError, match="prompts = "):
        otl.capture(model, checkpoints.contrast(9, seed=5), edits={1: shift(1.0)}, store=tmp_path)


def test_another_model_template_or_system_prompt_is_refused(model, prompts, tmp_path):
    otl.capture(model, prompts, store=tmp_path)
    before = contents(tmp_path)
    other = otl.load_model(model.hf_model, tokenizer=model.tokenizer, system_prompt="w1 w2")
    with pytest.raises(RunFolderError, match="model_system_prompt"):
        otl.capture(other, prompts, store=tmp_path)
    template = model.tokenizer.chat_template
    try:
        model.tokenizer.chat_template = template + " <nl>"
        with pytest.raises(RunFolderError, match="model_chat_template_sha256"):
            otl.capture(model, prompts, store=tmp_path)
    finally:
        model.tokenizer.chat_template = template
    assert contents(tmp_path) == before


def test_a_folder_of_other_files_is_left_alone(model, prompts, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / ".swap.tmp").write_text("x")
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds other files.*choose another folder"):
        otl.capture(model, prompts, store=tmp_path)
    with pytest.raises(RunFolderError, match=r"Cannot write .*thesis\.tex"):
        otl.capture(model, prompts, store=tmp_path / "thesis.tex")
    assert contents(tmp_path) == before


HOLD = "import sys, time; from pathlib import Path; from ot_lens.io.files import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"


def test_two_processes_on_one_store_are_refused_until_one_is_gone(model, prompts, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=f"{tmp_path} is in use by another process"):
            otl.capture(model, prompts, store=tmp_path)
    finally:
        other.kill()
        other.communicate()
    assert otl.capture(model, prompts, store=tmp_path).n_harmful == 9
    assert ".lock" not in contents(tmp_path)


# --------------------------------------------------------------------------- disks


def test_files_that_may_not_grow_are_one_error(model, prompts, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(RunFolderError, match=r"Cannot write .*File too large"):
            otl.capture(model, prompts, store=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not temporaries(tmp_path)
    assert otl.capture(model, prompts, store=tmp_path).n_harmless == 9


def test_a_value_too_large_for_the_dtype_stops_the_capture(model, prompts, tmp_path):
    push = {2: shift(1e5)}
    asked = {"edits": push, "store": tmp_path}
    with pytest.raises(ActivationError, match=r"layer 2 reach 1e\+05.*float16"):
        otl.capture(model, prompts, dtype="float16", **asked)
    assert not list(tmp_path.glob("*.safetensors"))
    assert otl.capture(model, prompts, dtype="bfloat16", edits=push).harmful(2).min() > 9e4
    with pytest.raises(ActivationError, match="'int8'"):
        otl.capture(model, prompts, dtype="int8")
