import warnings

import ot
import pytest
import torch
from concept_erasure.optimal_transport import ot_map
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, PoorFitWarning
from ot_lens.gaussian import Gaussian, bures_wasserstein
from ot_lens.moments import Moments, merge_all
from ot_lens.transport import AffineMap, fit_gaussian_ot, fit_gaussian_ot_of_moments
from tests.generators import naive, precise
from tests.generators.awkward import floor_for, samples
from tests.generators.gaussians import classes, normal, orthogonal, pair


def linear_part(T: AffineMap) -> torch.Tensor:
    scale = torch.ones(T.d_model, dtype=torch.float64) if T.scale is None else T.scale
    return torch.diag(scale) + T.U @ T.V.T


def dense(X: torch.Tensor, **options) -> torch.Tensor:
    fitted = Gaussian.fit(X, **options)
    return fitted.factor.T @ fitted.factor + fitted.floor * torch.eye(X.shape[1], dtype=torch.float64)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_commuting_covariances_by_hand():
    # Axes are shared: each is stretched by the ratio of its standard deviations.
    H = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 3], [0, 0, -3]]).double()
    factors = torch.tensor([2.0, 0.5, 1.0]).double()
    T = fit_gaussian_ot(H, H * factors + 1, shrinkage=None)
    assert_close(linear_part(T), torch.diag(factors))


@given(st.integers(2, 20), st.integers(0, 999))
@settings(max_examples=25)
def test_a_planted_map_is_found(d, seed):
    known = pair(2 * d + 10, d, seed)
    T = fit_gaussian_ot(known.H, known.S, shrinkage=None)
    assert relative(linear_part(T), known.A) < 1e-9
    assert relative(T.map(known.H), known.answer(known.H)) < 1e-10


@pytest.mark.filterwarnings("ignore::ot_lens.errors.PoorFitWarning")
@given(samples(), st.sampled_from(["ridge", "ledoit_wolf", "oas"]))
@settings(max_examples=30)
def test_agrees_with_dense_formula_pot_and_concept_erasure(classes_, kind):
    H, S = classes_
    options = {"shrinkage": None, "ridge": floor_for(H, S, 1e6)}
    if kind != "ridge":
        options = {"shrinkage": kind, "ridge": floor_for(H, S, 1e5)}
    T = fit_gaussian_ot(H, S, **options)
    C_H, C_S = dense(H, **options), dense(S, **options)
    A = naive.monge(C_H, C_S)
    assert relative(T.map(H), S.mean(0) + (H - H.mean(0)) @ A) < 1e-8
    A_pot, b_pot = ot.gaussian.bures_wasserstein_mapping(H.mean(0), S.mean(0), C_H, C_S)
    assert relative(T.map(H), H @ A_pot + b_pot) < 1e-8
    A_ce = ot_map(C_H, C_S)
    assert relative(T.map(H), S.mean(0) + (H - H.mean(0)) @ A_ce) < 1e-8


@pytest.mark.parametrize("d", [256, 512])
def test_agrees_with_the_dense_formula_when_wide(d):
    H, S = classes(24, 40, d, seed=0)
    T = fit_gaussian_ot(H, S)
    A = naive.monge(dense(H, shrinkage="ledoit_wolf"), dense(S, shrinkage="ledoit_wolf"))
    assert relative(T.map(H), S.mean(0) + (H - H.mean(0)) @ A) < 1e-10


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize(("decades_H", "decades_S"), [(4, 4), (7, 7), (11, 11), (14, 14), (2, 14), (14, 2)])
def test_stated_error_bound_holds_up_to_condition_1e14(decades_H, decades_S, n):
    # Against 50 digits: from about 1e7 on the dense float64 formula itself is off by more than 1e-8.
    d = 12
    decay = -torch.arange(d, dtype=torch.float64) / (2 * d)
    H = normal(n, d, seed=1) * 10.0 ** (decades_H * decay) @ orthogonal(d, seed=2) + normal(d, seed=3)
    S = normal(n + 2, d, seed=4) * 10.0 ** (decades_S * decay.flip(0)) @ orthogonal(d, seed=5)
    ridge = floor_for(H, S, 10.0 ** max(decades_H, decades_S))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorFitWarning)
        T = fit_gaussian_ot(H, S, ridge=ridge, shrinkage=None)
    error = relative(T.map(H), precise.gaussian_map(H, S, ridge, H))
    assert error < T.info.error_bound
    assert error < 1e-8
    assert (T.info.condition_number > 1e8) == any(
        "condition number" in problem for problem in T.info.problems
    )
    if decades_H == decades_S:
        assert (T.info.condition_number > 1e8) == (decades_H > 8)


@given(samples(low=8, high=40))
@settings(max_examples=25)
def test_theorems(classes_):
    H, S = classes_
    options = {"shrinkage": None, "ridge": floor_for(H, S, 1e4)}
    T = fit_gaussian_ot(H, S, **options)
    A, C_H, C_S = linear_part(T), dense(H, **options), dense(S, **options)
    assert_close(A, A.T, rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh((A + A.T) / 2)[0] > 0
    assert_close(A @ C_H @ A, C_S, rtol=1e-7, atol=1e-9 * float(torch.trace(C_S)))
    assert_close(T.map(H).mean(0), S.mean(0), rtol=1e-9, atol=1e-8)
    # Transport cost E ||T(x) - x||^2 is W2^2: a wrong map of the same push-forward costs more.
    change = A - torch.eye(len(A), dtype=A.dtype)
    cost = float((H.mean(0) - S.mean(0)).square().sum() + torch.trace(change @ C_H @ change.T))
    squared = bures_wasserstein(H, S, **options).squared
    assert cost == pytest.approx(squared, rel=1e-7, abs=1e-9 * float(torch.trace(C_H + C_S)))


def test_there_and_back_is_the_identity():
    H, S = classes(20, 30, 60, seed=6)
    there, back = fit_gaussian_ot(H, S), fit_gaussian_ot(S, H)
    assert relative(back.compose(there).map(H), H) < 1e-10
    assert relative(there.inverse().map(S), back.map(S)) < 1e-10
    assert relative(there.inverse().compose(there).map(S), S) < 1e-10


def test_identity_between_equal_gaussians():
    H, _ = classes(20, 30, 60, seed=7)
    T = fit_gaussian_ot(H, H.flip(0))
    assert relative(T.map(H), H) < 1e-12
    assert T.rank < 60


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_strength_is_the_wasserstein_geodesic(t):
    H, S = classes(20, 30, 16, seed=8)
    options = {"shrinkage": None, "ridge": 0.1}
    T = fit_gaussian_ot(H, S, **options)
    C_H, C_S = dense(H, **options), dense(S, **options)
    A_t = linear_part(T.at(t))
    C_t = A_t @ C_H @ A_t
    whole = sum(naive.w2(H.mean(0), C_H, S.mean(0), C_S)) ** 0.5
    first = sum(naive.w2(H.mean(0), C_H, T.at(t).map(H).mean(0), C_t)) ** 0.5
    second = sum(naive.w2(T.at(t).map(H).mean(0), C_t, S.mean(0), C_S)) ** 0.5
    assert first == pytest.approx(t * whole, abs=1e-6 * whole)
    assert second == pytest.approx((1 - t) * whole, abs=1e-6 * whole)


def test_rotation_and_scaling_are_followed():
    H, S = classes(20, 30, 40, seed=9)
    Q, T = orthogonal(40, seed=10), fit_gaussian_ot(H, S)
    assert relative(fit_gaussian_ot(H @ Q, S @ Q).map(H @ Q), T.map(H) @ Q) < 1e-10
    assert relative(fit_gaussian_ot(1e3 * H, 1e3 * S).map(1e3 * H), 1e3 * T.map(H)) < 1e-10


def test_streamed_moments_give_the_same_map():
    H, S = classes(20, 30, 25, seed=12)
    streams = [merge_all([Moments.of(part) for part in X.split(6)]) for X in (H, S)]
    T = fit_gaussian_ot_of_moments(*streams, shrinkage="oas")
    single = fit_gaussian_ot(H, S, shrinkage="oas")
    assert relative(T.map(H), single.map(H)) < 1e-9
    assert T.info.shrinkage_harmful == pytest.approx(single.info.shrinkage_harmful)
    with pytest.raises(ActivationError, match="d = 25 and 3"):
        fit_gaussian_ot_of_moments(streams[0], Moments.of(torch.ones(4, 3)))


def test_what_cannot_be_inverted_needs_a_ridge():
    H, S = classes(9, 9, 20, seed=13)
    for source, shrinkage in ((H, None), (H[:1].expand(9, -1).clone(), None), (H[:1].expand(9, -1), "oas")):
        with pytest.raises(FitError, match=r"n_H = 9.* give ridge > 0"):
            fit_gaussian_ot(source, S, shrinkage=shrinkage)
    # Every direction of the joint span has spread then, and those outside have none.
    with pytest.raises(FitError, match="singular"):
        fit_gaussian_ot(H, 2 * H, ridge=0.0, shrinkage=None)
    assert fit_gaussian_ot(H, 2 * H, ridge=1e-3, shrinkage=None).rank == 8
    with pytest.raises(FitError, match="'lasso'"):
        fit_gaussian_ot(H, S, shrinkage="lasso")


@pytest.mark.parametrize("seed", range(5))
def test_as_many_samples_as_dimensions_are_singular_and_one_more_is_not(seed):
    H, S = normal(21, 20, seed=seed) + 3, normal(40, 20, seed=seed + 9)
    with pytest.raises(FitError, match="singular"):
        fit_gaussian_ot(H[:20], S, shrinkage=None)
    assert bool(torch.isfinite(fit_gaussian_ot(H, S, shrinkage=None).map(H)).all())


def test_a_map_between_proportional_covariances_is_a_scale_up_to_rounding():
    H, _ = classes(40, 40, 6, seed=10)
    T = fit_gaussian_ot(H, H + 1, shrinkage=None)
    assert T.scale is None
    assert T.rank < 6
    assert_close(T.U @ T.V.T, torch.zeros(6, 6, dtype=H.dtype), rtol=0, atol=1e-13)
    wide, _ = classes(9, 9, 30, seed=11)
    for factor in (2.0, 100.0):
        T = fit_gaussian_ot(wide, factor * wide, shrinkage="oas")
        assert T.rank < 18
        assert_close(T.U @ T.V.T, torch.zeros(30, 30, dtype=H.dtype), rtol=0, atol=factor * 1e-13)
        assert_close(T.scale, torch.full((30,), factor, dtype=torch.float64))


def test_unlike_floors_stretch_what_no_sample_spans():
    H, S = classes(5, 6, 30, seed=12)
    T = fit_gaussian_ot(H, S, shrinkage="oas")
    outside = torch.linalg.svd(torch.cat([H - H.mean(0), S - S.mean(0)]))[2][9:]
    floors = [float(Gaussian.fit(X, shrinkage="oas").floor) for X in (H, S)]
    moved = T.map(H.mean(0) + outside) - S.mean(0)
    assert_close(moved, (floors[1] / floors[0]) ** 0.5 * outside, rtol=1e-8, atol=1e-8)


def test_a_point_is_a_fair_target():
    H, S = classes(9, 9, 20, seed=14)
    T = fit_gaussian_ot(H, S[:1].expand(9, -1).clone())
    assert_close(T.map(H), S[:1].expand(9, -1), rtol=1e-9, atol=1e-9)
