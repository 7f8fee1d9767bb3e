"""The command line's own part: the paper's study before it starts, engines, a full disk, one line each."""

import errno
import sys
from pathlib import Path

import pytest

from ot_lens import cli
from ot_lens.cli import commands
from ot_lens.paper_study.architecture import paper_models
from ot_lens.study import read_config
from tests import checkpoints


@pytest.fixture
def ot_lens(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in an empty folder; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ot-lens", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def test_the_estimate_of_all_six_loads_nothing(ot_lens, tmp_path):
    code, printed, _ = ot_lens("study", "paper", "--estimate")
    assert code == 0
    for name in paper_models():
        assert name.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-hf") in printed
    for total in ("6.738", "13.016", "8.030", "7.616", "14.770", "32.764"):
        assert total in printed
    assert "2 x parameters x tokens" in " ".join(printed.split())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_unasked(ot_lens, tmp_path):
    code, printed, error = ot_lens("study", "paper", "--model", "Qwen/Qwen2.5-7B-Instruct")
    assert code == 2
    assert "7.616" in printed
    assert "not started: " in error
    assert "Qwen/Qwen2.5-7B-Instruct is not on this machine: about 15.2 GB would be downloaded" in error
    assert "--yes" in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_paper_s_study_can_be_written_and_edited(ot_lens, tmp_path):
    arguments = ("study", "paper", "--model", "organism:single", "--layer-rule", "fixed", "--write", "x.yaml")
    code, printed, _ = ot_lens(*arguments)
    assert code == 0
    assert "ot-lens run x.yaml" in printed
    config = read_config(tmp_path / "x.yaml")
    assert (config.layer_sets, config.paper_table, config.judge) == ([[4], [3, 5]], True, None)
    code, _, error = ot_lens(*arguments)
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
        (("study", "paper", "--model", "organism", "--layer-rule", "best"), "no layer rule 'best'"),
        (("study", "paper", "--model", "organism", "--judge", "[1]"), "--judge '[1]'"),
        (("study", "paper", "--model", "organism", "--judge", "gpt"), "no judge preset 'gpt'"),
        (
            ("study", "paper", "--model", "organism", "--prompts", "missing.csv"),
            "no prompt set 'missing.csv'",
        ),
        (("study", "paper", "--model", "organism", "--executor", "slurm"), "no executor 'slurm'"),
        (("study", "paper", "--model", "organism", "--address", "auto"), "--executor ray"),
    ],
)
def test_mistakes_end_in_one_line(ot_lens, tmp_path, arguments, message):
    code, _, error = ot_lens(*arguments)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_tokenizer_is_named(ot_lens, tiny, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tiny / name).read_bytes())
    code, _, error = ot_lens(
        "study", "paper", "--model", bare, "--judge", "none", "--prompts", "organism", "--out", "run"
    )
    assert code == 2
    assert "tokenizer" in error
    assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_in_one_line(ot_lens, monkeypatch):
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/shard")

    monkeypatch.setattr(commands, "study_into", full)
    code, _, error = ot_lens("demo")
    assert code == 2
    assert error.strip() == "ot-lens: runs/x/shard: No space left on device: check the disk and the folder."
