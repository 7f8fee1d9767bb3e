"""Checks of samples, centring, Gram matrices, matrix roots, couplings on a line, and threads."""

import math
import threading

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ot_lens.errors import ActivationError, OtLensTypeError
from ot_lens.linalg import (
    EPS,
    Pooled,
    centred,
    check_pair,
    check_samples,
    gram_spectrum,
    mapped,
    mean_gap,
    monge_matrix,
    monotone_coupling,
    nuclear_norm,
    numerical_rank,
    one_thread,
    orthonormal_span,
    principal_axes,
    psd_eigen,
)
from tests.generators import naive
from tests.generators.gaussians import normal, orthogonal, spd


def rank(X: torch.Tensor) -> list[int]:
    return numerical_rank(gram_spectrum(centred(X)[0])[0], X.norm(dim=-1).amax(-1)).tolist()


# --- samples


@pytest.mark.parametrize(
    ("bad", "error", "value"),
    [
        ([[0.0, 1.0]], OtLensTypeError, "list"),
        (np.zeros((3, 2)), OtLensTypeError, "ndarray"),
        (torch.zeros(3, 2, dtype=torch.int64), ActivationError, "int64"),
        (torch.zeros(3, 2, dtype=torch.complex64), ActivationError, "complex64"),
        (torch.zeros(3), ActivationError, r"\[3\]"),
        (torch.zeros(1, 2), ActivationError, "n = 1"),
        (torch.zeros(3, 0), ActivationError, r"\[3, 0\]"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [torch.inf, 2.0]]), ActivationError, "2 of 3 .*row 1"),
    ],
)
def test_samples_that_cannot_be_used_are_named_with_their_fault(bad, error, value):
    good = torch.zeros(4, 2)
    for pair, name in (((bad, good), "left"), ((good, bad), "right")):
        with pytest.raises(error, match=f"{name} .*{value}"):
            check_pair(*pair, names=("left", "right"))
    with pytest.raises(error, match=f"x .*{value}"):
        check_samples(bad)


@pytest.mark.parametrize(
    ("other", "values"),
    [(torch.zeros(3, 5), ("left", "2", "right", "5")), (torch.zeros(3, 2, device="meta"), ("cpu", "meta"))],
)
def test_classes_that_do_not_fit_together_are_both_named(other, values):
    with pytest.raises(ActivationError, match=".*".join(values)):
        check_pair(torch.zeros(3, 2), other, names=("left", "right"))


def test_finite_samples_whose_sum_overflows_are_accepted():
    huge = torch.full((3, 2), 1.7e308, dtype=torch.float64)
    assert torch.equal(check_samples(huge), huge)


# --- centring and rank (classes without spread: test_degenerate.py)


def test_shared_coordinates_are_zero_for_each_layer_and_others_are_kept():
    H, S = torch.full((2, 27, 3), 0.1).double(), torch.full((2, 4, 3), 0.1).double()
    H[0, 0, 1], H[:, :, 2], S[:, :, 2] = 5.0, 1e3 / 3, 1e3 / 3
    Z = Pooled.of(H, S).Z
    assert not Z[0, :, [0, 2]].any()
    assert not Z[1].any()
    assert_close(Z[0, :, 1], torch.cat([H, S], 1)[0, :, 1] - (5 + 30 * 0.1) / 31)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_one_sample_apart_is_kept_on_either_side(side):
    H, S = torch.full((40, 1), 1.0).double(), torch.full((40, 1), 1.0).double()
    H[0] += side * 200 * EPS
    assert float(Pooled.of(H, S).Z.abs().max()) > 50 * EPS


def test_means_that_agree_in_a_coordinate_have_no_gap_there():
    H, S = normal(9, 4, seed=20), normal(7, 4, seed=21)
    H[:, 2], S[:, 2] = 1e8 / 3, 1e8 / 3
    gap, rounding = mean_gap(H, S)
    assert gap[2] == 0
    assert_close(gap[:2], S.mean(0)[:2] - H.mean(0)[:2])
    assert 0 < rounding < 1e-5


@pytest.mark.parametrize(("n", "d"), [(9, 50), (50, 9)])
def test_a_small_spread_far_from_the_origin_has_a_rank_until_it_is_rounding(n, d):
    spread, far = normal(n, d, seed=3), 1e3 * normal(d, seed=4)
    full = min(n - 1, d)
    for scale, expected in ((1.0, full), (1e-7, full), (1e-14, 0), (0.0, 0)):
        assert rank(torch.stack([scale * spread + far, 1e9 * spread])) == [expected, full]
    assert rank(normal(n, 2, seed=10) @ normal(2, d, seed=11) + 7) == 2


@pytest.mark.parametrize("order", [[1.0, 1e-10, EPS, 0.5 * EPS], [0.5 * EPS, EPS, 1e-10, 1.0]])
def test_eigenvalues_far_below_the_largest_are_rounding(order):
    assert int(numerical_rank(torch.tensor(order).double(), torch.tensor(0.0).double())) == 2


# --- Gram matrices


@pytest.mark.parametrize(("n", "d"), [(6, 40), (40, 6), (8, 8)])
def test_gram_components_are_those_of_the_svd_for_each_layer(n, d):
    Z = normal(2, n, d, seed=4)
    values, vectors = gram_spectrum(Z)
    left, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    assert_close(values, s.square(), rtol=1e-11, atol=1e-11)
    axes = principal_axes(Z, vectors, 3)
    assert_close((axes * Vh[:, :3].mT).sum(1).abs(), torch.ones(2, 3, dtype=Z.dtype), rtol=0, atol=1e-10)
    assert_close((Z @ axes).abs(), (left[..., :3] * s[:, None, :3]).abs(), rtol=1e-8, atol=1e-8)


def test_axes_stay_orthonormal_when_the_spectrum_spans_twelve_decades():
    decades = 10.0 ** -torch.arange(30, dtype=torch.float64).div(5)
    Z = (orthogonal(30, seed=5) * decades) @ orthogonal(30, seed=6)
    axes = principal_axes(Z, gram_spectrum(Z)[1], 30)
    assert_close(axes.T @ axes, torch.eye(30, dtype=Z.dtype), rtol=0, atol=1e-13)


def test_axes_point_to_their_largest_coordinate_in_any_order_of_the_rows():
    Z = normal(4, 10, 20, seed=7)
    axes = principal_axes(Z, gram_spectrum(Z)[1], 4)
    assert bool((axes.gather(-2, axes.abs().argmax(-2, keepdim=True)) > 0).all())
    again = Z[:, torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    assert_close(principal_axes(again, gram_spectrum(again)[1], 4), axes)


@pytest.mark.parametrize(("a", "b", "d"), [(4, 6, 50), (30, 20, 12)])
def test_the_span_holds_both_samples(a, b, d):
    X, Y = normal(a, d, seed=12), normal(b, d, seed=13)
    Q, in_X, in_Y = orthonormal_span(X, Y)
    assert Q.shape == (d, min(a + b, d))
    assert_close(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype))
    assert_close(in_X @ Q.T, X)
    assert_close(in_Y @ Q.T, Y)


# --- positive semidefinite matrices


def test_negative_eigenvalues_are_clipped_and_counted_beyond_rounding_for_each_layer():
    C = torch.diag(torch.tensor([-8 * EPS, -EPS, 1.0], dtype=torch.float64))
    scales = torch.tensor([1e-8, 1.0, 1e8]).double()
    values, _, negative = psd_eigen(scales[:, None, None] * C)
    assert negative.tolist() == [1, 1, 1]
    assert not values[:, :2].any()
    assert_close(values[:, 2], scales)


@given(st.integers(1, 12), st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_monge_matrix_is_the_textbook_formula(d, seed):
    C_H, C_S = spd(d, seed), spd(d, seed + 7)
    A = monge_matrix(naive.root(C_H), naive.root(C_H, -0.5), naive.root(C_S))
    assert_close(A, naive.monge(C_H, C_S), rtol=1e-9, atol=1e-11)
    assert_close(A @ C_H @ A, C_S, rtol=1e-9, atol=1e-11)
    assert torch.equal(A, A.mT)
    assert torch.linalg.eigvalsh(A)[0] > 0


@pytest.mark.parametrize("shape", [(3, 5, 9), (3, 9, 5), (2, 6, 6)])
def test_both_nuclear_norms_are_the_sum_of_the_singular_values(shape):
    M = normal(*shape, seed=1)
    expected = torch.linalg.svdvals(M).sum(-1)
    assert_close(nuclear_norm(M), expected, rtol=1e-13, atol=0)
    assert_close(nuclear_norm(M, fast=True), expected, rtol=1e-10, atol=0)


def test_the_fast_nuclear_norm_keeps_its_bound_on_a_singular_matrix():
    M = normal(64, 3, seed=2) @ normal(3, 64, seed=3)
    exact, fast = (float(nuclear_norm(M, fast=choice)) for choice in (False, True))
    assert exact == pytest.approx(float(torch.linalg.svdvals(M).sum()), rel=1e-13)
    assert abs(exact - fast) < 64 * (64 * EPS) ** 0.5 * float(torch.linalg.matrix_norm(M, 2))


# --- couplings on a line


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_monotone_coupling_is_the_optimal_plan(n, m, seed):
    x, y = normal(n, seed=seed).sort().values, normal(m, seed=seed + 1).sort().values
    i, j, mass = monotone_coupling(n, m)
    for rows, count in ((i, n), (j, m)):
        assert bool((rows.diff() >= 0).all())
        total = torch.zeros(count, dtype=mass.dtype).scatter_add(0, rows, mass)
        assert_close(total, torch.full((count,), 1 / count, dtype=mass.dtype))
    assert len(mass) == n + m - math.gcd(n, m)
    assert bool((mass > 0).all())
    cost = float(((x[i] - y[j]).square() * mass).sum())
    assert cost == pytest.approx(ot.emd2_1d(x.numpy(), y.numpy()), abs=1e-12)


# --- threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_items_are_mapped_two_at_a_time_each_on_one_thread(two_threads):
    together = threading.Barrier(2, timeout=20)

    def work(item: int) -> tuple[int, int, int]:
        together.wait()  # times out unless two items run at once
        return item, torch.get_num_threads(), threading.get_ident()

    results = mapped(work, range(6))
    assert [item for item, _, _ in results] == list(range(6))
    assert {threads for _, threads, _ in results} == {1}
    assert threading.get_ident() not in {thread for _, _, thread in results}
    assert torch.get_num_threads() == 2


def test_threads_are_restored_after_an_error(two_threads):
    def failing() -> None:
        with one_thread() as before:
            assert (before, torch.get_num_threads()) == (2, 1)
            raise ZeroDivisionError

    for call in (failing, lambda: mapped(lambda item: 1 // item, [1, 0])):
        with pytest.raises(ZeroDivisionError):
            call()
        assert torch.get_num_threads() == 2
