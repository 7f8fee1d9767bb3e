import numpy as np
import ot
import pytest
import torch
from concept_erasure.optimal_transport import ot_distance
from hypothesis import given, settings
from sklearn.covariance import OAS, LedoitWolf
from torch.testing import assert_close

from ot_lens.errors import FitError
from ot_lens.gaussian import (
    Gaussian,
    bures_wasserstein,
    checked_ridge,
    gaussian_distance,
)
from ot_lens.moments import Moments, merge_all
from tests.generators import naive
from tests.generators.awkward import floor_for, samples
from tests.generators.gaussians import classes, normal, orthogonal


def dense(gaussian: Gaussian) -> torch.Tensor:
    return gaussian.factor.T @ gaussian.factor + gaussian.floor * torch.eye(
        gaussian.d_model, dtype=torch.float64
    )


def test_distance_by_hand():
    # N(0, 1) to N(1, 4): (0 - 1)^2 and (1 - 2)^2.
    d = bures_wasserstein(torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([[-1.0], [1.0], [3.0]]))
    assert (d.location, d.bures, d.squared, d.distance) == pytest.approx((1, 1, 2, 2**0.5))


@pytest.mark.parametrize(("n", "d"), [(12, 40), (60, 8)])
@pytest.mark.parametrize(("name", "peer"), [("ledoit_wolf", LedoitWolf), ("oas", OAS)])
def test_shrunk_covariance_is_that_of_scikit_learn(n, d, name, peer):
    X = classes(n, n, d, seed=0)[0]
    theirs = torch.from_numpy(peer().fit(X.numpy()).covariance_) * n / (n - 1)
    assert_close(dense(Gaussian.fit(X, shrinkage=name)), theirs, rtol=1e-8, atol=1e-8)
    streamed = merge_all([Moments.of(part) for part in X.split(5)])
    assert_close(dense(Gaussian.of_moments(streamed, shrinkage=name)), theirs, rtol=1e-8, atol=1e-8)


@given(samples())
@settings(max_examples=30)
def test_distance_agrees_with_dense_formula_and_pot(pair):
    H, S = pair
    ridge = floor_for(H, S, 1e6)
    ours = bures_wasserstein(H, S, ridge=ridge)
    eye = ridge * torch.eye(H.shape[1], dtype=torch.float64)
    C_H, C_S = naive.covariance(H) + eye, naive.covariance(S) + eye
    location, bures = naive.w2(H.mean(0), C_H, S.mean(0), C_S)
    spread = float(torch.trace(C_H + C_S))
    assert ours.location == pytest.approx(location, rel=1e-8, abs=1e-8 * spread)
    assert ours.bures == pytest.approx(bures, rel=1e-8, abs=1e-8 * spread)
    pot = float(ot.gaussian.bures_wasserstein_distance(H.mean(0), S.mean(0), C_H, C_S)) ** 2
    assert ours.squared == pytest.approx(pot, rel=1e-8, abs=1e-8 * spread)
    erasure = float(ot_distance(C_H, C_S)) ** 2
    if np.isfinite(erasure):
        assert ours.bures == pytest.approx(erasure, rel=1e-8, abs=1e-8 * spread)


def test_distance_is_a_metric_that_rotations_keep():
    H, S = classes(20, 30, 40, seed=2)
    third = normal(25, 40, seed=3)
    options = {"shrinkage": "oas"}
    assert bures_wasserstein(H, H.flip(0), **options).squared == pytest.approx(0, abs=1e-9)
    one, back = bures_wasserstein(H, S, **options), bures_wasserstein(S, H, **options)
    assert one.bures == pytest.approx(back.bures)
    via = bures_wasserstein(H, third, **options).distance + bures_wasserstein(third, S, **options).distance
    assert one.distance <= via
    Q = orthogonal(40, seed=4)
    assert bures_wasserstein(H @ Q, S @ Q, **options).bures == pytest.approx(one.bures)
    assert bures_wasserstein(3 * H, 3 * S, **options).bures == pytest.approx(9 * one.bures)


@pytest.mark.parametrize(("n", "d", "ridge"), [(8, 30, 0.3), (40, 6, 0.0), (40, 6, 0.2)])
def test_mahalanobis_is_the_dense_one(n, d, ridge):
    X, x = classes(n, n, d, seed=6)[0], normal(5, d, seed=7)
    gaussian = Gaussian.fit(X, ridge=ridge)
    deviation = x - X.mean(0)
    squared = (deviation @ torch.linalg.inv(dense(gaussian)) * deviation).sum(1)
    assert_close(gaussian.mahalanobis(x), squared.sqrt())


@pytest.mark.parametrize("options", [{"ridge": -0.1}, {"shrinkage": "shrink"}])
def test_bad_options_are_named(options):
    with pytest.raises(FitError, match=str(*options.values())):
        bures_wasserstein(*classes(5, 5, 8, seed=8), **options)


# --- boundaries


@pytest.mark.parametrize(("n", "d"), [(8, 8), (20, 20), (40, 8)])
def test_dependent_samples_have_no_mahalanobis_distance_until_a_floor_is_given(n, d):
    # As many samples as coordinates, or one coordinate that follows another: singular up to rounding only.
    X = classes(n, n, d, seed=10)[0]
    X[:, 1] = 2 * X[:, 0] + 1
    with pytest.raises(FitError, match="singular"):
        Gaussian.fit(X).mahalanobis(X)
    for options in ({"ridge": 1e-8}, {"shrinkage": "oas"}):
        assert bool(torch.isfinite(Gaussian.fit(X, **options).mahalanobis(X)).all())
    with pytest.raises(FitError, match="singular"):
        Gaussian.fit(torch.ones(n, d).double()).mahalanobis(X)


def test_directions_lost_to_compression_have_no_variance():
    compressed = Moments.of(normal(40, 30, seed=16), limit=4)
    with pytest.raises(FitError, match="singular"):
        Gaussian.of_moments(compressed).mahalanobis(normal(2, 30, seed=17))
    floored = Gaussian.of_moments(compressed, ridge=0.5)
    assert bool(torch.isfinite(floored.mahalanobis(normal(2, 30, seed=17))).all())


@pytest.mark.parametrize("ratio", [1e-4, 1e-12])
def test_a_narrow_coordinate_is_not_a_singular_one(ratio):
    X, scale = classes(40, 40, 6, seed=11)[0], torch.tensor([ratio, 1, 1, 1, 1, 1]).double()
    x = (X.mean(0) + 1).unsqueeze(0)
    found = Gaussian.fit(X * scale).mahalanobis(x * scale)
    assert_close(found, Gaussian.fit(X).mahalanobis(x), rtol=1e-3, atol=0)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_mahalanobis_is_in_standard_deviations(ridge):
    X = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 2.0], [0.0, -2.0]]).double() + 5
    # Variances 18 / 3 and 8 / 3, to which the ridge is added.
    x = torch.tensor([[5.0, 5.0], [7.0, 5.0], [5.0, 1.0]]).double()
    expected = torch.tensor([0.0, 2 / (6 + ridge) ** 0.5, 4 / (8 / 3 + ridge) ** 0.5]).double()
    assert_close(Gaussian.fit(X, ridge=ridge).mahalanobis(x), expected)


@pytest.mark.parametrize("ridge", [-1e-300, float("inf"), float("-inf"), float("nan")])
def test_a_ridge_is_a_finite_variance(ridge):
    with pytest.raises(FitError, match=str(ridge)):
        checked_ridge(ridge)
    assert [checked_ridge(valid) for valid in (None, 0.0, 1.5)] == [0.0, 0.0, 1.5]


@pytest.mark.parametrize("ridges", [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.2, 0.7), (0.7, 0.2), (1.0, 1.0)])
def test_the_distance_outside_of_the_samples_is_that_of_the_floors(ridges):
    # Far more dimensions than samples: most of the distance is what no sample spans.
    H, S = classes(5, 6, 60, seed=13)
    source, target = (Gaussian.fit(X, ridge=ridge) for X, ridge in zip((H, S), ridges, strict=True))
    expected = naive.w2(source.mean, dense(source), target.mean, dense(target))
    assert gaussian_distance(source, target).bures == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("options", [{}, {"ridge": 1e-6}])
def test_equal_moments_are_at_distance_zero_and_never_below(scale, options):
    for seed in range(8):
        X = scale * normal(20, 9, seed=seed)
        found = bures_wasserstein(X, X.flip(0), **options)
        assert 0 <= found.bures <= 1e-12 * scale**2 * 20
        assert 0 <= found.location <= 1e-28 * scale**2
