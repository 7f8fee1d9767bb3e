"""A complete run: one folder, resumable to the same bytes, never over another run; and its configuration."""

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

import ot_lens as otl
from ot_lens.activations import load_activations
from ot_lens.cli import console
from ot_lens.cli.results import print_result
from ot_lens.errors import (
    ConfigError,
    FitError,
    HookError,
    NotMeasuredWarning,
    OtLensError,
    RunFolderError,
    SinglePassError,
)
from ot_lens.execution import LocalExecutor
from ot_lens.localization import as_methods
from ot_lens.study import (
    RunFolder,
    StudyConfig,
    commented_yaml,
    mechanisms,
    parse_config,
    read_config,
    run_study,
    smollm2_study,
    summarize,
)
from ot_lens.study.diagnostics import MAKERS
from ot_lens.study.subject import Study
from ot_lens.tables import effects, most_effective_layer, reported
from tests import checkpoints, decoders
from tests.conftest import NO_MECHANISMS

TABLES = (
    "localization", "localizers", "interchange", "contributions", "geometry", "spectra", "cosines", "plane",
    "plane_ellipses",
)  # fmt: skip


@pytest.fixture(scope="module")
def config_file(run_settings: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "study.yaml"
    path.write_text(yaml.safe_dump(run_settings))
    return path


def contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def cached_parts(run: Path) -> int:
    return len(list((run / "tables" / "parts").glob("[!.]*.parquet")))


def test_harm_apart_from_refusal_is_measured_on_request(monkeypatch):
    """With the study's methods that fit each layer by itself; a model that refuses nothing is told of."""
    config, acts = StudyConfig(harm=True), {"train": SimpleNamespace(layers=(2, 5))}
    maps = {method: {} for method in as_methods(["rfa", "linear_act_joint", "mean_shift"])}
    folder, prompts = RunFolder(Path(), {}), otl.load_prompts("organism", sample=(4, 4, 4))
    study = Study(folder, acts, maps, config, pd.DataFrame(), LocalExecutor(None), prompts)
    asked = []

    def measured(_model, prompts, methods, **options):
        asked.append(([method.name for method in methods], options["layers"]))
        if len(asked) > 1:
            raise FitError("refuses 0 of 4")
        return pd.DataFrame({"n": [len(prompts.test.harmful)]})

    monkeypatch.setattr(mechanisms, "harm_and_refusal", measured)
    assert MAKERS["harm"](study)["harm"]["n"].tolist() == [4]
    assert asked == [(["rfa", "mean_shift"], (2, 5))]
    with pytest.warns(NotMeasuredWarning, match="refuses 0 of 4"):
        assert MAKERS["harm"](study) == {}
    for maker, off in (("harm", {"harm": False}), ("readout", {"readout": 0})):
        assert MAKERS[maker](replace(study, config=config.model_copy(update=off))) == {}


def test_a_run_names_the_methods_that_come_with_controls(finished_run):
    folder = RunFolder.open(finished_run)
    named = [record["name"] for record in folder.manifest["methods"]]
    assert named == ["directional_ablation", "rfa", "pca_ot", "mean_shift", "linear_act"]
    sweep = folder.read_table("localization")
    assert set(named) == set(sweep.loc[sweep["set"] != "none", "method"])
    assert "<b>Linear-AcT</b>" in (finished_run / "report.html").read_text()


def test_a_model_that_cannot_be_replayed_is_studied_without_localizers(finished_run, monkeypatch):
    def fails(*_args, **_options):
        raise SinglePassError("A block cannot be run again.")

    folder = RunFolder.open(finished_run)
    config = folder.config.model_copy(update={"localizers": 2})
    executor = LocalExecutor(otl.load_model("organism"))
    study = Study(folder, {}, {}, config, pd.DataFrame(), executor, otl.load_prompts("organism"))
    found = MAKERS["localizers"](study)["localizers"]
    assert set(found["n_harmful"]) == {2}
    monkeypatch.setattr(mechanisms, "located", fails)
    with pytest.warns(NotMeasuredWarning, match="A block cannot be run again"):
        assert MAKERS["localizers"](study) == {}
    none = replace(study, config=config.model_copy(update={"localizers": 0}))
    assert MAKERS["localizers"](none) == {}


def test_contributions_that_do_not_add_up_are_left_out_of_a_study(finished_run, monkeypatch):
    def fails(*_args, **_options):
        raise HookError("The contributions miss the stream.")

    folder = RunFolder.open(finished_run)
    config = folder.config.model_copy(update={"contributions": 3})
    acts = {"train": load_activations(finished_run / "activations" / "train")}
    sweep = folder.read_table("localization")
    executor = LocalExecutor(otl.load_model("organism"))
    study = Study(folder, acts, {}, config, sweep, executor, otl.load_prompts("organism"))
    table = MAKERS["contributions"](study)["contributions"]
    assert set(table.loc[table["prompts"] == "harmful", "n"]) == {3}
    layer = most_effective_layer(reported(sweep))
    assert set(table["at_layer"]) == {layer}
    behind = replace(study, config=config.model_copy(update={"hook": "resid_post"}))
    after = MAKERS["contributions"](behind)["contributions"]["at_layer"]
    assert after.isna().all() if layer == 7 else set(after) == {layer + 1}
    monkeypatch.setattr(mechanisms, "contributions", fails)
    with pytest.warns(NotMeasuredWarning, match="miss the stream"):
        assert MAKERS["contributions"](study) == {}
    none = config.model_copy(update={"contributions": 0})
    assert MAKERS["contributions"](replace(study, config=none)) == {}


def test_a_study_leaves_out_the_heads_that_write_most_on_training_prompts(finished_run):
    """The heads are those of the training prompts, at most every second one; a study without any says so."""
    folder, prompts = RunFolder.open(finished_run), otl.load_prompts("organism", sample=(12, 1, 6))
    table, model = folder.read_table("ablated_heads"), otl.load_model("organism")
    chosen = table[table["set"] == "chosen"]
    assert set(chosen["mode"]) == {"mean", "resample"}
    assert chosen.groupby("mode")["p_value"].count().tolist() == [1, 1]
    config = folder.config.model_copy(update={"ablated_heads": 100, "contributions": 4})
    acts = {"train": load_activations(finished_run / "activations" / "train")}
    sweep = folder.read_table("localization")
    study = Study(folder, acts, {}, config, sweep, LocalExecutor(model), prompts)
    table = MAKERS["ablated_heads"](study)["ablated_heads"]
    layer = most_effective_layer(reported(sweep))
    assert set(table.loc[table["set"] == "chosen", "n_heads"]) == {layer * 4 // 2}
    assert set(table["n"]) == {4}
    direction = acts["train"].harmful(layer).mean(dim=0) - acts["train"].harmless(layer).mean(dim=0)
    written = otl.contributions(model, prompts.train, direction, layer, permutations=1, bootstrap=1)
    heads = ", ".join(f"{a}.{b}" for a, b in otl.top_heads(written, layer * 4 // 2))
    assert set(table["heads"]) == {heads, ""}
    for off in ({"ablated_heads": 0}, {"contributions": 0}):
        assert MAKERS["ablated_heads"](replace(study, config=config.model_copy(update=off))) == {}


def test_a_model_without_heads_is_studied_without_ablating_any(finished_run, tmp_path):
    folder = RunFolder.open(finished_run)
    model, config = decoders.load("mamba2", tmp_path), folder.config
    few, nothing = checkpoints.contrast_set(2), folder.read_table("localization").head(0)
    study = Study(
        folder, {"train": otl.capture(model, few.train)}, {}, config, nothing, LocalExecutor(model), few
    )
    with pytest.warns(NotMeasuredWarning, match="heads"):
        assert MAKERS["ablated_heads"](study) == {}


def test_a_model_that_cannot_be_replayed_is_studied_without_interchange(finished_run, monkeypatch):
    def fails(*_args, **_options):
        raise SinglePassError("A block cannot be run again.")

    folder = RunFolder.open(finished_run)
    config = folder.config.model_copy(update={"interchange": 1})
    executor = LocalExecutor(otl.load_model("organism"))
    study = Study(folder, {}, {}, config, pd.DataFrame(), executor, otl.load_prompts("organism"))
    found = MAKERS["interchange"](study)["interchange"]
    assert set(found["null_draws"]) == {0}  # one prompt has no partner of its own class
    monkeypatch.setattr(mechanisms, "interchange", fails)
    with pytest.warns(NotMeasuredWarning, match="A block cannot be run again"):
        assert MAKERS["interchange"](study) == {}
    none = replace(study, config=config.model_copy(update={"interchange": 0}))
    assert MAKERS["interchange"](none) == {}


def test_the_study_of_smollm2_is_a_valid_configuration_that_can_be_changed():
    config = smollm2_study("spread", seed=3, methods=["rfa"])
    assert (config.model, config.base) == ("smollm2:spread", "smollm2")
    assert (config.seed, config.methods) == (3, ["rfa"])
    assert {layer for [layer] in config.layer_sets} <= set(config.layers)
    with pytest.raises(ConfigError, match="'layrs'"):
        smollm2_study(layrs=[3])


# ---------------------------------------------------------------------------------------------- the run
def test_a_run_folder_holds_everything_that_is_promised(finished_run):
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert (manifest["finished"], manifest["model"]["name"]) == (True, "organism")
    assert len(manifest["model"]["weights_sha256"]) == 64
    assert manifest["prompts"]["counts"]["test"] == {"harmful": 12, "harmless": 12}
    assert set(manifest["prompts"]["sha256"]) == {"train", "val", "test"}
    assert manifest["seeds"] == {"prompts": 0, "intervals": 0, "controls": [0, 1]}
    assert manifest["versions"]["ot_lens"] == otl.__version__
    assert {"python", "torch", "transformers", "numpy", "matplotlib"} <= set(manifest["versions"])
    assert set(manifest["machine"]) == {"system", "release", "machine", "libc"}
    assert manifest["measuring"]["refusal_tokens"]
    assert manifest["measuring"]["phrases"]["list"]
    tables = {f"tables/{path.name}" for path in (finished_run / "tables").iterdir()}
    assert {f"tables/{name}.parquet" for name in TABLES} <= tables
    assert tables | {"config.yaml", "report.html", "activations/train/shards.sha256"} <= set(
        manifest["files"]
    )
    assert otl.load_activations(finished_run / "activations" / "train").n_harmful == 16
    edit = otl.AffineMap.load(finished_run / "maps" / "pca_ot-k2" / "layer-007.safetensors")
    assert (edit.info.layer, edit.info.k, edit.info.n_harmful) == (7, 2, 16)
    assert list((finished_run / "figures").glob("*.png"))
    assert not [p for p in finished_run.rglob("*") if ".tmp" in p.name or p.name == "parts"]


def test_a_run_stores_scores_but_no_answers_and_sums_them_up(finished_run):
    answer = otl.load_prompts("organism").test.harmless[0].answer.encode()
    assert not [name for name, content in contents(finished_run).items() if answer in content]
    table = pd.read_parquet(finished_run / "tables" / "localization.parquet")
    text = " ".join(summarize(table))
    base = effects(table).query("set == 'none'").iloc[0]
    assert f"{base['refusal']:.0%}" in text
    assert "12 held-out harmful prompts" in text
    assert "nan" not in text


def test_an_interrupted_run_resumes_to_the_same_bytes(run_settings, tmp_path, monkeypatch):
    """Ctrl-C in the middle of the sweep; that of a command: tests/trust/test_crash_safety.py."""
    few = {"layers": [5, 7], "methods": ["mean_shift"], "max_new_tokens": 4, "sufficiency": False}
    few |= {"localizers": 2, "contributions": 2, "interchange": 2, "readout": 2, "ablated_heads": 0}
    settings = {**run_settings, **few, "search_size": 0, "paper_table": False, "defence": False}
    config, run, whole = parse_config(settings), tmp_path / "stopped", tmp_path / "whole"

    @contextmanager
    def stopping(_name: str, _total: int | None):
        def step(_done: int) -> None:
            if cached_parts(run) >= 3:
                raise KeyboardInterrupt

        yield step

    monkeypatch.setattr("ot_lens.study.run._draw", lambda *_: None)  # made from the tables alone
    with pytest.raises(KeyboardInterrupt):
        run_study(config, run, stage=stopping)
    assert cached_parts(run) == 3
    with pytest.raises(RunFolderError, match=r"unfinished.*--resume"):
        run_study(config, run)
    run_study(config, run, resume=True)
    run_study(config, whole)
    for name in TABLES:
        path = f"tables/{name}.parquet"
        assert (run / path).read_bytes() == (whole / path).read_bytes()


def test_a_finished_run_is_shown_again_and_not_modified(command, config_file, run_settings, finished_run):
    before = contents(finished_run)
    with pytest.raises(RunFolderError, match="a finished run"):
        run_study(parse_config(run_settings), finished_run)
    code, printed, errors = command("run", config_file, "--out", finished_run, "--resume")
    assert code == 0, errors
    assert "unedited" in printed
    assert "report.html" in printed
    assert contents(finished_run) == before


def test_the_folder_of_another_run_is_left_alone(run_settings, finished_run, tmp_path):
    before = contents(finished_run)
    with pytest.raises(RunFolderError, match="seed"):
        run_study(parse_config({**run_settings, "seed": 5}), finished_run, resume=True)
    assert contents(finished_run) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=str(tmp_path)):
        run_study(parse_config(run_settings), tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_figures_are_drawn_from_the_tables_alone(command, finished_run, tmp_path):
    copy = tmp_path / "run"
    (copy / "tables").mkdir(parents=True)
    shutil.copy(finished_run / "manifest.json", copy)
    for name in ("geometry", "cosines"):
        shutil.copy(finished_run / "tables" / f"{name}.parquet", copy / "tables")
    code, printed, errors = command("figures", copy, "--out", tmp_path / "figures", "--format", "svg")
    assert code == 0, errors
    figures = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert figures == {"w2_per_layer", "effective_rank", "direction_cosines"}
    assert "not drawn: spectra" in printed


def test_fields_that_were_added_later_had_their_defaults(run_settings, copied_run):
    path = copied_run / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("judge", "layer_sets", "filter", "device_map", "extensions"):
        del manifest["config"][name]
    path.write_text(json.dumps(manifest))
    resumed = run_study(parse_config(run_settings), copied_run, resume=True)
    assert len(resumed.tables) == len(list((copied_run / "tables").glob("*.parquet")))
    with pytest.raises(RunFolderError, match="filter"):
        run_study(parse_config({**run_settings, "filter": "answers"}), copied_run, resume=True)


def test_printed_tables_fit_80_columns_and_nothing_is_cut(finished_run, capsys, monkeypatch):
    monkeypatch.setattr(console.out, "width", 80)
    print_result(run_study(RunFolder.open(finished_run).config, finished_run, resume=True))
    printed = capsys.readouterr().out
    tables = [line for line in printed.splitlines() if "/" not in line]
    assert max(map(len, tables)) <= 80
    assert "…" not in printed
    assert {"Directional ablation", "PCA-OT (k = 2)"} <= set(
        re.findall(r"Dir\w+ abl\w+|PCA-OT \(k = 2\)", printed)
    )


@pytest.mark.parametrize(
    "measures",
    [["refusal_rate"], pytest.param(["kl"], marks=pytest.mark.trust)],
)
def test_a_run_of_few_measures_draws_and_reports_what_there_is(
    command, run_settings, tmp_path, monkeypatch, measures
):
    few = {"measures": measures, "layers": [7], "methods": ["mean_shift"], "search_size": 0, **NO_MECHANISMS}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({**run_settings, **few}))
    # Laid out but not written, which takes as long again.
    monkeypatch.setattr("ot_lens.plots.gallery.save", lambda *_, **__: [])
    code, printed, log = command("run", "few.yaml", "--out", "run")
    assert code == 0
    assert "report.html" in printed
    counts = re.findall(r"^(.*): (\d+)/(\d+), ", log, flags=re.MULTILINE)
    sweep = "sweep, answers" if measures == ["refusal_rate"] else "sweep, next token"
    assert {"activations, test prompts", "maps", sweep, "geometry", "figures"} <= {
        stage for stage, _, _ in counts
    }
    last = {stage: (done, total) for stage, done, total in counts}  # slow machines print lines on the way
    assert [stage for stage, (done, total) in last.items() if done != total] == []
    assert "nan" not in printed
    assert (tmp_path / "run" / "report.html").is_file()
    assert ("refusal rate was not measured" in " ".join(printed.split())) == ("refusal_rate" not in measures)


# ---------------------------------------------------------------------------------------- configuration
def test_the_commented_configuration_is_the_default(command, tmp_path):
    path = tmp_path / "study.yaml"
    assert command("init", path)[0] == 0
    text = path.read_text()
    assert read_config(path) == StudyConfig()
    for name, field in StudyConfig.model_fields.items():
        assert field.description
        assert f"# {field.description}\n{name}:" in text
    code, _, errors = command("init", path)
    assert code == 2
    assert str(path) in errors
    assert path.read_text() == commented_yaml()


def test_overrides_replace_the_fields_of_a_file(config_file, run_settings):
    config = read_config(config_file, overrides={"seed": 4, "methods": ["rfa"]})
    assert (config.seed, config.methods, config.layers) == (4, ["rfa"], run_settings["layers"])
    with pytest.raises(ConfigError, match="sede"):
        read_config(config_file, overrides={"sede": 4})


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("modle: organism", "modle"),
        ("seed: -1", "seed"),
        ("methods: [{name: m, module: ../maps}]", "../maps"),
        ("extensions: [os.path;]", "os.path;"),
        ("- a", "list"),
        ("a: [", "YAML"),
        ("position: 0", "position"),
    ],
)
def test_bad_configurations_name_the_field(tmp_path, content, value):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=value):
        read_config(path)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("model", "nobody/nothing", "nobody/nothing"),
        ("model", "organism:large", "organism:single"),
        ("prompts", "missing.json", "missing.json"),
        ("layers", [99], "99 .* 0-7"),
        ("hook", "resid", "'resid'"),
        ("tokens", "first", "'first'"),
        ("methods", ["pca"], "'pca'"),
        ("measures", ["asr"], "'asr'"),
        ("refusal_tokens", ["elephant"], "'elephant'"),
        ("phrases", "none", "'none'"),
        ("device", "cuda:7", "cuda:7"),
        ("layer_sets", [[99]], "layer 99"),
        ("filter", "refused", "'refused'.*off, refusal_score, answers"),
        ("judge", "gpt", "'gpt'"),
        ("judge", {"classifier": "./missing", "label": 1, "question": "harmful"}, "missing"),
        ("perplexity_text", "missing.txt", "missing.txt"),
        ("activation_dtype", "int8", "int8"),
        ("sample", [1000000, 1], "1000000"),
        ("plane_layer", 99, "99 .*0, 1"),
        ("figure_style", "nature", "nature"),
        ("position", -99, "-99"),
        ("max_new_tokens", 250, "harmful test prompts: .*context of 256"),
    ],
)
def test_bad_runs_name_the_value_in_one_line_and_leave_nothing(tmp_path, field, value, named):
    with pytest.raises(OtLensError, match=named) as caught:
        run_study(parse_config({field: value}), tmp_path / "run")
    assert "\n" not in str(caught.value).strip()
    assert not (tmp_path / "run").exists()
