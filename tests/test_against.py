"""Comparing two runs: the table it leaves in the run folder, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ot_lens as otl
from ot_lens.errors import RunFolderError
from ot_lens.study import RunFolder, parse_config
from tests import checkpoints


@pytest.fixture(scope="module")
def captured(tmp_path_factory) -> Path:
    """A run that got as far as its activations."""
    config = parse_config({"permutations": 39, "bootstrap": 39, "layers": [1, 3]})
    folder = RunFolder.start(tmp_path_factory.mktemp("against") / "one", config, resume=False)
    model = otl.load_model(checkpoints.model("llama"), tokenizer=checkpoints.tokenizer("llama"))
    otl.capture(model, checkpoints.contrast(8), layers=[1, 3], store=folder.path / "activations" / "train")
    return folder.path


@pytest.fixture
def runs(captured, tmp_path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copytree(captured, tmp_path / name)) for name in ("run", "other"))


def test_against_itself_the_diagonal_is_one(runs):
    run, other = runs
    table = otl.compare_runs(run, other)
    stored = pd.read_parquet(run / "tables" / "run_cosines.parquet")
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
    assert set(table["other"]) == {"other"}
    same = table["layer"] == table["layer_other"]
    np.testing.assert_allclose(table.loc[same, "cosine"], 1.0)
    assert (table.loc[~same, "cosine"].abs() < 1 - 1e-6).all()
    assert (table["n"] == 16).all()


def test_the_figure_is_drawn_from_the_command_line(runs, command):
    run, other = runs
    code, printed, _ = command("figures", run, "--against", other, "--format", "png")
    assert code == 0
    assert "not drawn: covariance_spectra" in printed
    assert (run / "figures" / "run_cosines.png").is_file()
    assert "other" in (run / "figures" / "run_cosines.txt").read_text()


def test_a_folder_that_is_not_a_run_changes_nothing(runs, tmp_path):
    run, _ = runs
    before = sorted(run.rglob("*"))
    with pytest.raises(RunFolderError, match=tmp_path.name):
        otl.compare_runs(run, tmp_path)
    assert sorted(run.rglob("*")) == before
