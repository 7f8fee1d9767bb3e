"""Run folders of the refusal_direction repository: real and damaged ones, and comparison with other data."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens import plots
from ot_lens.directions import RefusalDirectionRun, compare_directions, read_refusal_direction_run
from ot_lens.errors import ActivationError, OtLensError, OtLensTypeError, RunFolderError
from ot_lens.plots import screen

PUBLISHED = Path(__file__).parent / "data" / "refusal_direction"
D = 2048


@pytest.fixture(scope="module")
def gemma() -> RefusalDirectionRun:
    return read_refusal_direction_run(PUBLISHED / "gemma-2b-it")


def activations(
    directions: torch.Tensor, size: float, layers: tuple[int, ...], position: int = -2, n: int = 24
) -> otl.Activations:
    """Noise, with the harmful prompts shifted by `size` times the direction of each layer."""
    generator = torch.Generator().manual_seed(0)
    noise = {
        label: torch.randn(len(layers), n, 1, directions.shape[1], generator=generator, dtype=torch.float64)
        for label in ("harmful", "harmless")
    }
    noise["harmful"] += size * directions[list(layers)][:, None, None]
    return otl.Activations(noise, layers, (position,), "resid_pre")


def test_a_published_run_is_read_completely(gemma):
    assert gemma.mean_diffs.shape == (5, 18, D)
    assert gemma.mean_diffs.dtype == torch.float64
    assert (gemma.selected, gemma.positions, gemma.n_layers) == ((-2, 10), (-5, -4, -3, -2, -1), 18)
    assert torch.equal(gemma.mean_diffs[-2, 10], gemma.direction)
    columns = ["position", "layer", "refusal_score", "steering_score", "kl_div_score"]
    assert list(gemma.scores.columns) == columns
    assert (len(gemma.scores), len(gemma.filtered)) == (90, 13)
    assert "missing: nothing" in repr(gemma)
    assert (PUBLISHED / "gemma-2b-it" / "direction.pt").stat().st_size > 1e6  # it holds all directions
    assert gemma.direction.untyped_storage().nbytes() == 8 * D


def test_losses_are_tidy(gemma):
    row = gemma.losses.query("intervention == 'ablation' and dataset == 'pile' and measure == 'perplexity'")
    assert row["value"].item() == pytest.approx(33.20151, abs=1e-4)
    assert row["n"].item() == 906802
    assert len(gemma.losses) == 3 * 3 * 2
    ce = gemma.losses.query("intervention == 'baseline' and dataset == 'alpaca' and measure == 'ce_loss'")
    assert ce["value"].item() == pytest.approx(math.log(8.080938755230731))


def test_absent_files_are_none_and_listed(tmp_path):
    run = read_refusal_direction_run(PUBLISHED / "llama-2-7b-chat-hf")
    assert (run.mean_diffs, run.direction, run.losses) == (None, None, None)
    assert (run.selected, run.positions, run.n_layers) == ((-1, 14), tuple(range(-6, 0)), 32)
    assert int(run.scores["refusal_score"].isna().sum()) == 2
    assert "missing: mean_diffs, direction, losses" in repr(run)
    with pytest.raises(OtLensError, match=r"mean_diffs\.pt"):
        compare_directions(run)
    rows = [{"position": -2, "layer": 0, "refusal_score": None, "steering_score": 1, "kl_div_score": 0.1}]
    (tmp_path / "select_direction").mkdir()
    (tmp_path / "select_direction" / "direction_evaluations.json").write_text(json.dumps(rows))
    (tmp_path / "direction_metadata.json").write_text('{"pos": -1, "layer": 3}')
    torch.save(torch.ones(4, dtype=torch.bfloat16), tmp_path / "direction.pt")
    few = read_refusal_direction_run(tmp_path)
    assert (few.selected, few.positions, few.n_layers) == ((-1, 3), (-2,), 1)
    assert few.scores["refusal_score"].isna().all()
    assert few.direction.dtype == torch.float64


def test_missing_and_unrelated_folders_are_named(tmp_path):
    with pytest.raises(RunFolderError, match="absent"):
        read_refusal_direction_run(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RunFolderError, match="none of"):
        read_refusal_direction_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("direction.pt", torch.zeros(2, 3), r"\(2, 3\).* 1 axes"),
        ("direction.pt", {"r": torch.zeros(3)}, "dict"),
        ("direction.pt", torch.zeros(3, dtype=torch.long), "floating-point"),
        ("generate_directions/mean_diffs.pt", torch.zeros(3), "3 axes"),
        ("direction_metadata.json", "{", "not valid JSON"),
        ("direction_metadata.json", '{"pos": -1}', "layer: "),
        ("direction_metadata.json", '{"pos": "last", "layer": 3}', "pos: .*integer"),
        ("select_direction/direction_evaluations.json", "{}", "valid list"),
        ("loss_evals/baseline_loss_eval.json", '{"pile": {"ce_loss": 1}}', r"pile\.perplexity: "),
    ],
)
def test_a_damaged_file_or_one_of_another_kind_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(RunFolderError, match=message):
        read_refusal_direction_run(tmp_path)


def test_files_of_two_runs_are_refused(tmp_path):
    shutil.copytree(PUBLISHED / "gemma-2b-it", tmp_path / "run")
    torch.save(torch.zeros(7), tmp_path / "run" / "direction.pt")
    with pytest.raises(RunFolderError, match=r"2048, direction\.pt 7"):
        read_refusal_direction_run(tmp_path / "run")


def matrix(table: pd.DataFrame, value: str = "cosine") -> pd.DataFrame:
    return table.pivot_table(index="layer_a", columns="layer_b", values=value, dropna=False)


def test_a_run_against_itself_by_hand(gemma):
    table = compare_directions(gemma)
    assert set(table["position"]) == {-2}
    r = gemma.mean_diffs[-2]
    expected = torch.nn.functional.cosine_similarity(r[3], r[10], dim=0).item()
    found = matrix(table)
    assert found.loc[3, 10] == pytest.approx(expected, abs=1e-12)
    assert found.loc[10, 3] == pytest.approx(expected, abs=1e-12)
    assert found.loc[10, 10] == pytest.approx(1)
    assert found.loc[0].isna().all()  # the token is the same for every prompt: norm 1e-14, no direction
    assert table["n"].isna().all()


def test_positions_and_runs_can_differ(gemma):
    table = compare_directions(gemma, position=-1, other_position=-2)
    assert set(table["position"]) == {"-1 and -2"}
    expected = torch.nn.functional.cosine_similarity(gemma.mean_diffs[-1, 4], gemma.mean_diffs[-2, 9], dim=0)
    assert matrix(table).loc[4, 9] == pytest.approx(expected.item(), abs=1e-12)
    for other in (gemma.mean_diffs[-2].float(), gemma):
        same = compare_directions(gemma, other, position=-1, other_position=-2)
        pd.testing.assert_series_equal(same["cosine"], table["cosine"], atol=1e-6)


def test_the_table_is_that_of_geometry_seeded_and_can_be_drawn(gemma):
    own = activations(gemma.mean_diffs[-2], 0.3, (9, 10))
    resamples = {"permutations": 30, "bootstrap": 30}
    ours = otl.direction_cosines(own, **resamples)
    first, again = (compare_directions(gemma, own, seed=3, **resamples) for _ in range(2))
    assert list(first.columns) == list(ours.columns)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(compare_directions(gemma, own, seed=4, **resamples))
    for table in (first, compare_directions(gemma)):
        assert plots.direction_cosines(table).axes
        assert screen.direction_cosines(table).data


def test_activations_with_the_published_direction_agree_with_it(gemma):
    """Above the null, and most at the same layer."""
    own = activations(gemma.mean_diffs[-2], 1.0, (4, 9, 10))
    table = compare_directions(gemma, own, seed=1)
    for layer in (4, 9, 10):
        row = table[(table["layer_a"] == layer) & (table["layer_b"] == layer)].iloc[0]
        assert row["cosine"] > row["null_high"]
        assert row["low"] > row["null_high"]
        assert row["low"] < row["cosine"] < row["high"]
        assert row["n"] == 48
    assert matrix(table)[10].idxmax() == 10


def test_activations_without_the_direction_stay_within_the_null(gemma):
    own = activations(gemma.mean_diffs[-2], 0.0, (4, 9, 10))
    table = compare_directions(gemma, own).dropna(subset="cosine")
    inside = (table["cosine"] >= table["null_low"]) & (table["cosine"] <= table["null_high"])
    assert inside.mean() > 0.8
    assert table["cosine"].abs().max() < 0.15


NARROW = activations(torch.zeros(3, 5), 0.0, (0, 1))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda g: compare_directions(g, position=-9), OtLensError, "-9"),
        (lambda g: compare_directions(g, torch.zeros(3, 5)), ActivationError, "2048, the others 5"),
        (lambda g: compare_directions(g, torch.zeros(3)), OtLensTypeError, r"\(3,\)"),
        (lambda g: compare_directions(g, "gemma"), OtLensTypeError, "str"),
        (lambda g: compare_directions(g, permutations=-1), OtLensError, "permutations .*-1"),
        (lambda g: compare_directions(g, NARROW), ActivationError, "2048, the others 5"),
    ],
)
def test_incomparable_directions_are_named(gemma, call, kind, message):
    with pytest.raises(kind, match=message):
        call(gemma)


def test_a_layer_of_identical_samples_has_no_direction(gemma):
    own = activations(gemma.mean_diffs[-2], 1.0, (9, 10))
    for samples in own.data.values():
        samples[0] = 1.0
    table = compare_directions(gemma, own)
    assert table.query("layer_b == 9")["cosine"].isna().all()
    assert table.query("layer_b == 10 and layer_a > 0")["cosine"].notna().all()
