"""A user's own method, diagnostic, judge and figure, from one file outside the package, in a study."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from ot_lens import transport
from ot_lens.errors import ConfigError, RunFolderError
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices
from ot_lens.explorer.views import content, views
from ot_lens.plots import method_mark
from ot_lens.study import RunFolder, parse_config, run_study
from ot_lens.transport import METHODS, method_label
from tests.conftest import NO_MECHANISMS, forgetting

PACKAGE = Path(transport.__file__).parents[1]
MODULE = '''
import torch
import ot_lens as otl
from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel
from ot_lens.plots.rows import curve
from ot_lens.plots.style import CLASSES

def half_shift(H, S, share=0.5):
    """Move every sample by a share of the difference of the means."""
    d = H.shape[1]
    nothing = torch.zeros(d, 0, dtype=torch.float64)
    return otl.AffineMap(nothing, nothing, share * (S.mean(0) - H.mean(0)))

class LengthJudge:
    name, version, question = "length", "1", "harmful"

    def __call__(self, prompts, completions):
        return [len(str(getattr(c, "text", c))) > 20 for c in completions]

otl.register_method("half_shift", half_shift, label="Half shift", family="transport", colour="#8A2BE2")
otl.register_judge("length", LengthJudge)
otl.register_diagnostic("mean_gap", lambda H, S: float((H.mean(0) - S.mean(0)).norm()), unit="activation")

def own_gap(geometry):
    line = Line("gap", CLASSES["harmful"], curve(geometry[geometry["quantity"] == "mean_gap"]))
    return Description((Panel("gap", LAYER, Axis("gap of the means"), (line,)),))

otl.register_figure("own_gap", own_gap, tables=["geometry"], title="Own gap by layer", caption="My caption.")
'''


@pytest.fixture(scope="module")
def own_run(run_settings, tmp_path_factory, without_figures):
    """A small study with the user's own code; afterwards this process has forgotten that code."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_own_maps.py").write_text(MODULE)
    own = {
        "methods": ["directional_ablation", {"name": "half_shift", "share": 0.25, "module": "my_own_maps"}],
        "judge": "length",
        "layers": [5, 7],
        "search_size": 0,
        "paper_table": False,
        **NO_MECHANISMS,
    }
    config = parse_config({**run_settings, **own})
    with forgetting(), pytest.MonkeyPatch.context() as patch, without_figures():
        patch.syspath_prepend(str(folder))
        with pytest.raises(ConfigError, match=r"my_own_maps.*--allow-code"):
            run_study(config, folder / "run")
        assert "my_own_maps" not in sys.modules
        run_study(config, folder / "run", allow_code=True)
        del sys.modules["my_own_maps"]
    return folder / "run"


def table(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / "tables" / f"{name}.parquet")


def test_a_user_s_own_code_is_in_the_tables(own_run):
    sweep = table(own_run, "localization")
    assert set(sweep["method"]) >= {"half_shift", "directional_ablation"}
    judged = sweep[(sweep["measure"] == "judged_success_rate") & (sweep["method"] == "half_shift")]
    assert judged["note"].str.contains("length").all()
    assert judged["p_value"].notna().any()
    geometry = table(own_run, "geometry")
    gap = geometry[geometry["quantity"] == "mean_gap"]
    assert set(gap["layer"]) == {5, 7}
    assert gap[["low", "high", "null_high", "n"]].notna().all().all()
    assert (own_run / "maps" / "half_shift-share0.25" / "layer-005.safetensors").is_file()


def test_a_process_without_the_code_shows_its_labels(own_run, registries):
    assert "half_shift" not in METHODS
    assert "half_shift" in (own_run / "report.html").read_text()
    assert method_label("half_shift") != "Half shift"
    RunFolder.open(own_run)
    assert method_label("half_shift") == "Half shift"
    assert "my_own_maps" not in sys.modules


def test_a_user_s_own_figure_is_in_the_report_and_drawn_where_code_is_allowed(
    own_run, tmp_path, command, monkeypatch, registries
):
    assert "Own gap by layer" in (own_run / "report.html").read_text()
    run = shutil.copytree(own_run, tmp_path / "run", ignore=all_tables_but("geometry"))
    monkeypatch.syspath_prepend(str(own_run.parent))
    monkeypatch.setattr("sys.path", [*sys.path])
    for name, word in (("plain", ()), ("own", ("--allow-code",))):
        code, out, _ = command("figures", run, "--out", tmp_path / name, "--format", "svg", *word)
        assert code == 0, out
    assert not (tmp_path / "plain" / "own_gap.svg").exists()
    assert (tmp_path / "own" / "own_gap.svg").stat().st_size > 1000
    assert (tmp_path / "own" / "own_gap.txt").read_text().startswith("My caption.")
    opened = OpenRun(own_run)
    assert content(views()["own_gap"], opened, Choices(opened).first).figure is not None
    del sys.modules["my_own_maps"]


def all_tables_but(kept: str) -> Callable[[str, list[str]], list[str]]:
    """What not to copy of a run: drawing takes a second per figure."""
    return lambda folder, names: [n for n in names if folder.endswith("tables") and n != f"{kept}.parquet"]


def test_a_process_without_the_code_draws_its_method_on_the_page(own_run):
    try:
        run = OpenRun(own_run)
        for name in ("localization", "methods"):
            state = Choices(run).read({"layers": "5", "ot": "half_shift", "by": "directional_ablation"})
            assert "Half shift" in json.dumps(content(views()[name], run, state).figure)
        mark = method_mark("half_shift")
        assert (mark.label, mark.color) == ("Half shift", "#8A2BE2")
        assert "half_shift" in run.map_folders
    finally:
        METHODS.pop("half_shift", None)


def test_a_method_is_one_file():
    """Built-in methods that no default or published study names occur in the file of their fit alone."""
    for name in ("leace", "subspace_ablation"):
        files = [path for path in PACKAGE.rglob("*.py") if f'"{name}"' in path.read_text()]
        assert len(files) == 1, files


def test_a_new_file_in_the_package_is_a_new_method(tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "ot_lens", ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / "transport" / "shift.py").read_text()
    new = text.replace("mean_shift", "twice_shift").replace("Mean shift", "Twice shift")
    (copy / "transport" / "twice_shift.py").write_text(new)
    code = "import ot_lens.plots as p; print(p.method_mark('twice_shift').label, p.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path, env=environment)
    assert printed.startswith("Twice shift")
    assert str(tmp_path) in printed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("colour", "red; }"),
        ("marker", "skull"),
        ("label", "Half\x1b[2J"),
        ("label", 3),
        ("fit", "os.system"),
        ("family", "other"),
        ("name", "../x"),
    ],
)
def test_a_damaged_record_of_a_method_is_refused(own_run, tmp_path, field, value):
    manifest = json.loads((own_run / "manifest.json").read_text())
    manifest["methods"][1][field] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="methods"):
        RunFolder.open(tmp_path)
