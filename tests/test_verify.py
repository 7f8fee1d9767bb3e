"""Verification of a run: an intact one agrees, and everything that is changed in one is named."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import ot_lens as otl
from ot_lens.errors import ConfigError, OtLensError, RunFolderError
from ot_lens.io.files import sha256_file
from ot_lens.models import model_record
from ot_lens.study import RunFolder
from ot_lens.study.diagnostics import MAKERS
from ot_lens.study.manifest import file_hashes, manifest_hash
from ot_lens.study.verifying.comparing import Check, Checks, compare
from ot_lens.study.verifying.evidence import Evidence
from ot_lens.study.verifying.pinned import pinned
from ot_lens.study.verifying.recomputed import fitted, recomputed, relative_distance
from ot_lens.tables import select

OF_STORED = (
    "geometry", "spectra", "cosines", "class_angles", "layer_angles", "layer_similarity", "map_quality",
    "controls", "plane", "plane_ellipses", "paper",
)  # fmt: skip
OF_MODEL = ("localization", "massive", "model_similarity", "visibility", "ground_truth")


run = pytest.fixture(lambda copied_run: copied_run)


def contents(run: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()}


def manifest_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return content


def repin(run: Path, **changed: object) -> None:
    """Make the manifest match the altered files, as a forger would."""
    manifest = manifest_of(run) | changed | {"files": file_hashes(run)}
    (run / "manifest.json").write_text(json.dumps(manifest | {"sha256": manifest_hash(manifest)}))


def checked(run: Path, *parts: Callable[[Evidence, Checks], None]) -> pd.DataFrame:
    """Some parts of the verification by themselves."""
    checks = Checks()
    for part in parts:
        part(Evidence(RunFolder.open(run), None, 0), checks)
    return checks.table()


def without(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """Leave out parts of the verification that other tests cover."""
    for part in parts:
        monkeypatch.setattr(f"ot_lens.study.verify.{part}", lambda *_, **__: None)


def wrong(found: pd.DataFrame) -> dict[str, str]:
    bad = found[found["verdict"].isin(["differs", "missing"])]
    return {f"{row['item']}|{row['how']}": row["note"] for row in bad.to_dict("records")}


def table_of(run: Path, name: str) -> Path:
    return run / "tables" / f"{name}.parquet"


def edit_table(run: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = table_of(run, name)
    change(pd.read_parquet(path)).to_parquet(path, index=False)


# ---------------------------------------------------------------------------------------- an intact run
@contextmanager
def only_readable(run: Path) -> Iterator[None]:
    for path in (*run.rglob("*"), run):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield
    for path in (run, *run.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_an_intact_run_that_is_only_readable_agrees_and_is_not_modified(run):
    before = contents(run)
    with only_readable(run):
        found = otl.verify_run(run, full=False, sample=10)
    assert wrong(found) == {}
    assert set(found["verdict"]) == {"ok"}
    assert contents(run) == before
    assert {*OF_STORED, *OF_MODEL, "model", "prompts", "report.html", "figures"} <= set(found["item"])
    maps = ("directional_ablation", "pca_ot-k1", "mean_shift", "linear_act")
    assert {f"maps/{name}" for name in maps} <= set(found["item"])
    measured = found[found["deviation"].notna()]
    assert (measured["deviation"] <= measured["tolerance"]).all()
    again = found[found["how"] == "measured again"].iloc[0]
    assert 10 <= again["compared"] < again["of"]


def test_a_figure_drawn_later_belongs_to_the_run(run):
    (run / "figures" / "spectra.svg").write_text("<svg/>")
    assert wrong(checked(run, pinned)) == {}


def test_the_hash_of_the_weights_distinguishes_models():
    model, same, other = (otl.load_model(name) for name in ("organism", "organism", "organism:single"))
    before, equal, different = (model_record(one)["weights_sha256"] for one in (model, same, other))
    assert before == equal != different
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 1e-3)
    assert model_record(model)["weights_sha256"] != before


# ------------------------------------------------------------------------------------------ bytes
def first(run: Path, pattern: str) -> Path:
    return sorted(run.glob(pattern))[0]


@pytest.mark.parametrize(
    ("pattern", "item"),
    [
        ("tables/paper.md", "tables"),
        ("maps/*/layer-005.safetensors", "maps"),
        ("activations/train/*.safetensors", "activations/train"),
        ("activations/test/shards.sha256", "activations"),
        ("config.yaml", "config.yaml"),
        ("report.html", "report.html"),
    ],
)
def test_a_changed_a_missing_and_an_added_file_are_found(run, pattern, item):
    path = first(run, pattern)
    shutil.copy(path, path.with_name("stranger" + path.suffix))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    found = wrong(checked(run, pinned))
    assert item in {key.partition("|")[0] for key in found}
    notes = " ".join(found.values())
    assert path.name in notes
    assert "not of this run" in notes
    path.unlink()
    assert f"{path.name} is missing" in " ".join(wrong(checked(run, pinned)).values())


@pytest.mark.parametrize("name", ["seeds", "versions", "config", "files", "finished"])
def test_an_altered_manifest_is_found(run, name):
    manifest = manifest_of(run)
    entry = manifest[name]
    if name == "finished":
        manifest[name] = False
    else:
        manifest[name] = entry | ({"seed": 12} if name == "config" else {sorted(entry)[-1]: "0"})
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json|its own SHA-256" in wrong(checked(run, pinned))


def test_a_forged_configuration_and_seed_are_found(run):
    repin(run, config=manifest_of(run)["config"] | {"seed": 1})
    found = wrong(checked(run, pinned, recomputed))
    assert found["config.yaml|the manifest"] == "seed"
    assert {"seeds|configuration", "geometry|recomputed values", "localization|own arithmetic"} <= set(found)


def test_a_shard_whose_checksum_was_forged_is_found_by_what_it_holds(run):
    path = first(run, "activations/train/harmful-*.safetensors")
    values = load_file(path)["activations"].clone()
    values[1, 0] *= 1.01
    save_file({"activations": values}, path)
    sums = path.with_name("shards.sha256")
    names = [line.split("  ")[1] for line in sums.read_text().splitlines()]
    sums.write_text("".join(f"{sha256_file(path.with_name(name))}  {name}\n" for name in names))
    repin(run)
    found = wrong(checked(run, pinned, fitted, recomputed))
    assert not any("SHA-256" in key for key in found)
    assert {"maps/mean_shift|refitted", "geometry|recomputed values"} <= set(found)


# ------------------------------------------------------------------------------------------ numbers
def a_number(table: pd.DataFrame) -> pd.DataFrame:
    """The largest value, off by a thousandth."""
    for name in ("value", "eigenvalue", "cosine", "angle", "pc1", "mean1", "asr"):
        if name in table:
            table.loc[table[name].abs().idxmax(), name] *= 1.001
            return table
    raise AssertionError(list(table))


def a_null(table: pd.DataFrame) -> pd.DataFrame:
    column = "null_high" if "null_high" in table else "high"
    row = table.index[table[column].abs() > 0][-1]
    table.loc[row, column] *= 1.001
    return table


def reversed_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[::-1]


def a_row_more(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.iloc[[-1]]])


@pytest.mark.parametrize("name", OF_STORED)
def test_every_change_in_a_table_is_found_by_recomputing_it(run, name):
    """With a matching manifest, so that no hash reveals it; other changes of one table: `compare`, below."""
    original = table_of(run, name).read_bytes()
    has_null = name in ("geometry", "spectra", "map_quality")
    for change in (a_number, a_null if has_null else a_row_more):
        table_of(run, name).write_bytes(original)
        edit_table(run, name, change)
        repin(run)
        found = only(run, name)
        assert name in {key.partition("|")[0] for key in found}, change
        assert all(found.values()), change


def only(run: Path, name: str) -> dict[str, str]:
    """The check of one table."""
    maker = {"plane": "plane_ellipses", "class_angles": "layer_angles"}.get(name, name)
    makers = {n: MAKERS[n] for n in MAKERS if n == maker}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ot_lens.study.verifying.recomputed.MAKERS", makers)
        found = wrong(checked(run, recomputed))
    return {key: note for key, note in found.items() if not key.startswith("tables|")}


def test_rows_of_a_diagnostic_are_expected_if_it_was_registered_when_the_study_ran(run, registries):
    otl.register_diagnostic("gap", lambda H, S: float((H.mean(0) - S.mean(0)).norm()))
    assert only(run, "geometry") == {}
    repin(run, diagnostics=["gap"])
    assert "gap" in only(run, "geometry")["geometry|recomputed values"]


def test_a_sweep_that_no_run_can_write_is_found(run, monkeypatch):
    """Without the rows of the unedited model, which every finding needs; then without a column as well."""
    without(monkeypatch, "fitted")
    edit_table(run, "localization", lambda table: table[table["set"] != "none"])
    assert "report.html|written again" in wrong(otl.verify_run(run, model=False))
    edit_table(run, "localization", lambda table: table.drop(columns="interval"))
    found = otl.verify_run(run, model=False)
    assert wrong(found)["localization|own arithmetic"] == "column interval differs"
    assert "needs the localization table" in " ".join(found["note"])


@pytest.mark.parametrize("change", ["p_holm", "high", "value"])
def test_the_arithmetic_of_the_sweep_is_checked_without_a_model(run, change):
    def off(table: pd.DataFrame) -> pd.DataFrame:
        rows = (table["interval"] == "wilson") if change != "p_holm" else table["p_holm"].notna()
        table.loc[table.index[rows][0], change] += 0.01
        return table

    edit_table(run, "localization", off)
    assert change in only(run, "localization")["localization|own arithmetic"]


@pytest.mark.trust
def test_forged_results_of_the_model_are_found_by_measuring_again(run, monkeypatch):
    """A score and two tables of edited models, each with a matching manifest."""

    def score(table: pd.DataFrame) -> pd.DataFrame:
        scores = table[table["measure"] == "refusal_score"]
        table.loc[select(scores, set="none").index[0], "value"] += 0.01
        return table.drop(index=scores.index[scores["control"] != ""][0])

    edit_table(run, "localization", score)
    edit_table(run, "visibility", a_number)
    edit_table(run, "ground_truth", reversed_rows)
    manifest = manifest_of(run)
    model = manifest["model"] | {"weights_sha256": "0" * 64}
    hashes = manifest["prompts"] | {"sha256": manifest["prompts"]["sha256"] | {"test": "0" * 64}}
    repin(run, model=model, prompts=hashes)
    without(monkeypatch, "fitted", "recomputed")
    # Every other table is measured again where an intact run agrees.
    forged = ("visibility", "ground_truth")
    monkeypatch.setattr("ot_lens.study.verifying.remeasured.MODEL_TABLES", forged)
    found = wrong(otl.verify_run(run, sample=4))
    assert "weights_sha256" in found["model|model loaded now"]
    assert "test" in found["prompts|prompts read now"]
    assert "refusal_score" in found["localization|measured again"]
    assert "other measures" in found["localization|measures alike"]
    assert "another order" in found["ground_truth|measured again"]
    assert "visibility|measured again" in found
    assert "line" in found["report.html|written again"]


def test_a_missing_table_and_a_missing_map_are_found(run):
    for name in ("cosines", "localization"):
        table_of(run, name).unlink()
    first(run, "maps/pca_ot-k1/layer-005.safetensors").unlink()
    repin(run)
    found = checked(run, fitted, recomputed)
    assert wrong(found)["maps/pca_ot-k1|refitted"] == "no map of layer 5"
    assert "localization|present" in wrong(found)
    assert "needs" in " ".join(found[found["verdict"] == "not checked"]["note"])


# ---------------------------------------------------------------------------------- halves of a run
def test_an_unfinished_run_is_described_in_one_line(run):
    shutil.rmtree(run / "figures")
    for name in ("plane", "plane_ellipses", "visibility"):
        table_of(run, name).unlink()
    manifest = manifest_of(run) | {"finished": False}
    del manifest["files"]
    (run / "manifest.json").write_text(json.dumps(manifest | {"sha256": manifest_hash(manifest)}))
    checks = otl.verify_run(run, model=False)
    unchecked = {"files", "model", "activations/train", "activations/test", "localization", "massive"}
    unchecked |= {"model_similarity", "localizers", "interchange", "contributions", "ablated_heads"}
    unchecked |= {"readout", "defence", "ground_truth"}
    assert set(checks[checks["verdict"] == "not checked"]["item"]) == unchecked
    found = wrong(checks)
    assert found["run|finished"].startswith("unfinished (no figures; tables: ablated_heads, class_angles")
    assert found["run|finished"].endswith("--resume")
    assert set(found) <= {"run|finished", "plane|recomputed", "plane_ellipses|recomputed"}


def test_a_run_that_has_barely_begun_can_be_verified(finished_run, tmp_path):
    manifest = manifest_of(finished_run)
    begun = {k: manifest[k] for k in ("schema_version", "config", "versions")} | {"finished": False}
    (tmp_path / "manifest.json").write_text(json.dumps(begun))
    assert "no maps" in wrong(otl.verify_run(tmp_path, model=False))["run|finished"]


def test_no_run_and_no_sample_are_mistakes_of_the_user(tmp_path, run):
    with pytest.raises(RunFolderError, match="nothing"):
        otl.verify_run(tmp_path / "nothing")
    with pytest.raises(OtLensError, match="sample = 0"):
        otl.verify_run(run, sample=0)
    (run / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises((ConfigError, RunFolderError)):
        otl.verify_run(run)


def test_a_manifest_alone_runs_no_code_of_a_model(run, monkeypatch):
    load = Mock(side_effect=OtLensError("not loaded"))
    monkeypatch.setattr("ot_lens.study.verifying.remeasured.load_model", load)
    repin(run, config=manifest_of(run)["config"] | {"trust_remote_code": True})
    without(monkeypatch, "fitted", "recomputed", "shown")
    found = otl.verify_run(run)
    otl.verify_run(run, trust_remote_code=True)
    assert [call.kwargs["trust_remote_code"] for call in load.call_args_list] == [False, True]
    assert found.loc[found["item"] == "model", "note"].tolist() == ["not loaded"]


# ------------------------------------------------------------------------------------- the command
@pytest.mark.parametrize("verdict", ["ok", "differs", "missing", "not checked"])
def test_the_command_names_what_differs_and_exits_with_1(command, monkeypatch, verdict):
    checks = Checks()
    checks += [
        Check("tables", "pinned SHA-256", 2, 3, verdict=verdict, note="tables/geometry.parquet is altered"),
        Check("geometry", "recomputed values", 44, 44, 2e-3, 1e-9),
    ]
    verify = Mock(return_value=checks.table())
    monkeypatch.setattr("ot_lens.study.verify.verify_run", verify)
    code, printed, _ = command("verify", "runs/demo", "--no-model", "--sample", 20, "--seed", 3)
    options = {"model": False, "sample": 20, "seed": 3, "full": False, "trust_remote_code": False}
    assert options.items() <= verify.call_args.kwargs.items()
    assert code == (1 if verdict in ("differs", "missing") else 0), printed
    assert f"tables: {verdict}: tables/geometry.parquet is altered" in printed
    assert ("the run differs" in printed) == bool(code)
    assert "0.002" in printed
    second_code, printed, _ = command("verify", "runs/demo", "--json")
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert second_code == code
    assert [row["verdict"] for row in rows] == [verdict, "ok"]


# ------------------------------------------------------------------------------------ the comparison
compared = partial(compare, "table", "recomputed")


def test_tables_are_compared_by_rows_and_numbers():
    nan, inf = float("nan"), float("inf")
    table = pd.DataFrame({"layer": [1, 2], "quantity": ["a", "b"], "value": [1.0, nan]})
    assert compared(table, table).verdict == "ok"
    near = compared(table.assign(value=[1.0 + 1e-12, nan]), table)
    assert near.verdict == "ok"
    assert 0 < near.deviation < 1e-11
    for other in ([1.0 + 1e-6, nan], [1.0, 2.0], [nan, nan], [inf, nan]):
        assert "value" in compared(table.assign(value=other), table).note
    assert "another order" in compared(table.iloc[::-1], table).note
    assert "layer 2" in compared(table.iloc[:1], table).note
    assert compared(a_row_more(table), table).verdict == "differs"
    assert "columns" in compared(table.drop(columns="layer"), table).note


def test_rounding_errors_next_to_large_numbers_do_not_count():
    large = pd.DataFrame({"value": [1.0, 1e-17]})
    other = large.assign(value=[1.0, 3e-17])
    assert compared(other, large).verdict == "ok"
    assert compared(other.assign(unit=["m", "share"]), large.assign(unit=["m", "share"])).verdict == "differs"


def test_maps_are_compared_by_how_they_move_samples():
    generator = torch.Generator().manual_seed(0)
    U, V, x = (torch.randn(6, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    bias, samples = x[:, 0], torch.randn(9, 6, generator=generator, dtype=torch.float64)
    edit = otl.AffineMap(U, V, bias)
    turned = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64)).Q
    same = otl.AffineMap(U @ turned, V @ turned, bias)
    assert relative_distance(same, edit, samples) < 1e-14
    assert relative_distance(otl.AffineMap(U * (1 + 1e-6), V, bias), edit, samples) > 1e-8
    still = otl.AffineMap.identity(6)
    assert relative_distance(still, still, samples) == 0
    assert relative_distance(edit, still, samples) == float("inf")
    assert relative_distance(otl.AffineMap.identity(5), still, samples) == float("inf")


# -------------------------------------------------------------------------------- what rounding may change
MEASURED = pd.DataFrame(
    {
        "measure": ["score"] * 3,
        "value": [-12.0, 3.0, 0.5],
        "low": [-13.0, 2.0, -0.1],
        "null_mean": [5.3e-5, -2e-3, 0.01],
        "p_value": [0.0004, 0.0312, 0.6858],
    }
)


@pytest.mark.parametrize(
    ("column", "row", "change", "verdict"),
    [
        # With another number of threads float32 sums differ in their last digits.
        ("null_mean", 0, 4e-8, "ok"),
        ("null_mean", 1, 2e-6, "ok"),
        ("p_value", 2, 4e-4, "ok"),
        ("value", 0, 1e-4, "ok"),
        ("null_mean", 0, 1e-4, "differs"),
        ("low", 2, 1e-4, "differs"),
        ("value", 2, 1e-4, "differs"),
        ("p_value", 1, 0.02, "differs"),
        ("p_value", 0, float("nan"), "differs"),
    ],
)
def test_what_is_measured_again_may_differ_by_rounding_and_by_no_more(column, row, change, verdict):
    stored = MEASURED.copy()
    stored.loc[row, column] += change
    assert compare("table", "measured again", stored, MEASURED, 1e-4, again=True).verdict == verdict


def test_what_is_computed_again_from_stored_activations_has_stricter_bounds():
    for column, change in (("p_value", 4e-4), ("null_mean", 4e-8), ("null_mean", 4e-11)):
        stored = MEASURED.copy()
        stored.loc[0, column] += change
        assert compare("table", "recomputed", stored, MEASURED).verdict == "differs"
    spectrum = pd.DataFrame({"value": [1.0, 1e-6]})
    other = spectrum.assign(value=[1.0, 1.01e-6])
    for again, floor in ((False, 1e-3), (True, 1e-2)):
        deviation = compare("table", "any", other, spectrum, again=again).deviation
        assert deviation == pytest.approx(1e-8 / floor, rel=1e-6), again
