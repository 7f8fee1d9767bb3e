"""What an embedded model was built with, next to what is measured of it."""

import numpy as np
import pandas as pd
import pytest
import torch

from ot_lens.errors import ActivationError
from ot_lens.geometry import category_directions, layer_cosines, run_cosines
from ot_lens.prompts import load_prompts
from ot_lens.study.ground_truth import ground_truth
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

    def directions(self, **options):
        return category_directions(self, self.categories, **({"permutations": 50, "bootstrap": 50} | options))


def axes(count, d=12):
    return np.eye(count, d).tolist()


@pytest.mark.parametrize("count", [2, 4])
def test_categories_along_their_own_axes_are_so_many_directions(count):
    table = Samples(axes(count)).directions()
    np.testing.assert_allclose(table["value"], count, rtol=0.02)
    assert (table["null_high"] < table["low"]).all()  # permuted, the categories share one direction
    assert table["value"].between(table["low"], table["high"]).all()
    assert (table["n"] == 80 * count).all()


def test_categories_along_one_axis_are_one_direction():
    table = Samples([axes(1)[0]] * 4).directions()
    assert (table["value"] < 1.1).all()
    assert table["value"].between(table["null_low"], table["null_high"]).all()


def test_equal_seeds_give_equal_directions_and_no_resamples_give_no_null():
    samples = Samples(axes(3))
    one, same, other = (samples.directions(seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same)
    assert not one["null_mean"].equals(other["null_mean"])
    none = samples.directions(permutations=0, bootstrap=0)
    assert none[["null_mean", "low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("categories", "named"),
    [(["a"] * 80, "two"), (["a"] * 79 + ["b"], "two"), (["a", "b"], "80")],
)
def test_categories_that_cannot_be_compared_are_refused(categories, named):
    with pytest.raises(ActivationError, match=named):
        category_directions(Samples(axes(2)), categories, permutations=0, bootstrap=0)


def test_cosines_of_every_two_layers_include_those_of_equal_layers():
    one, other = Samples(axes(2)), Samples(axes(3), n=25, seed=3)
    options = {"permutations": 20, "bootstrap": 20, "seed": 5}
    every, equal = layer_cosines(one, other, **options), run_cosines(one, other, **options)
    assert len(every) == 4
    own = every[every["layer"] == every["layer_other"]].drop(columns="layer_other").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, equal)


@pytest.mark.parametrize(
    ("variant", "sentences", "words"), [("multi", 4, 4), ("shared", 4, 1), ("single", 1, 1)]
)
def test_the_ground_truth_of_a_variant_is_what_it_was_built_with(variant, sentences, words):
    prompts = load_prompts("organism", seed=0)
    draws = {"permutations": 20, "bootstrap": 20, "seed": 0}
    table = ground_truth(variant, prompts, Samples(axes(4), n=32), localization(layers=2), draws)
    known = table.query("part == 'counts'").set_index("quantity")["known"]
    assert known.to_dict() == {"categories": 4, "sentences": sentences, "first words": words}
    behaviour = table.query("part == 'behaviour'").set_index("quantity")
    assert behaviour["known"].to_list() == [1.0, 0.0, 1.0]
    assert behaviour.loc["harmful refused", "value"] == 1.0  # the unedited model of the sweep refuses all
    ranks = table.query("part == 'rank' and quantity == 'refusal_rate'")
    methods = list(zip(ranks["method"], ranks["k"], strict=True))
    assert methods == [("pca_ot", 1), ("pca_ot", 2), ("pca_ot", 4), ("pca_ot", 8), ("rfa", 1)]
    assert len(table.query("part == 'directions'")) == 2
