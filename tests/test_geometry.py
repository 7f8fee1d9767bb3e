import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kstest, norm, t
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, OtLensError
from ot_lens.geometry import diagnose, direction_cosines, principal_plane, spectra
from ot_lens.geometry.distances import wasserstein
from ot_lens.geometry.held_out import held_out
from ot_lens.geometry.quantities import BUILT_IN, COLUMNS
from ot_lens.geometry.resampled_moments import PooledGram
from ot_lens.linalg import Pooled
from ot_lens.statistics.intervals import auc_interval, bootstrap_interval
from ot_lens.statistics.resampling import bootstraps, observed, relabellings
from ot_lens.transport import fit_ace, fit_pca_ot
from tests.generators import naive
from tests.generators.gaussians import Layers, classes, layered, normal, one_layer


def look_up(table, quantity):
    return table.set_index("quantity").loc[quantity]


# --- what one draw says, against the textbook


@pytest.mark.parametrize(("n_H", "n_S", "d"), [(30, 40, 5), (9, 7, 60)])
def test_gram_distances_are_the_dense_ones_under_every_draw(n_H, n_S, d):
    H, S = classes(n_H, n_S, d, seed=0)
    Z = Pooled.of(H, S).Z
    labels = observed(n_H, n_S, 0)
    for draws in (labels, relabellings(labels, 3, 1), bootstraps(labels, 3, 1)):
        found = wasserstein(PooledGram(Z @ Z.T).under(draws), fast=False)
        for r in range(draws.count):
            X, Y = (torch.cat([H, S])[rows[r]] for rows in (draws.source, draws.target))
            location, bures = naive.w2(X.mean(0), naive.covariance(X), Y.mean(0), naive.covariance(Y))
            assert float(found["w2_location"][r]) == pytest.approx(location, rel=1e-9)
            assert float(found["w2_bures"][r]) == pytest.approx(bures, rel=1e-6)


def test_held_out_projections_are_the_fold_by_fold_loop():
    H, S = classes(11, 14, 20, seed=1)
    labels = observed(11, 14, 3)
    Z = Pooled.of(H, S).Z
    found = held_out(PooledGram(Z @ Z.T).under(labels))
    aucs, pairs, scores = [], [], {"H": np.zeros(11), "S": np.zeros(14)}
    for fold in range(labels.folds):
        out_H, out_S = labels.source_fold[0] == fold, labels.target_fold[0] == fold
        r = H[~out_H].mean(0) - S[~out_S].mean(0)
        a, b = ((X @ (r / r.norm())).numpy() for X in (H[out_H], S[out_S]))
        scores["H"][out_H.numpy()], scores["S"][out_S.numpy()] = a, b
        aucs.append(roc_auc_score([1] * len(a) + [0] * len(b), np.concatenate([a, b])))
        pairs.append(len(a) * len(b))
    assert float(found["auc_direction"]) == pytest.approx(np.average(aucs, weights=pairs))
    gaps, squares = [], {"H": [], "S": []}
    for fold in range(labels.folds):
        inside = {"H": labels.source_fold[0] == fold, "S": labels.target_fold[0] == fold}
        held = {label: scores[label][rows] for label, rows in inside.items()}
        gaps.append(held["H"].mean() - held["S"].mean())
        for label, values in held.items():
            squares[label] += list((values - values.mean()) ** 2)
    within = sum(sum(squares[label]) / (len(squares[label]) - labels.folds) for label in squares)
    assert float(found["fisher_ratio"]) == pytest.approx(np.mean(gaps) ** 2 / within)


@pytest.mark.parametrize("within_folds", [False, True])
def test_permutations_deal_every_prompt_once_and_where_asked_in_its_fold(within_folds):
    labels = observed(11, 14, 3)
    draws = relabellings(labels, 30, 0, within_folds=within_folds)
    every = torch.cat([draws.source, draws.target], dim=1).sort(1).values
    assert torch.equal(every, torch.arange(25).expand(30, -1))
    assert len({tuple(row) for row in draws.source.tolist()}) == 30
    fold = torch.cat([labels.source_fold[0], labels.target_fold[0]])
    assert torch.equal(fold[draws.source], draws.source_fold) is within_folds
    assert torch.equal(fold[draws.target], draws.target_fold) is within_folds


# --- the table


def test_the_table_is_tidy_and_says_the_dense_numbers():
    acts = layered(12, 16, 30, layers=2, seed=2)
    table = diagnose(acts, permutations=20, bootstrap=20)
    assert list(table.columns) == ["layer", "position", *COLUMNS]
    assert list(table["quantity"].unique()) == [quantity.name for quantity in BUILT_IN]
    assert not table.duplicated(["layer", "position", "quantity"]).any()
    one = look_up(table[table["layer"] == 1], slice(None))
    H, S = acts.harmful(1), acts.harmless(1)
    eigenvalues = torch.linalg.eigvalsh(naive.covariance(H)).clamp_min(0)
    share = eigenvalues / eigenvalues.sum()
    expected = float(torch.special.entr(share).sum().exp())
    assert one.loc["effective_rank_harmful", "value"] == pytest.approx(expected)
    assert one.loc["participation_ratio_harmful", "value"] == pytest.approx(float(1 / share.square().sum()))
    assert one.loc["direction_norm", "value"] == pytest.approx(float((H.mean(0) - S.mean(0)).norm()))
    sizes = one.loc[["effective_rank_harmful", "effective_rank_harmless", "w2_squared"], "n"]
    assert list(sizes) == [12, 16, 28]
    assert (one["null_low"] <= one["null_mean"]).all()
    assert (one["null_mean"] <= one["null_high"]).all()
    assert ((one["low"] <= one["value"]) & (one["value"] <= one["high"])).all()


def test_the_same_seed_gives_the_same_table():
    acts = layered(8, 9, 12, layers=2, seed=3)
    options = {"permutations": 10, "bootstrap": 10}
    first = diagnose(acts, seed=4, **options)
    pd.testing.assert_frame_equal(first, diagnose(acts, seed=4, **options))
    assert not first.equals(diagnose(acts, seed=5, **options))


def test_every_position_has_its_rows():
    acts = layered(8, 9, 12, layers=2, seed=3)
    both = Layers(acts.source, acts.target, acts.layers, positions=(-2, -1))
    options = {"permutations": 0, "bootstrap": 0}
    assert set(diagnose(both, **options)["position"]) == {-2, -1}
    assert set(diagnose(both, position=-2, **options)["position"]) == {-2}
    assert diagnose(both, **options)[["null_mean", "low"]].isna().all(axis=None)


def test_a_real_difference_leaves_the_null_and_permuted_labels_do_not():
    H, S = normal(60, 80, seed=4), normal(60, 80, seed=5)
    H[:, 0] += 4.0
    mixed = torch.cat([H, S])[torch.randperm(120, generator=torch.Generator().manual_seed(1))]
    true = diagnose(one_layer(H, S), permutations=100, bootstrap=0).set_index("quantity")
    null = diagnose(one_layer(mixed[:60], mixed[60:]), permutations=100, bootstrap=0).set_index("quantity")
    for quantity in ("w2_squared", "auc_direction", "fisher_ratio", "sliced_w2", "w2_on_direction"):
        assert true.loc[quantity, "value"] > true.loc[quantity, "null_high"]
        assert null.loc[quantity, "value"] < 1.3 * null.loc[quantity, "null_high"]
    assert true.loc["auc_direction", "value"] > 0.95
    assert abs(null.loc["auc_direction", "value"] - 0.5) < 0.2
    share = true.loc["location_share_on_direction"]
    assert share["value"] > 0.4 > 2 * share["null_high"]


def test_the_null_covers_the_bias_of_samples_far_fewer_than_dimensions():
    # Both classes are the same standard normal: W2 = 0, yet the raw estimate is hundreds.
    H, S = normal(20, 1000, seed=6), normal(20, 1000, seed=7)
    row = look_up(diagnose(one_layer(H, S), permutations=100, bootstrap=0), "w2_squared")
    assert row["value"] > 500
    assert row["null_low"] < row["value"] < row["null_high"]


def test_p_values_under_permuted_labels_are_uniform():
    p_values = {"w2_squared": [], "w2_bures": []}
    for seed in range(150):
        Z = Pooled.of(normal(8, 12, seed=2 * seed), normal(9, 12, seed=2 * seed + 1)).Z
        labels = observed(8, 9, seed)
        value = wasserstein(PooledGram(Z @ Z.T).under(labels), fast=True)
        null = wasserstein(PooledGram(Z @ Z.T).under(relabellings(labels, 99, seed)), fast=True)
        for name, collected in p_values.items():
            collected.append(float((1 + (null[name] >= value[name]).sum()) / 100))
    for collected in p_values.values():
        assert kstest(collected, "uniform").pvalue > 0.01


def test_two_samples_a_class_are_enough():
    H, S = classes(2, 2, 10, seed=8)
    table = diagnose(one_layer(H, S), permutations=5, bootstrap=5).set_index("quantity")
    assert np.isfinite(table.loc["w2_squared", "value"])
    assert np.isnan(table.loc["fisher_ratio", "value"])


def test_bad_input_names_the_layer():
    acts = layered(6, 7, 10, layers=3, seed=9)
    acts.target[2, 0, 0] = torch.inf
    for table in (diagnose, spectra, direction_cosines):
        with pytest.raises(ActivationError, match="harmless at layer 2"):
            table(acts)
    with pytest.raises(ActivationError, match="3"):
        diagnose(acts, position=3)
    with pytest.raises(OtLensError, match="permutations = -1"):
        diagnose(acts, permutations=-1)


# --- spectra, cosines, plane


@pytest.mark.parametrize("d", [5, 40])
def test_spectra_are_those_of_the_covariances(d):
    acts = layered(12, 9, d, layers=2, seed=10)
    table = spectra(acts, bootstrap=10)
    for layer, label, X in ((0, "harmful", acts.harmful(0)), (1, "harmless", acts.harmless(1))):
        rows = table[(table["layer"] == layer) & (table["class"] == label)]
        count = min(len(X) - 1, d)
        dense = torch.linalg.eigvalsh(naive.covariance(X)).flip(0)[:count]
        assert_close(torch.tensor(rows["eigenvalue"].to_numpy()), dense, rtol=1e-9, atol=1e-12)
        assert list(rows["component"]) == list(range(count))
        assert rows["share"].sum() == pytest.approx(1)
        assert (rows["low"].isna() | (rows["low"] <= rows["eigenvalue"])).all()


@pytest.mark.parametrize("seed", range(3))
def test_no_interval_of_an_eigenvalue_rests_on_resamples_without_it(seed):
    """Resamples hold different numbers of distinct prompts; where one in a hundred lacks a dimension, its
    logarithm there is that of rounding."""
    rows = spectra(layered(24, 24, 40, layers=1, seed=seed), bootstrap=200)
    assert rows["low"].notna().iloc[0]
    told = rows[rows["high"].notna()]
    assert 10 < len(told) < len(rows) - 10
    assert (told["high"] < 2.3 * told["eigenvalue"]).all()
    assert (told["low"] > told["eigenvalue"] / 2.3).all()


def test_cosines_between_layers():
    acts = layered(15, 12, 20, layers=3, seed=12)
    table = direction_cosines(acts, permutations=30, bootstrap=30)
    r = [acts.harmful(layer).mean(0) - acts.harmless(layer).mean(0) for layer in range(3)]
    for _, row in table.iterrows():
        a, b = r[int(row["layer_a"])], r[int(row["layer_b"])]
        assert row["cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()))
        assert row["low"] <= row["cosine"] <= row["high"]
    assert len(table) == 9
    assert (table["n"] == 27).all()
    diagonal = table[table["layer_a"] == table["layer_b"]]
    assert np.allclose(diagonal[["cosine", "null_mean"]], 1)


def test_layers_that_share_a_direction_leave_the_null():
    r = 3 * normal(50, seed=13)
    r /= r.norm() / 5
    source = torch.stack([normal(60, 50, seed=seed) + r for seed in (1, 2)])
    acts = Layers(source, torch.stack([normal(60, 50, seed=seed) for seed in (3, 4)]), (0, 1))
    row = direction_cosines(acts, permutations=100, bootstrap=0).iloc[1]
    assert row["cosine"] > row["null_high"]


def test_the_plane_shows_what_the_maps_do():
    H, S = classes(30, 25, 40, seed=14)
    maps = {"ace": fit_ace(H, S), "pca_ot (k = 2)": fit_pca_ot(H, S, k=2)}
    points, clouds = principal_plane(H, S, maps, layer=4, position=-1)
    assert len(points) == 3 * 55
    assert set(points["state"]) == {"before", *maps}
    assert set(points["layer"]) == {4}
    cloud = clouds.set_index(["state", "class"])
    target, moved = cloud.loc[("before", "harmless")], cloud.loc[("pca_ot (k = 2)", "harmful")]
    for column in ("mean1", "mean2", "cov11", "cov12", "cov22"):
        assert moved[column] == pytest.approx(target[column], rel=1e-4, abs=1e-4)
    before = points[(points["state"] == "before") & (points["class"] == "harmful")][["pc1", "pc2"]].to_numpy()
    assert np.cov(before.T)[0, 1] == pytest.approx(cloud.loc[("before", "harmful"), "cov12"])
    spectrum = torch.linalg.svdvals(torch.cat([H, S]) - torch.cat([H, S]).mean(0)).square()
    assert cloud["pc1_share"].iloc[0] == pytest.approx(float(spectrum[0] / spectrum.sum()))


def test_no_plane_through_a_line():
    H = torch.arange(6, dtype=torch.float64).unsqueeze(1) * torch.ones(3, dtype=torch.float64)
    with pytest.raises(FitError, match="rank 1"):
        principal_plane(H, H + 1)


# --- intervals and nulls


def test_the_error_of_a_variance_is_a_factor():
    drawn = torch.linspace(0.5, 2.0, 79, dtype=torch.float64)
    one = bootstrap_interval(1.0, drawn, 20, (0.0, np.inf), scale="log")
    ten = bootstrap_interval(10.0, 10 * drawn, 20, (0.0, np.inf), scale="log")
    assert ten == pytest.approx({name: 10 * end for name, end in one.items()})
    assert one["high"] - 1 > 1 - one["low"] > 0
    assert np.isnan(bootstrap_interval(0.0, drawn, 20, scale="log")["low"])


def test_intervals_of_few_prompts_are_stretched():
    drawn = torch.linspace(-1, 1, 199, dtype=torch.float64)
    widths = [bootstrap_interval(0.0, drawn, n)["high"] for n in (3, 8, 32, 10**6)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(float(drawn[-5]), rel=1e-5)
    assert widths[2] / widths[-1] == pytest.approx(
        np.sqrt(32 / 30) * t.ppf(0.975, 30) / norm.ppf(0.975), rel=1e-5
    )


@pytest.mark.parametrize(("value", "inflation"), [(0.5, 1.0), (0.8, 1.0), (0.97, 1.0), (0.8, 7 / 3)])
def test_newcombes_interval_is_where_the_score_test_ends(value, inflation):
    n, m, folds = 24, 40, 4
    for end in auc_interval(value, (n, m), folds, inflation):
        more = (n + m) / (2 * folds) - 1
        variance = end * (1 - end) * (1 + more * ((1 - end) / (2 - end) + end / (1 + end)))
        variance *= folds**2 / (n * m) / folds * inflation
        assert abs(end - value) == pytest.approx(norm.ppf(0.975) * np.sqrt(variance))


def test_an_auc_of_one_is_not_certain():
    low, high = auc_interval(1.0, (24, 40), 4)
    assert 0.7 < low < 0.97
    assert high == 1
    assert auc_interval(0.0, (24, 40), 4) == pytest.approx((0.0, 1 - low))
    H, S = normal(24, 6, seed=30) + 20, normal(40, 6, seed=31)
    row = look_up(diagnose(one_layer(H, S), permutations=0, bootstrap=39), "auc_direction")
    assert (row["value"], row["low"], row["high"]) == (1, pytest.approx(low), 1)


def test_shapes_are_compared_about_own_means():
    # One covariance and two means far apart: permuted labels of the samples themselves would be mixtures.
    H, S = normal(30, 8, seed=32), normal(30, 8, seed=33)
    near = diagnose(one_layer(H, S), permutations=39, bootstrap=0).set_index("quantity")
    far = diagnose(one_layer(H + 100, S), permutations=39, bootstrap=0).set_index("quantity")
    columns = ["value", "null_mean", "null_low", "null_high"]
    for quantity in ("w2_bures", "effective_rank_harmful", "condition_number_harmless"):
        assert list(far.loc[quantity, columns]) == pytest.approx(list(near.loc[quantity, columns]), rel=1e-6)
    assert far.loc["w2_location", "null_mean"] > 10 * near.loc["w2_location", "null_mean"]
