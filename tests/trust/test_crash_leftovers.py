"""What a stop at one particular moment leaves; `test_crash_safety.py` stops at random moments."""

import errno
from io import FileIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from matplotlib.figure import Figure

from ot_lens.activations import Activations
from ot_lens.activations.index import CHECKSUMS, add_checksum, read_checksums
from ot_lens.behaviour import phrase_list
from ot_lens.behaviour.panel import PanelSettings
from ot_lens.errors import CannotWriteError, RunFolderError
from ot_lens.execution.executor import Executor
from ot_lens.explorer.runs import OpenRun
from ot_lens.io.files import LOCK, locked, release, temporaries
from ot_lens.localization import SweepSettings
from ot_lens.plots.gallery import save
from ot_lens.progress import silent
from ot_lens.prompts import load_prompts
from ot_lens.study import RunFolder, StudyConfig, parse_config, run_study
from ot_lens.study.measuring import sweep_into
from ot_lens.study.preparation import Prepared, Work


def test_a_run_killed_before_its_manifest_was_written_is_no_obstacle(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / ".manifest.77.tmp.json").write_text('{"half": ')
    assert RunFolder.existing(tmp_path, StudyConfig(), resume=False) is None
    RunFolder.start(tmp_path, StudyConfig(), resume=False)
    assert temporaries(tmp_path) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(RunFolderError, match="not an empty folder"):
        RunFolder.existing(tmp_path / "other", StudyConfig(), resume=True)


def test_a_table_that_is_still_being_written_is_not_listed(tmp_path):
    """Figures and the explorer read runs that are being written, or whose writer was killed."""
    folder = RunFolder.start(tmp_path, StudyConfig(), resume=False)
    folder.write_table("geometry", pd.DataFrame({"layer": [1]}))
    (tmp_path / "tables" / ".cosines.1.tmp.parquet").write_bytes(b"PAR1")
    assert list(RunFolder.open(tmp_path).tables()) == ["geometry"]
    opened = OpenRun(tmp_path)
    assert (list(opened.tables), opened.faults) == (["geometry"], {})


def test_temporary_files_are_removed_everywhere_in_the_run_and_nothing_else(tmp_path):
    RunFolder.start(tmp_path, StudyConfig(), resume=False)
    left = [
        tmp_path / name for name in ("tables/parts/.a.1.tmp.parquet", "maps/x/.layer-001.2.tmp.safetensors")
    ]
    others = [tmp_path / name for name in ("tables/a.tmp.parquet", "figures/.hidden.png", "notes.1.tmp")]
    for path in (*left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    RunFolder.start(tmp_path, StudyConfig(), resume=True)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_a_configuration_that_a_kill_prevented_is_written_on_resume(tmp_path):
    RunFolder.start(tmp_path, StudyConfig(), resume=False)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").unlink()
    RunFolder.start(tmp_path, StudyConfig(), resume=True)
    assert (tmp_path / "config.yaml").read_text() == text


def test_parts_are_removed_even_if_the_kill_came_after_they_were_joined(tmp_path):
    folder = RunFolder.start(tmp_path, StudyConfig(), resume=False)
    for name in ("localization", "parts/a", "parts/b"):
        folder.write_table(name, pd.DataFrame({"x": [1]}))
    settings = SweepSettings(PanelSettings(("kl",), phrase_list("arditi"), (1,)), (0,), 1)
    unused, ready, prompts = Mock(spec=Executor), Prepared(settings, {}, {}), load_prompts("organism")
    work = Work(folder, StudyConfig(), prompts, {}, unused, ready, silent)
    sweep_into(work, [], Mock(spec=Activations))
    assert unused.method_calls == []
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["localization.parquet"]


def test_a_folder_in_use_is_reported_and_a_lock_without_a_process_is_ignored(tmp_path):
    config = parse_config({"measures": ["kl"], "layers": [7]})
    with locked(tmp_path / "run"), pytest.raises(RunFolderError, match="in use by another process"):
        run_study(config, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "run" / LOCK).touch()
    release(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_checksum_that_was_written_in_part_is_completed(tmp_path, monkeypatch):
    class Nearly(FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[:10])

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Nearly(path, "ab"))
    add_checksum(tmp_path, "harmful-00000", "0" * 64)
    monkeypatch.undo()
    assert (tmp_path / CHECKSUMS).read_text() == f"{'0' * 64}  harmful-00000.safetensors\n"
    assert read_checksums(tmp_path) == ({"harmful-00000": "0" * 64}, True)


def test_a_figure_that_does_not_fit_on_the_disk_leaves_the_previous_one(tmp_path, monkeypatch):
    def half(_figure: Figure, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.png").write_bytes(b"whole")
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(
        CannotWriteError, match=r"Cannot write \S+/a.png: No space left on device; free some space\."
    ):
        save(Figure(), tmp_path / "a", ("png",))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"whole"}
