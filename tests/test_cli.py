"""The command line's own part: the paper's study before it starts, engines, a full disk, one line each."""

import errno
from pathlib import Path

import pytest

from ot_lens.cli import commands
from ot_lens.models.sizes import published_models
from ot_lens.study import read_config
from tests import checkpoints


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def test_the_estimate_of_all_six_loads_nothing(command, tmp_path):
    code, printed, _ = command("study", "paper", "--estimate")
    assert code == 0
    for name in published_models():
        assert name.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-hf") in printed
    for total in ("6.738", "13.016", "8.030", "7.616", "14.770", "32.764"):
        assert total in printed
    assert "2 x parameters x tokens" in " ".join(printed.split())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_unasked(command, tmp_path):
    code, printed, error = command("study", "paper", "--model", "Qwen/Qwen2.5-7B-Instruct")
    assert code == 2
    assert "7.616" in printed
    assert "not started: " in error
    assert "Qwen/Qwen2.5-7B-Instruct is not on this machine: about 15.2 GB would be downloaded" in error
    assert "--yes" in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_paper_s_study_can_be_written_and_edited(command, tmp_path):
    arguments = (
        "study",
        "paper",
        "--model",
        "organism:single",
        "--set",
        "layer_rule=fixed",
        "--write",
        "x.yaml",
    )
    code, printed, _ = command(*arguments)
    assert code == 0
    assert "ot-lens run x.yaml" in printed
    config = read_config(tmp_path / "x.yaml")
    assert (config.layer_sets, config.paper_table, config.judge) == ([[4], [3, 5]], True, None)
    code, _, error = command(*arguments)
    assert code == 2
    assert "not overwritten" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study", "paper"), "--model is missing"),
        (
            ("study", "paper", "--model", "nobody/nothing"),
            "cannot read the configuration of 'nobody/nothing'",
        ),
        (("study", "paper", "--model", "organism", "--set", "layer_rule=best"), "no layer rule 'best'"),
        (("study", "paper", "--model", "organism", "--set", "judge=[1]"), "judge"),
        (("study", "paper", "--model", "organism", "--set", "judge"), "--set 'judge'"),
        (("study", "paper", "--model", "organism", "--set", "sede=3"), "unknown field 'sede'"),
        (("study", "paper", "--model", "organism", "--set", "seed=[1"), "--set seed"),
        (("study", "paper", "--model", "organism", "--set", "judge=gpt"), "'gpt'"),
        (
            ("study", "paper", "--model", "organism", "--set", "prompts=missing.csv"),
            "no prompt set 'missing.csv'",
        ),
        (("study", "paper", "--model", "organism", "--executor", "slurm"), "no executor 'slurm'"),
        (("study", "paper", "--model", "organism", "--address", "auto"), "--executor ray"),
    ],
)
def test_mistakes_end_in_one_line(command, tmp_path, arguments, message):
    code, _, error = command(*arguments)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_tokenizer_is_named(command, tiny, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tiny / name).read_bytes())
    code, _, error = command(
        "study", "paper", "--model", bare, "--set", "judge=null", "--set", "prompts=organism", "--out", "run"
    )
    assert code == 2
    assert "tokenizer" in error
    assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_in_one_line(command, monkeypatch):
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/shard")

    monkeypatch.setattr(commands, "study_into", full)
    code, _, error = command("demo")
    assert code == 2
    assert error.strip() == "ot-lens: runs/x/shard: No space left on device: check the disk and the folder."
