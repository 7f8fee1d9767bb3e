import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from ot_lens.errors import ActivationError
from ot_lens.gaussian import bures_wasserstein
from ot_lens.geometry import map_quality, visibility
from ot_lens.geometry.visibility import _classifier_scores, _signs
from ot_lens.linalg import Pooled
from ot_lens.statistics.resampling import observed
from ot_lens.transport import fit_all
from tests.generators import naive
from tests.generators.gaussians import Layers, classes, layered, normal, one_layer

FEW = {"permutations": 30, "bootstrap": 30}


# --- quality of a fitted map on held-out prompts


def split(n, d, seed):
    H, S = classes(2 * n, 2 * n, d, seed)
    return one_layer(H[:n], S[:n]), one_layer(H[n:], S[n:])


def test_quality_says_the_dense_numbers():
    train, test = split(40, 10, seed=15)
    maps = fit_all(train, "ace")
    table = map_quality(maps, test, train, **FEW).set_index("quantity")
    H, S = test.harmful(0), test.harmless(0)
    moved = maps[0].map(H)
    after = bures_wasserstein(moved, S)
    assert set(table["method"]) == {"ace"}
    assert table.loc["w2_before", "value"] == pytest.approx(bures_wasserstein(H, S).squared, rel=1e-6)
    assert table.loc["w2_after", "value"] == pytest.approx(after.squared, rel=1e-6)
    assert table.loc["mean_error", "value"] == pytest.approx(after.location)
    C, C_S = naive.covariance(moved), naive.covariance(S)
    assert table.loc["covariance_error", "value"] == pytest.approx(float((C - C_S).norm() / C_S.norm()))
    cost = float((moved - H).square().sum(1).mean())
    assert table.loc["transport_cost", "value"] == pytest.approx(cost)
    location, bures = naive.w2(H.mean(0), naive.covariance(H), moved.mean(0), C)
    bound = location + bures * 39 / 40
    assert table.loc["cost_over_bound", "value"] == pytest.approx(cost / bound, rel=1e-6)
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_transport_lands_in_the_null_at_the_least_cost_and_projection_does_not():
    H, S = normal(300, 6, seed=16), 0.3 * normal(300, 6, seed=17)
    H[:, 0] = 3 * H[:, 0] + 5
    train, test = one_layer(H[:150], S[:150]), one_layer(H[150:], S[150:])
    options = {"permutations": 40, "bootstrap": 0}
    ot_ = map_quality(fit_all(train, "gaussian_ot"), test, train, **options).set_index("quantity")
    rfa = map_quality(fit_all(train, "directional_ablation"), test, train, **options).set_index("quantity")
    assert ot_.loc["w2_after", "value"] < 1.5 * ot_.loc["w2_after", "null_high"]
    assert rfa.loc["w2_after", "value"] > 2 * rfa.loc["w2_after", "null_high"]
    assert ot_.loc["w2_before", "value"] == pytest.approx(rfa.loc["w2_before", "value"])
    assert ot_.loc["cost_over_bound", "value"] == pytest.approx(1, abs=0.02)
    assert rfa.loc["covariance_error", "value"] > 3 * ot_.loc["covariance_error", "value"]


def test_a_map_that_swaps_points_costs_more_than_the_bound():
    class Swap:
        def map(self, x):
            return -x

        def __call__(self, x):
            return -x

    H, S = normal(40, 3, seed=18), normal(40, 3, seed=19)
    table = map_quality({0: Swap()}, one_layer(H, S), one_layer(H, S), **FEW).set_index("quantity")
    assert table.loc["cost_over_bound", "value"] > 2
    assert set(table["method"]) == {"Swap"}


def test_points_beyond_the_training_range_are_counted():
    train, test = split(60, 8, seed=20)
    far = one_layer(test.harmful(0) * 10, test.harmless(0))
    maps = fit_all(train, "mean_shift")
    near = map_quality(maps, test, train, **FEW).set_index("quantity").loc["outside_source"]
    out = map_quality(maps, far, train, method="mine", **FEW).set_index("quantity").loc["outside_source"]
    assert near["value"] <= near["null_high"]
    assert out["value"] > 2 * out["null_high"]
    assert out["method"] == "mine"


def test_quality_needs_the_layers():
    train, test = split(10, 5, seed=21)
    with pytest.raises(ActivationError, match=r"\[3\]"):
        map_quality({3: fit_all(train, "ace")[0]}, test, train)


# --- visibility


def test_classifier_scores_are_scikit_learns_ridge_fold_by_fold():
    H, S = classes(20, 24, 9, seed=22)
    Z, labels = Pooled.of(H, S).Z, observed(20, 24, 0)
    fold, signs = torch.cat([labels.source_fold[0], labels.target_fold[0]]), _signs(labels)
    found = _classifier_scores(Z @ Z.T, fold, signs)[0]
    for held_out in range(labels.folds):
        train, test = (fold != held_out).numpy(), (fold == held_out).numpy()
        X = Z.numpy()
        spread = X[train] - X[train].mean(0)
        ridge = Ridge(alpha=0.01 * (spread**2).sum(1).mean()).fit(X[train], signs[0].numpy()[train])
        expected = ridge.predict(X[test]) - ridge.predict(X[train]).mean()
        assert found.numpy()[test] == pytest.approx(expected, abs=1e-8)


def test_an_unedited_copy_is_invisible_and_a_shift_is_not():
    S = normal(120, 12, seed=23)
    reference = one_layer(normal(60, 12, seed=24), S[:60])
    quiet = visibility(one_layer(S[60:], S[:60]), reference, permutations=100, bootstrap=50)
    loud = visibility(
        one_layer(S[60:] + 1.5, S[:60]), reference, method="shift", permutations=100, bootstrap=50
    )
    for _, row in quiet.iterrows():
        assert row["null_low"] * 0.9 <= row["value"] <= row["null_high"] * 1.1
    assert (loud["value"] > loud["null_high"]).all()
    assert set(loud["method"]) == {"shift"}
    assert ((loud["low"] <= loud["value"]) & (loud["value"] <= loud["high"])).all()


def test_a_monitor_of_distance_misses_what_a_classifier_sees():
    # Half as wide as the reference: nothing stands out by its distance, and yet the samples are another law.
    S = normal(200, 6, seed=25)
    edited = 0.2 * normal(100, 6, seed=26) + 0.5
    table = visibility(one_layer(edited, S[:100]), one_layer(S[100:], S[:100]), **FEW).set_index("quantity")
    assert table.loc["mahalanobis_auc", "value"] < 0.5
    assert table.loc["classifier_auc", "value"] > 0.6


def test_classifier_null_is_uniform_enough_and_seeded():
    S = normal(80, 30, seed=27)
    acts = one_layer(S[40:], S[:40])
    first = visibility(acts, acts, seed=3, **FEW)
    pd.testing.assert_frame_equal(first, visibility(acts, acts, seed=3, **FEW))
    auc = first.set_index("quantity").loc["classifier_auc"]
    assert auc["null_low"] < 0.5 < auc["null_high"]
    assert abs(auc["null_mean"] - 0.5) < 0.06


def test_where_nothing_varies_only_an_edit_is_visible():
    # The last token of a chat template at layer 0.
    point = torch.full((10, 4), 0.3, dtype=torch.float64)
    reference = one_layer(point, point)
    assert visibility(reference, reference, **FEW)["value"].isna().all()
    moved = visibility(one_layer(point + 1, point), reference, **FEW).set_index("quantity")["value"]
    assert np.isinf(moved["mahalanobis"])
    assert moved["mahalanobis_auc"] == moved["classifier_auc"] == 1


def test_visibility_of_either_class_and_bad_input():
    acts = layered(12, 14, 6, layers=2, seed=28)
    assert len(visibility(acts, acts, label="harmless", **FEW)) == 6
    with pytest.raises(ActivationError, match="'benign'"):
        visibility(acts, acts, label="benign")
    with pytest.raises(ActivationError, match="common layer"):
        visibility(acts, Layers(acts.source, acts.target, (8, 9)))
    small = layered(4, 14, 6, layers=2, seed=28)
    with pytest.raises(ActivationError, match="at least 8"):
        visibility(small, acts)
