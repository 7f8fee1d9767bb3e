"""Tables that a study writes for its figures: control bands, and an embedded model's ground truth."""

import numpy as np
import pandas as pd
import pytest
import torch

from ot_lens.errors import ActivationError
from ot_lens.geometry import category_directions, layer_cosines, run_cosines
from ot_lens.study.diagnostics import spread
from ot_lens.study.ground_truth import ground_truth
from ot_lens.tables import control_bands, most_effective_layer
from tests.generators_tables import localization


class Samples:
    """Two classes at two layers; `means` are those of the categories of harmful prompts."""

    layers, positions, hook = (0, 1), (-1,), "resid_pre"

    def __init__(self, means, n=40, d=12, noise=0.05, seed=0):
        generator = torch.Generator().manual_seed(seed)
        each = torch.randn(len(means), n, d, generator=generator, dtype=torch.float64) * noise
        self.H = (each + torch.tensor(means, dtype=torch.float64).unsqueeze(1)).reshape(-1, d)
        self.S = torch.randn(len(means) * n, d, generator=generator, dtype=torch.float64) * noise
        self.categories = [str(c) for c in range(len(means)) for _ in range(n)]

    def harmful(self, layer, position=None):
        return self.H * (1 + layer)

    def harmless(self, layer, position=None):
        return self.S * (1 + layer)


def axes(count, d=12):
    return np.eye(count, d).tolist()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_categories_along_their_own_axes_are_so_many_directions(count):
    samples = Samples(axes(count))
    found = category_directions(samples, samples.categories, permutations=50, bootstrap=50)
    np.testing.assert_allclose(found["value"], count, rtol=0.02)
    assert (found["null_high"] < found["low"]).all()  # permuted, the categories share one direction
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    assert (found["n"] == 80 * count).all()


def test_categories_along_one_axis_are_one_direction():
    samples = Samples([axes(1)[0]] * 4)
    found = category_directions(samples, samples.categories, permutations=50, bootstrap=50)
    assert (found["value"] < 1.1).all()
    assert ((found["null_low"] <= found["value"]) & (found["value"] <= found["null_high"])).all()


def test_equal_seeds_give_equal_directions():
    samples = Samples(axes(3))
    one, same, other = (
        category_directions(samples, samples.categories, permutations=20, bootstrap=20, seed=seed)
        for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(one, same)
    assert not one["null_mean"].equals(other["null_mean"])


@pytest.mark.parametrize(
    ("categories", "message"),
    [(["a"] * 80, "at least two"), (["a"] * 79 + ["b"], "at least two"), (["a", "b"], "2 categories for 80")],
)
def test_categories_that_cannot_be_compared_are_refused(categories, message):
    with pytest.raises(ActivationError, match=message):
        category_directions(Samples(axes(2)), categories, permutations=0, bootstrap=0)


def test_no_draws_leave_no_null_and_no_interval():
    samples = Samples(axes(2))
    found = category_directions(samples, samples.categories, permutations=0, bootstrap=0)
    assert found[["null_mean", "low", "high"]].isna().all(axis=None)


def test_cosines_of_every_two_layers_hold_those_of_equal_layers():
    one, other = Samples(axes(2)), Samples(axes(3), n=25, seed=3)
    options = {"permutations": 20, "bootstrap": 20, "seed": 5}
    every, equal = layer_cosines(one, other, **options), run_cosines(one, other, **options)
    assert len(every) == 4
    own = every[every["layer"] == every["layer_other"]].drop(columns="layer_other").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, equal)


def with_shifts():
    """A sweep whose shifts of the refusal score are -5, and whose controls are -1, -2 and -3."""
    score = localization(layers=3).query("measure == 'refusal_score' and `set` == 'single'")
    real = score.assign(measure="refusal_score_shift", value=-5.0, low=-6.0, high=-4.0)
    drawn = [real.assign(control="random_subspace", draw=number, value=-1.0 - number) for number in range(3)]
    absurd = real.assign(value=99.0)
    others = [absurd.assign(transport="harmless_to_harmful"), absurd.assign(fitting="sequential")]
    others += [absurd.assign(strength=0.5), absurd.assign(set="all"), absurd.assign(prompts="harmless")]
    return pd.concat([real, *drawn, *others], ignore_index=True)


def test_control_bands_are_the_range_of_the_draws_beside_the_real_edit():
    table = control_bands(with_shifts())
    real, drawn = (table[table["control"] == name] for name in ("", "random_subspace"))
    assert len(real) == len(drawn) == 27
    assert set(real["value"]) == {-5.0}
    assert set(map(tuple, real[["low", "high"]].to_numpy())) == {(-6.0, -4.0)}
    assert set(map(tuple, drawn[["value", "low", "high"]].to_numpy())) == {(-2.0, -3.0, -1.0)}
    assert set(drawn["draws"]) == {3}


def test_a_sweep_without_controls_keeps_its_real_edits():
    sweep = with_shifts().query("control == ''")
    assert set(control_bands(sweep)["control"]) == {""}


def test_the_best_layer_of_a_rank_answers_rightly_and_not_only_refuses_little():
    rows = pd.DataFrame(
        {
            "layer": [1, 1, 2, 2],
            "measure": ["refusal_rate", "exact_answer_rate"] * 2,
            "prompts": "harmful",
            "value": [0.0, 0.1, 0.2, 0.8],
        }
    )
    assert most_effective_layer(rows) == 2
    assert most_effective_layer(rows[rows["measure"] == "refusal_rate"]) == 1
    assert most_effective_layer(rows[rows["measure"] == "kl"]) is None


@pytest.mark.parametrize(
    ("variant", "sentences", "words"), [("multi", 4, 4), ("shared", 4, 1), ("single", 1, 1)]
)
def test_the_ground_truth_of_a_variant_is_what_it_was_built_with(variant, sentences, words):
    from ot_lens.prompts import load_prompts

    prompts = load_prompts("organism", seed=0)
    samples = Samples(axes(4), n=32)
    samples.categories = [prompt.category for prompt in prompts.test.harmful]
    draws = {"permutations": 20, "bootstrap": 20, "seed": 0}
    table = ground_truth(variant, prompts, samples, localization(layers=2), draws)
    known = table.query("part == 'counts'").set_index("quantity")["known"]
    assert known.to_dict() == {"categories": 4, "sentences": sentences, "first words": words}
    behaviour = table.query("part == 'behaviour'").set_index("quantity")
    assert behaviour["known"].to_dict() == {
        "harmful refused": 1.0,
        "harmless refused": 0.0,
        "harmless answered correctly": 1.0,
    }
    assert behaviour.loc["harmful refused", "value"] == 1.0  # the unedited model of the sweep refuses all
    ranks = table.query("part == 'rank' and quantity == 'refusal_rate'")
    assert sorted(zip(ranks["method"], ranks["k"], strict=True)) == [
        ("pca_ot", 1),
        ("pca_ot", 2),
        ("pca_ot", 4),
        ("pca_ot", 8),
        ("rfa", 1),
    ]
    assert len(table.query("part == 'directions'")) == 2


def test_layers_are_spread_over_the_depth_with_both_ends():
    assert spread((3, 4, 5), 6) == [3, 4, 5]
    assert spread(tuple(range(80)), 5) == [0, 20, 40, 59, 79]
