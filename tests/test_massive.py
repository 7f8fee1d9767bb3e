"""Massive activations, rogue coordinates, and distances without them."""

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch.testing import assert_close

import ot_lens as otl
from ot_lens.errors import HookError, OtLensError
from ot_lens.geometry.massive import coordinate_costs
from ot_lens.geometry.resampled_moments import contrasts
from ot_lens.models import backend, encode
from tests import checkpoints
from tests.generators import naive
from tests.generators.gaussians import classes, normal, one_layer

FEW = {"permutations": 39, "bootstrap": 39}
ROGUE = 4


def planted(n_H=20, n_S=24, d=9, seed=0, size=1e4):
    """Two classes, and the same with a rogue coordinate in which they differ most."""
    H, S = classes(n_H, n_S, d, seed)
    column = [
        size * (1 + 0.05 * shift + 0.01 * normal(n, seed=seed + 7)) for n, shift in ((n_H, 1), (n_S, 0))
    ]
    with_it = [
        torch.cat([X[:, :ROGUE], c[:, None], X[:, ROGUE:]], 1) for X, c in zip((H, S), column, strict=True)
    ]
    return one_layer(H, S), one_layer(*with_it)


def numbers(table, *, robust="none", **chosen):
    rows = table[table["robust"] == robust]
    for name, value in chosen.items():
        rows = rows[rows[name.rstrip("_")] == value]
    return rows.set_index("quantity")


def test_a_class_by_hand():
    """Three coordinates; the median magnitude is that of the middle one."""
    H = torch.tensor([[3.0, -4.0, 0.0], [0.6, 0.8, 0.0]], dtype=torch.float64)
    S = torch.tensor([[1.0, 2000.0, -1.0], [2.0, 1.0, 99.0]], dtype=torch.float64)
    table = otl.massive_activations(one_layer(H, S), **FEW)
    of_H, of_S = (numbers(table, class_=label) for label in ("harmful", "harmless"))
    assert of_H["value"].to_dict() == pytest.approx(
        {
            "norm": 3.0,
            "largest": 2.4,
            "median_ratio": (4 / 3 + 4 / 3) / 2,
            "norm_share": 0.64,
            "massive_share": 0,
        }
    )
    assert of_H.loc["largest", "coordinate"] == of_S.loc["largest", "coordinate"] == 1
    assert of_S.loc["massive_share", ["value", "n"]].tolist() == [0.5, 2]
    assert set(table["n"]) == {2, 4}


def test_without_a_planted_coordinate_the_distances_are_those_of_the_other_coordinates():
    without, acts = planted()
    robust, table = otl.robust_samples(acts), otl.massive_activations(acts, **FEW)
    assert robust.info == {"robust": "exclude", "ratio": 100.0, "coordinates": {(0, -1): (ROGUE,)}}
    excluded, every = (numbers(table, robust=how, class_="both") for how in ("exclude", "none"))
    assert excluded.loc["rogue_coordinates", "value"] == 1
    assert excluded.loc["rogue_ratio", "coordinate"] == ROGUE
    expected, found, plain = (otl.diagnose(a, **FEW).set_index("quantity") for a in (without, robust, acts))
    ends = ["value", "null_mean", "null_low", "null_high", "low", "high", "n"]
    for name in ("w2_squared", "w2_bures", "auc_direction", "effective_rank_harmful"):
        assert found.loc[name, ends].tolist() == pytest.approx(expected.loc[name, ends].tolist())
    for rows, known in ((excluded, expected), (every, plain)):
        assert rows.loc["w2_squared", ends].tolist() == pytest.approx(
            known.loc["w2_squared", ends].tolist(), rel=1e-5
        )
    assert every.loc["w2_squared", "value"] > 1e3 * excluded.loc["w2_squared", "value"]
    for name in ("w2_share", "variance_share"):
        assert every.loc[name, "value"] > 0.99 > excluded.loc[name, "value"]
        assert every.loc[name, "coordinate"] == ROGUE != excluded.loc[name, "coordinate"]
    assert every.loc["pc1_share", "value"] > 0.99 > excluded.loc["pc1_share", "value"]
    scaled = numbers(table, robust="scale").loc["w2_share"]
    assert 1 / 10 <= scaled["value"] < 0.5
    assert scaled["low"] < scaled["value"] < scaled["high"]


@pytest.mark.parametrize(("n_H", "n_S", "d"), [(30, 40, 5), (40, 30, 5), (9, 7, 60)])
def test_the_costs_of_the_coordinates_add_to_w2_squared(n_H, n_S, d):
    H, S = classes(n_H, n_S, d, seed=1)
    moments = [m for X in (H, S) for m in (X.mean(0), naive.covariance(X))]
    assert float(coordinate_costs(H, S).sum()) == pytest.approx(sum(naive.w2(*moments)), rel=1e-6)
    row = numbers(otl.massive_activations(one_layer(H, S), **FEW), class_="both").loc["w2_share"]
    costs = coordinate_costs(H, S)
    assert (row["coordinate"], row["value"]) == (
        int(costs.argmax()),
        pytest.approx(float(costs.max() / costs.sum())),
    )
    assert row["low"] <= row["value"] <= row["high"]
    assert np.isnan(row["null_mean"])  # the labels chose the coordinate


def test_the_cost_of_a_coordinate_by_hand():
    """Uncorrelated coordinates are coupled one by one: (difference of means)^2 + (that of deviations)^2."""
    columns = contrasts(8)[:3].T * 7**0.5  # centred, orthogonal, of variance 1
    H = columns * torch.tensor([1.0, 2.0, 5.0]) + torch.tensor([1.0, 0.0, 0.0])
    S = columns.flip(0) * torch.tensor([3.0, 2.0, 1.0])
    assert_close(
        coordinate_costs(H.double(), S.double()), torch.tensor([5.0, 0.0, 16.0], dtype=torch.float64)
    )


@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_what_is_rogue_and_every_share_do_not_depend_on_the_unit(scale):
    _, acts = planted(size=1e3)
    tables = [
        otl.massive_activations(a, **FEW)
        for a in (acts, one_layer(scale * acts.harmful(0), scale * acts.harmless(0)))
    ]
    powers = {"activation": 1, "activation²": 2}
    for name in ("value", "low", "high", "null_mean"):
        known = tables[0][name] * scale ** tables[0]["unit"].map(powers).fillna(0)
        kept = tables[0]["quantity"] != "massive_share"  # absolute by definition
        assert tables[1][name][kept].tolist() == pytest.approx(known[kept].tolist(), nan_ok=True)
    assert tables[0]["coordinate"].equals(tables[1]["coordinate"])


def test_scaled_distances_do_not_depend_on_the_unit_of_any_coordinate():
    H, S = classes(12, 15, 20, seed=3)
    units = 10 ** normal(20, seed=4)
    first, second = (
        numbers(otl.massive_activations(one_layer(*pair), **FEW), robust="scale")
        for pair in ((H, S), (H * units, S * units))
    )
    assert_frame_equal(first, second, rtol=1e-6)
    assert first.loc["w2_squared", "unit"] == "standard deviations²"
    assert otl.robust_samples(one_layer(H, S), "scale").info == {"robust": "scale", "ratio": 100.0}


def test_nothing_is_rogue_where_no_coordinate_is():
    acts = one_layer(*classes(30, 30, 64, seed=5))
    table, robust = otl.massive_activations(acts, **FEW), otl.robust_samples(acts)
    assert numbers(table, robust="exclude").loc["rogue_coordinates", "value"] == 0
    assert "rogue_ratio" not in set(table["quantity"])
    assert (numbers(table).loc["massive_share", "value"] == 0).all()
    assert robust.info["coordinates"] == {(0, -1): ()}
    assert torch.equal(robust.harmful(0), acts.harmful(0))
    same, every = (numbers(table, robust=how, class_="both") for how in ("exclude", "none"))
    assert_frame_equal(same.loc[every.index].drop(columns="robust"), every.drop(columns="robust"))
    assert len(otl.robust_samples(acts, ratio=2.0).info["coordinates"][0, -1]) > 0


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_equal_samples_have_no_shares_and_nothing_rogue(value, d):
    X = torch.full((5, d), value, dtype=torch.float64)
    table = otl.massive_activations(one_layer(X, X), **FEW)
    both = numbers(table, class_="both")
    assert both.loc["w2_squared", "value"] == 0
    assert both.loc[["w2_share", "pc1_share", "variance_share"], "value"].isna().all()
    assert numbers(table, robust="exclude").loc["rogue_coordinates", "value"] == 0
    assert numbers(table, class_="harmful").loc["norm_share", "value"] == pytest.approx(1 / d) or value == 0


@pytest.mark.parametrize(("options", "named"), [({"how": "drop"}, "drop"), ({"ratio": 1.0}, "1.0")])
def test_a_treatment_that_does_not_exist_is_named(options, named):
    with pytest.raises(OtLensError, match=named):
        otl.robust_samples(one_layer(*classes(5, 6, 3, seed=6)), **options)


# ---------------------------------------------------------------- the first token


def test_the_first_token_is_read_behind_the_padding(llama_folder, tmp_path, mixed_lengths):
    model, prompts = otl.load_model(llama_folder), checkpoints.contrast(5)
    rows = encode(backend(model), prompts.harmful)
    lengths = [len(row) for row in rows]
    shortest = lengths.index(min(lengths))
    assert min(lengths) < max(lengths)
    alone = otl.capture(model, prompts, positions=[-min(lengths)], layers=[3])
    acts = otl.capture(model, prompts, positions=["first", -1], layers=[1, 3], store=tmp_path / "a")
    for found in (acts, otl.load_activations(tmp_path / "a")):
        assert found.positions == ("first", -1)
        assert_close(found.harmful(3, "first")[shortest], alone.harmful(3)[shortest], rtol=1e-4, atol=1e-5)
    same = acts.harmful(3, "first")
    assert_close(same, same[:1].expand_as(same), rtol=1e-4, atol=1e-5)  # one token, whatever follows
    table = otl.massive_activations(acts, **FEW)
    assert set(table[table["position"] == "first"]["class"]) == {"harmful", "harmless"}
    assert "both" in set(table[table["position"] == -1]["class"])
    with pytest.raises(HookError, match="0"):
        otl.capture(model, prompts, positions=[0])
