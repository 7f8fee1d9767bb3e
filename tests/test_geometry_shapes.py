import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment
from scipy.stats import chi2
from sklearn.covariance import LedoitWolf

from ot_lens.errors import ActivationError, FitError, OtLensError
from ot_lens.geometry import (
    class_angles,
    diagnose,
    direction_cosines,
    layer_angles,
    position_cosines,
    run_cosines,
)
from ot_lens.geometry.distances import MAX_ASSIGNMENT, empirical
from ot_lens.geometry.gaussianity import normality
from ot_lens.geometry.resampled_moments import PooledGram
from ot_lens.geometry.spectra import dimensions
from ot_lens.linalg import Pooled
from ot_lens.statistics.resampling import observed
from tests.generators.gaussians import Layers, classes, layered, normal, one_layer, orthogonal

FEW = {"permutations": 30, "bootstrap": 30}


# --- distances and shapes


@pytest.mark.parametrize(("n_H", "n_S"), [(5, 5), (4, 6)])
def test_empirical_distance_is_the_cheapest_pairing(n_H, n_S):
    H, S = classes(n_H, n_S, 7, seed=0)
    Z, labels = Pooled.of(H, S).Z, observed(n_H, n_S, 0)
    # Repeat the points until both classes are of one size, then try every pairing.
    m = np.lcm(n_H, n_S)
    X, Y = (A.repeat_interleave(int(m) // len(A), 0) for A in (H, S))
    cost = torch.cdist(X, Y).square().numpy()
    found = float(empirical(Z @ Z.T, labels)["empirical_w2"])
    assert found == pytest.approx(cost[linear_sum_assignment(cost)].mean())
    if m <= 6:
        best = min(np.mean([cost[i, p[i]] for i in range(m)]) for p in itertools.permutations(range(m)))
        assert found == pytest.approx(best)


def test_empirical_distance_is_left_out_for_many_samples():
    n = MAX_ASSIGNMENT + 1
    gram = torch.zeros(n + 2, n + 2, dtype=torch.float64)
    assert empirical(gram, observed(n, 2, 0))["empirical_w2"].isnan().all()


@pytest.mark.parametrize("d", [6, 30])
def test_condition_number_is_that_of_scikit_learns_covariance(d):
    H, S = classes(12, 15, d, seed=1)
    Z = Pooled.of(H, S).Z
    found = dimensions(PooledGram(Z @ Z.T).under(observed(12, 15, 0)), d)
    for label, X in (("harmful", H), ("harmless", S)):
        expected = np.linalg.cond(LedoitWolf().fit(X.numpy()).covariance_)
        assert float(found[f"condition_number_{label}"]) == pytest.approx(expected, rel=1e-6)


def test_normality_statistics_by_their_definitions():
    Y = normal(40, 3, seed=2) ** 3
    skewness, kurtosis, zirkler = (float(value) for value in normality(Y.unsqueeze(0)))
    X = (Y - Y.mean(0)).numpy()
    n, p = X.shape
    inverse = np.linalg.inv(X.T @ X / n)
    D = X @ inverse @ X.T
    assert skewness == pytest.approx(np.mean([D[i, j] ** 3 for i in range(n) for j in range(n)]))
    assert kurtosis == pytest.approx(np.mean(np.diag(D) ** 2))
    beta = (1 / np.sqrt(2)) * (n * (2 * p + 1) / 4) ** (1 / (p + 4))
    gaps = np.array([[(X[i] - X[j]) @ inverse @ (X[i] - X[j]) for j in range(n)] for i in range(n)])
    expected = n * (
        np.exp(-(beta**2) / 2 * gaps).mean()
        - 2 * (1 + beta**2) ** (-p / 2) * np.exp(-(beta**2) / (2 * (1 + beta**2)) * np.diag(D)).mean()
        + (1 + 2 * beta**2) ** (-p / 2)
    )
    assert zirkler == pytest.approx(expected)


def test_normality_of_gaussians_follows_the_known_laws():
    Y = normal(400, 150, 2, seed=3)
    skewness, kurtosis, _ = normality(Y)
    # Mardia 1970: n b_1 / 6 is chi-square with k(k+1)(k+2)/6 degrees of freedom, E b_2 = k(k+2)(n-1)/(n+1).
    assert float((150 / 6 * skewness).mean()) == pytest.approx(4, rel=0.1)
    assert float(((150 / 6 * skewness) > chi2.ppf(0.95, 4)).double().mean()) == pytest.approx(0.05, abs=0.035)
    assert float(kurtosis.mean()) == pytest.approx(8 * 149 / 151, rel=0.01)


def test_normality_leaves_its_null_only_when_it_should():
    H, S = normal(100, 10, seed=4), normal(100, 10, seed=5)
    H[:, :2] = 4 * H[:, :2] ** 3
    table = diagnose(one_layer(H, S), permutations=100, bootstrap=0).set_index("quantity")
    for name in ("mardia_skewness", "mardia_kurtosis", "henze_zirkler"):
        assert table.loc[f"{name}_harmful", "value"] > table.loc[f"{name}_harmful", "null_high"]
        assert table.loc[f"{name}_harmless", "value"] < 1.5 * table.loc[f"{name}_harmless", "null_high"]


# --- directions


def test_positions_are_compared_layer_by_layer():
    a, b = layered(9, 8, 12, layers=2, seed=6), layered(9, 8, 12, layers=2, seed=60)

    class TwoPositions(Layers):
        def harmful(self, layer, position=None):
            return super().harmful(layer) if position == -2 else b.harmful(layer)

        def harmless(self, layer, position=None):
            return super().harmless(layer) if position == -2 else b.harmless(layer)

    both = TwoPositions(a.source, a.target, (0, 1), positions=(-2, -1))
    table = position_cosines(both, **FEW)
    assert len(table) == 2 * 4
    row = table[(table["layer"] == 1) & (table["position_a"] == -2) & (table["position_b"] == -1)].iloc[0]
    r, s = (acts.harmful(1).mean(0) - acts.harmless(1).mean(0) for acts in (a, b))
    assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(r, s, dim=0)))
    assert row["low"] <= row["cosine"] <= row["high"]


def test_runs_are_compared_at_common_layers():
    acts = layered(9, 8, 12, layers=3, seed=7)
    turned = Layers(acts.source[1:] * 2, acts.target[1:] * 2, (1, 2))
    table = run_cosines(acts, turned, **FEW)
    assert list(table["layer"]) == [1, 2]
    assert np.allclose(table[["cosine", "low", "null_mean"]], 1)
    other = layered(7, 9, 12, layers=3, seed=70)
    different = run_cosines(acts, other, **FEW)
    assert different["cosine"].abs().max() < 0.9
    assert (different["null_low"] < 0).all()
    with pytest.raises(ActivationError, match="share no layer"):
        run_cosines(acts, Layers(acts.source, acts.target, (7, 8, 9)))
    with pytest.raises(ActivationError, match="widths 12 and 5"):
        run_cosines(acts, layered(9, 8, 5, layers=3, seed=7))


# --- angles


@pytest.mark.parametrize("d", [8, 40])
def test_class_angles_are_scipys(d):
    H, S = classes(15, 12, d, seed=8)
    table = class_angles(one_layer(H, S), k=3, **FEW)
    bases = [torch.linalg.svd(X - X.mean(0))[2][:3].T.numpy() for X in (H, S)]
    assert table["angle"].to_numpy() == pytest.approx(np.rad2deg(subspace_angles(*bases))[::-1], abs=1e-5)
    assert ((table["low"] <= table["angle"]) & (table["angle"] <= table["high"])).all()


def test_class_angles_tell_turned_classes_from_alike_ones():
    scale = torch.cat([torch.full((2,), 10.0), torch.ones(18)]).double()
    H, S = normal(80, 20, seed=9) * scale, normal(80, 20, seed=10) * scale
    alike = class_angles(one_layer(H, S), permutations=100, bootstrap=0)
    turned = class_angles(one_layer(H, S.flip(1)), permutations=100, bootstrap=0)
    assert (alike["angle"] < 1.3 * alike["null_high"]).all()
    assert turned["angle"][0] > turned["null_high"][0]


def test_layer_angles_are_scipys_and_the_null_is_random_subspaces():
    acts = layered(15, 12, 30, layers=2, seed=11)
    table = layer_angles(acts, k=2, label="harmless", **FEW)
    bases = [torch.linalg.svd(X - X.mean(0))[2][:2].T.numpy() for X in acts.target]
    between = table[(table["layer_a"] == 0) & (table["layer_b"] == 1)]
    assert between["angle"].to_numpy() == pytest.approx(np.rad2deg(subspace_angles(*bases))[::-1], abs=1e-5)
    same = table[table["layer_a"] == table["layer_b"]]
    assert same["angle"].max() < 1e-4
    Q = orthogonal(30, seed=12)[:, :2].numpy()
    random = np.rad2deg(subspace_angles(Q, orthogonal(30, seed=13)[:, :2].numpy()))
    assert table["null_low"].min() - 15 < random.min()
    assert random.max() < table["null_high"].max() + 10


def test_angles_need_a_subspace():
    acts = layered(5, 6, 10, layers=1, seed=14)
    for table in (class_angles, layer_angles):
        with pytest.raises(FitError, match="k = 9"):
            table(acts, k=9)
    with pytest.raises(FitError, match="'benign'"):
        layer_angles(acts, label="benign")
    with pytest.raises(OtLensError, match="bootstrap = -1"):
        class_angles(acts, bootstrap=-1)


def test_cosines_of_two_layers_do_not_depend_on_their_order():
    table = direction_cosines(layered(9, 8, 12, layers=2, seed=30), **FEW)
    numbers = ["cosine", "null_mean", "low", "high"]
    assert table.loc[1, numbers].tolist() == pytest.approx(table.loc[2, numbers].tolist())
