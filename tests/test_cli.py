"""The command line: the paper's study before it starts, a user's own code, and one line per mistake."""

import errno
import os
import subprocess
import sys

import pytest

from ot_lens.models.sizes import model_size, published_models
from ot_lens.study import read_config
from tests import checkpoints

PAPER = ("study", "paper", "--model", "organism")


@pytest.fixture
def mistake(command):
    """Run a command that cannot be carried out; returns the one line in which it ends."""

    def call(*arguments: object) -> str:
        code, _, errors = command(*arguments)
        assert code == 2
        assert len(errors.strip().splitlines()) == 1, errors
        return errors

    return call


# ------------------------------------------------------------------------------------ the paper's study
def test_the_estimate_of_all_six_models_loads_nothing(command, tmp_path):
    code, printed, _ = command("study", "paper", "--estimate")
    assert code == 0
    for name in published_models():
        assert name.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-hf") in printed
        assert f"{model_size(name).n_parameters / 1e9:.3f}" in printed
    assert "2 x parameters x tokens" in " ".join(printed.split())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_without_asking(command, tmp_path):
    code, printed, errors = command("study", "paper", "--model", "Qwen/Qwen2.5-7B-Instruct")
    assert code == 2
    assert "7.616" in printed
    assert "Qwen/Qwen2.5-7B-Instruct is not on this machine: about 15.2 GB" in errors
    assert "--yes" in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_paper_s_study_is_a_preset_with_overrides(command, mistake, tmp_path):
    arguments = (*PAPER, "--set", "layer_rule=fixed", "--set", "seed=1", "--set", "seed=3", "--set")
    arguments += ("methods=[rfa, {name: pca_ot, k: 1}]", "--write", "x.yaml")
    code, printed, _ = command(*arguments)
    assert code == 0
    assert "ot-lens run x.yaml" in printed
    config = read_config(tmp_path / "x.yaml")
    assert (config.layer_sets, config.paper_table, config.judge) == ([[4], [3, 5]], True, None)
    assert (config.seed, config.methods) == (3, ["rfa", {"name": "pca_ot", "k": 1}])
    assert "x.yaml" in mistake(*arguments)


def test_several_models_are_one_queue(command, mistake, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ot_lens.cli.study.study_into", lambda *given, **options: asked.append((given, options))
    )
    models = ("--model", "organism:single", "--model", "organism:multi")
    code, _, _ = command("study", "paper", *models, "--out", "mine", "--resume")
    assert code == 0
    assert [str(folder) for (_, folder), _ in asked] == [
        "mine/paper-organism-single",
        "mine/paper-organism-multi",
    ]
    assert [configure(None).model for (configure, _), _ in asked] == ["organism:single", "organism:multi"]
    assert all(options["resume"] and options["executor"] == "local" for _, options in asked)
    assert "organism:multi" in mistake("study", "paper", *models, "--write", "x.yaml")
    assert "organism" in mistake("study", "paper", "--model", "organism", "--model", "organism")


def test_a_folder_without_a_tokenizer_is_named(mistake, tmp_path, tmp_path_factory, capsys):
    tiny = checkpoints.write(tmp_path_factory.mktemp("tiny") / "llama", "llama")
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer_config.json").unlink()
    capsys.readouterr()  # the progress bar of saving
    settings = ("--set", "judge=null", "--set", "prompts=organism")
    assert "tokenizer" in mistake("study", "paper", "--model", tiny, *settings, "--out", "run")
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------- the user's own code
def test_a_configuration_alone_imports_no_code(mistake, tmp_path):
    (tmp_path / "my_maps.py").write_text("raise AssertionError('imported')")
    (tmp_path / "study.yaml").write_text("extensions: [my_maps]")
    errors = mistake("run", "study.yaml", "--out", "run")
    assert "my_maps" in errors
    assert "--allow-code" in errors
    assert not (tmp_path / "run").exists()
    assert "my_maps" not in sys.modules


def test_allowed_code_is_imported_from_the_current_folder(mistake, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_extension.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    (tmp_path / "study.yaml").write_text("prompts: missing.json")
    for module in ("my_extension", "no_such_module"):
        errors = mistake("run", "study.yaml", "--set", f"extensions=[{module}]", "--allow-code")
        assert ("no_such_module" in errors) == (module == "no_such_module")
    assert (tmp_path / "imported").exists()


# ------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("run", "missing.yaml"), "missing.yaml"),
        (("figures", "."), "manifest.json"),
        (("demo", "--variant", "large", "--out", "x"), "organism:single"),
        (("organism", "evaluate", "--variant", "large"), "large"),
        (("organism", "train", "--out", "."), "not empty"),
        (("organism", "train", "--out", "x", "--band", "5-7"), "--base"),
        (("organism", "train", "--out", "x", "--base", "organism", "--band", "5"), "--band 5"),
        (("organism", "train", "--out", "x", "--base", "organism", "--band", "7-8"), "layers 0-7"),
        (("organism", "train", "--out", "x", "--base", "organism", "--variant", "multi"), "--variant multi"),
        (("organism", "train", "--out", "x", "--base", "organism", "--harmful", "mine.txt"), "--harmless"),
        (("benchmark", "localizers", "nowhere"), "'nowhere'"),
        (("study", "paper"), "--model"),
        ((*PAPER, "--set", "layer_rule=best"), "'best'"),
        ((*PAPER, "--set", "sede=3"), "'sede'"),
        ((*PAPER, "--set", "seed=[1"), "--set seed"),
        ((*PAPER, "--executor", "slurm"), "'slurm'"),
        ((*PAPER, "--address", "auto"), "--executor ray"),
    ],
)
def test_every_command_names_a_mistake_in_one_line(mistake, tmp_path, arguments, value):
    (tmp_path / "mine.txt").write_text("mine")
    assert value in mistake(*arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_ends_in_one_line(mistake, monkeypatch):
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/shard")

    monkeypatch.setattr("ot_lens.cli.study.study_into", full)
    assert mistake("demo").startswith("ot-lens: runs/x/shard: No space left on device")


def test_a_process_ends_with_one_line_and_imports_nothing_heavy_for_help(tmp_path):
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'transformers', 'transformer_lens', 'matplotlib'}"
    code = (
        "import sys, typer.testing, ot_lens.cli as cli\n"
        "result = typer.testing.CliRunner().invoke(cli.app, ['--help'])\n"
        f"print(result.exit_code, sorted({heavy} & set(sys.modules)))\n"
        "sys.argv = ['ot-lens', 'run', 'bad.yaml']\n"
        "cli.main()\n"
    )
    (tmp_path / "bad.yaml").write_text("modle: organism")
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert ended.stdout.strip() == "0 []"
    assert ended.returncode == 2
    assert "'modle'" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]
