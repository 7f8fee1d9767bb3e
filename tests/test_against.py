"""A run against another: the table it leaves in the run folder, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ot_lens as otl
from ot_lens.errors import RunFolderError
from ot_lens.study import RunFolder, parse_config
from tests import checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that got as far as its activations."""
    config = parse_config({"permutations": 39, "bootstrap": 39, "layers": [1, 3]})
    folder = RunFolder.start(tmp_path / "one", config, resume=False)
    model = otl.load_model(checkpoints.model("llama"), tokenizer=checkpoints.tokenizer("llama"))
    otl.capture(model, checkpoints.contrast(8), layers=[1, 3], store=folder.path / "activations" / "train")
    return folder.path


def test_against_itself_the_diagonal_is_one(run: Path, tmp_path: Path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    table = otl.compare_runs(run, other)
    kept = pd.read_parquet(run / "tables" / "run_cosines.parquet")
    pd.testing.assert_frame_equal(kept, table, check_dtype=False)
    assert set(table["other"]) == {"other"}
    same = table["layer"] == table["layer_other"]
    np.testing.assert_allclose(table.loc[same, "cosine"], 1.0)
    assert (table.loc[~same, "cosine"].abs() < 1 - 1e-6).all()
    assert (table["n"] == 16).all()


def test_the_figure_is_drawn_from_the_command_line(run: Path, tmp_path: Path, monkeypatch, capsys):
    from ot_lens.cli import main

    other = Path(shutil.copytree(run, tmp_path / "other"))
    monkeypatch.setattr(
        "sys.argv", ["ot-lens", "figures", str(run), "--against", str(other), "--format", "png"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert (run / "figures" / "run_cosines.png").is_file()
    assert "other" in (run / "figures" / "run_cosines.txt").read_text()
    assert "not drawn: spectra" in capsys.readouterr().out


def test_a_folder_that_is_no_run_changes_nothing(run: Path, tmp_path: Path):
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(RunFolderError, match="no run folder"):
        otl.compare_runs(run, tmp_path)
    assert sorted(path.name for path in run.rglob("*")) == before
