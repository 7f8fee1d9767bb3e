"""A whole run: one folder, resumable to the same bytes, never over another run; the command line on top."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

import ot_lens as otl
from ot_lens import cli
from ot_lens.errors import ConfigError, RunFolderError
from ot_lens.study import (
    StudyConfig,
    commented_yaml,
    parse_config,
    read_config,
    run_study,
    summarize,
)
from ot_lens.tables import effects

TABLES = ("localization", "geometry", "spectra", "cosines", "plane", "plane_ellipses")


@pytest.fixture(scope="module")
def config_file(run_settings: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "study.yaml"
    path.write_text(yaml.safe_dump(run_settings))
    return path


def ot_lens(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ot_lens.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def test_a_run_folder_holds_what_was_promised(finished_run):
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["model"]["name"] == "organism"
    assert manifest["prompts"]["counts"]["test"] == {"harmful": 12, "harmless": 12}
    assert set(manifest["prompts"]["sha256"]) == {"train", "val", "test"}
    assert manifest["versions"]["ot_lens"] == otl.__version__
    for name in TABLES:
        assert len(pd.read_parquet(finished_run / "tables" / f"{name}.parquet")) > 0
    assert otl.load_activations(finished_run / "activations" / "train").n_harmful == 12
    edit = otl.AffineMap.load(finished_run / "maps" / "pca_ot-k2" / "layer-007.safetensors")
    assert (edit.info.layer, edit.info.k, edit.info.n_harmful) == (7, 2, 12)
    assert (finished_run / "report.html").stat().st_size > 10_000
    assert list((finished_run / "figures").glob("*.png"))
    assert not [p for p in finished_run.rglob("*") if ".tmp" in p.name or p.name == "parts"]


def test_stored_answers_are_nowhere(finished_run):
    """Scores are stored, completions are not."""
    prompts = otl.load_prompts("organism")
    answer = prompts.test.harmless[0].answer.encode()
    assert not [name for name, content in contents(finished_run).items() if answer in content]


def started(config_file: Path, run: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ot_lens.cli", "run", str(config_file), "--out", str(run), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_parts(process: subprocess.Popen[str], run: Path, more_than: int) -> None:
    deadline = time.monotonic() + 240
    while parts(run) <= more_than:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parts(run: Path) -> int:
    return len(list((run / "tables" / "parts").glob("[!.]*.parquet")))


def test_an_interrupted_and_then_killed_run_resumes_to_the_same_tables(
    config_file, run_settings, finished_run, tmp_path, without_figures
):
    """Ctrl-C, resumed, SIGKILL, in processes of their own, resumed here: the same bytes as in one go."""
    run = tmp_path / "stopped"
    process = started(config_file, run)
    wait_for_parts(process, run, 2)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    printed = process.communicate(timeout=60)[1]
    took = time.monotonic() - sent
    assert process.returncode == 130
    assert took < 2
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert f"interrupted: all measurements so far are in {run}" in last
    assert f"ot-lens run {config_file} --out {run} --resume" in last
    kept = parts(run)
    assert kept > 2

    process = started(config_file, run, "--resume")
    wait_for_parts(process, run, kept)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(RunFolderError, match=r"an unfinished run .*--resume"):
        run_study(parse_config(run_settings), run)
    with without_figures():
        assert run_study(parse_config(run_settings), run, resume=True).report.is_file()
    for name in TABLES:
        path = f"tables/{name}.parquet"
        assert (run / path).read_bytes() == (finished_run / path).read_bytes()


def test_a_finished_run_is_shown_again_and_not_touched(config_file, run_settings, finished_run):
    before = contents(finished_run)
    with pytest.raises(RunFolderError, match="a finished run"):
        run_study(parse_config(run_settings), finished_run)
    shown = ot_lens("run", config_file, "--out", finished_run, "--resume")
    assert shown.returncode == 0, shown.stderr
    assert "unedited" in shown.stdout
    assert "report.html" in shown.stdout
    assert contents(finished_run) == before


def test_another_run_s_folder_is_left_alone(run_settings, finished_run, tmp_path):
    before = contents(finished_run)
    with pytest.raises(RunFolderError, match=r"another run \(seed differs\)"):
        run_study(parse_config({**run_settings, "seed": 5}), finished_run, resume=True)
    assert contents(finished_run) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not an empty folder"):
        run_study(parse_config(run_settings), tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_figures_are_drawn_from_the_tables_alone(finished_run, tmp_path):
    copy = tmp_path / "run"
    (copy / "tables").mkdir(parents=True)
    (copy / "manifest.json").write_bytes((finished_run / "manifest.json").read_bytes())
    for name in ("geometry", "cosines"):
        shutil.copy(finished_run / "tables" / f"{name}.parquet", copy / "tables")
    drawn = ot_lens("figures", copy, "--out", tmp_path / "figures", "--format", "svg")
    assert drawn.returncode == 0, drawn.stderr
    pictures = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert pictures == {"w2_per_layer", "effective_rank", "direction_cosines"}
    assert "not drawn: spectra" in drawn.stdout


def test_a_run_of_before_a_field_was_known_is_still_this_run(run_settings, finished_run, tmp_path):
    """Fields that were added later had their defaults."""
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("judge", "layer_sets", "filter", "device_map"):
        del manifest["config"][name]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert len(run_study(parse_config(run_settings), copy, resume=True).tables) == len(
        list((finished_run / "tables").glob("*.parquet"))
    )
    with pytest.raises(RunFolderError, match="filter differs"):
        run_study(parse_config({**run_settings, "filter": "answers"}), copy, resume=True)


def test_the_commented_configuration_is_the_default(tmp_path):
    path = tmp_path / "study.yaml"
    assert ot_lens("init", path).returncode == 0
    text = path.read_text()
    assert read_config(path) == StudyConfig()
    for name, field in StudyConfig.model_fields.items():
        assert field.description
        assert f"# {field.description}\n{name}:" in text
    refused = ot_lens("init", path)
    assert refused.returncode == 2
    assert "not overwritten" in refused.stderr
    assert path.read_text() == commented_yaml()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("modle: organism", "unknown field 'modle'"),
        ("strength: two", "strength"),
        ("seed: -1", "seed"),
        ("max_new_tokens: none", "max_new_tokens"),
        ("methods: []", "methods"),
        ("- a", "holds a list"),
        ("a: [", "not readable YAML"),
        ("position: 0", "position"),
    ],
)
def test_bad_configurations_name_the_field(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": "nobody/nothing"}, "'nobody/nothing' is not in the local cache"),
        ({"model": "./missing"}, "no model folder"),
        ({"model": "organism:large"}, "organism:single"),
        ({"prompts": "missing.json"}, "missing.json"),
        ({"layers": [99]}, "layer 99 does not exist: this model has layers 0-7"),
        ({"hook": "resid"}, "no hook point 'resid'"),
        ({"tokens": "first"}, "no token scope 'first'"),
        ({"methods": ["pca"]}, "no method 'pca'"),
        ({"measures": ["asr"]}, "no measure 'asr'"),
        ({"sets": ["pairs"]}, "no layer set 'pairs'"),
        ({"refusal_tokens": ["elephant"]}, "'elephant' is not a single token"),
        ({"phrases": "none"}, "no phrase list 'none'"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"device": "cuda:7"}, "cuda:7"),
        ({"layer_sets": [[99]]}, "layer 99 is not swept"),
        ({"answers": "some"}, "no choice of answers 'some'"),
        ({"filter": "refused"}, "no filter 'refused': choose one of off, refusal_score, answers"),
        ({"judge": "gpt"}, "no judge preset 'gpt'"),
        ({"judge": {"classifier": "./missing", "label": 1, "question": "harmful"}}, "cannot load the class"),
        ({"judge_memory": "apart"}, "no judge_memory 'apart'"),
        ({"perplexity_text": "missing.txt"}, "perplexity_text = 'missing.txt': no such file"),
        ({"activation_dtype": "int8"}, "int8"),
        ({"quantization": "int3"}, "int3"),
        ({"sample": [1000000, 1]}, "fewer than the|too few"),
        ({"plane_layer": 99}, "layer 99"),
        ({"figure_style": "nature"}, "nature"),
        ({"position": -99}, "shortest has"),
    ],
)
def test_bad_runs_end_in_one_line_and_leave_nothing(tmp_path, content, message):
    """In one process for speed; the command line's own part is tested below."""
    from ot_lens.errors import OtLensError

    with pytest.raises(OtLensError, match=message) as caught:
        run_study(parse_config(content), tmp_path / "run")
    assert "\n" not in str(caught.value).strip()
    assert not (tmp_path / "run").exists()


def test_the_command_line_prints_one_line_without_a_traceback(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("modle: organism")
    ended = ot_lens("run", path, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert "unknown field 'modle'" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.yaml"], "no configuration missing.yaml"),
        (["figures", "."], "is no run folder"),
        (["demo", "--variant", "large", "--out", "x"], "organism:single"),
        (["organism", "evaluate", "--variant", "large"], "large"),
        (["organism", "train", "--out", "."], "not empty"),
    ],
)
def test_every_command_names_a_mistake(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["ot-lens", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_help_is_quick_because_nothing_heavy_is_loaded():
    code = (
        "import sys, typer.testing, ot_lens.cli as cli\n"
        "result = typer.testing.CliRunner().invoke(cli.app, ['--help'])\n"
        "heavy = {'torch', 'numpy', 'pandas', 'scipy', 'transformers', 'transformer_lens', 'matplotlib'}\n"
        "print(result.exit_code, sorted(heavy & set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ended.stdout.strip() == "0 []"


@pytest.mark.parametrize("measures", [["refusal_score", "kl"], ["refusal_rate"], ["kl"]])
def test_a_run_of_few_measures_goes_through(run_settings, tmp_path, capsys, monkeypatch, measures):
    """Without answers, without the next token, without references: what there is is drawn and said."""
    path = tmp_path / "few.yaml"
    few = {**run_settings, "measures": measures, "layers": [7], "methods": ["mean_shift"], "search_size": 0}
    path.write_text(yaml.safe_dump(few))
    monkeypatch.setattr(sys, "argv", ["ot-lens", "run", str(path), "--out", str(tmp_path / "run")])
    # Drawn and laid out, but not written, which takes as long again.
    monkeypatch.setattr("ot_lens.plots.gallery.save", lambda *_, **__: [])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert "nan" not in printed
    assert (tmp_path / "run" / "report.html").is_file()
    assert ("refusal rate was not measured" in " ".join(printed.split())) == ("refusal_rate" not in measures)


def test_the_summary_says_what_was_measured_and_no_more(finished_run):
    table = pd.read_parquet(finished_run / "tables" / "localization.parquet")
    text = " ".join(summarize(table))
    base = effects(table).query("set == 'none'").iloc[0]
    assert f"{base['refusal']:.0%}" in text
    assert "12 held-out harmful prompts" in text
    assert "nan" not in text
    assert "not measured" in summarize(table[table["measure"] != "refusal_rate"])[0]
