import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ot_lens.errors import ActivationError, OtLensTypeError
from ot_lens.linalg import (
    Pooled,
    check_pair,
    check_samples,
    gram_spectrum,
    monge_matrix,
    monotone_coupling,
    nuclear_norm,
    numerical_rank,
    orthonormal_span,
    principal_axes,
    psd_eigen,
)
from tests.generators import naive
from tests.generators.gaussians import normal, orthogonal, spd


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.zeros((3, 2)), OtLensTypeError, "torch.as_tensor"),
        (torch.zeros(3, 2, dtype=torch.int64), ActivationError, "int64"),
        (torch.zeros(3, 2, dtype=torch.complex64), ActivationError, "complex64"),
        (torch.zeros(3), ActivationError, r"\[3\]"),
        (torch.zeros(1, 2), ActivationError, "n = 1"),
        (torch.zeros(3, 0), ActivationError, "no coordinates"),
        (
            torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [torch.inf, 2.0]]),
            ActivationError,
            "2 of 3 rows .*row 1",
        ),
    ],
)
def test_bad_samples_are_named(x, error, words):
    with pytest.raises(error, match=words):
        check_samples(x)


def test_samples_arrive_as_detached_float64():
    x = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    checked = check_samples(x)
    assert checked.dtype == torch.float64
    assert not checked.requires_grad


def test_classes_of_different_width_or_device_are_refused():
    with pytest.raises(ActivationError, match=r"d = 2, S d = 3"):
        check_pair(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ActivationError, match="one device"):
        check_pair(torch.zeros(3, 2), torch.zeros(3, 2, device="meta"))


def test_negative_eigenvalues_are_clipped_and_counted():
    values, _, clipped = psd_eigen(torch.diag(torch.tensor([-0.5, -1e-18, 2.0], dtype=torch.float64)))
    assert values.tolist() == [0.0, 0.0, 2.0]
    assert clipped == 1


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
def test_fast_nuclear_norm_is_the_exact_one(shape):
    M = normal(*shape, seed=1)
    assert_close(nuclear_norm(M, fast=True), nuclear_norm(M), rtol=1e-10, atol=0)


def test_fast_nuclear_norm_keeps_its_stated_bound_when_singular():
    M = normal(64, 3, seed=2) @ normal(3, 64, seed=3)
    exact, fast = (float(nuclear_norm(M, fast=choice)) for choice in (False, True))
    bound = 64 * (64 * torch.finfo(torch.float64).eps) ** 0.5 * float(torch.linalg.matrix_norm(M, 2))
    assert abs(exact - fast) < bound


@pytest.mark.parametrize(("n", "d"), [(6, 40), (40, 6), (8, 8)])
def test_gram_components_are_those_of_the_svd(n, d):
    Z = normal(n, d, seed=4)
    values, vectors = gram_spectrum(Z)
    s, Vh = torch.linalg.svd(Z, full_matrices=False)[1:]
    assert_close(values, s.square(), rtol=1e-12, atol=1e-12)
    axes = principal_axes(Z, vectors, 3)
    assert_close((axes * Vh[:3].T).sum(0).abs(), torch.ones(3, dtype=Z.dtype), rtol=0, atol=1e-12)
    assert_close(
        Z @ axes, vectors[:, :3] * s[:3] * torch.sign((Z @ axes) * vectors[:, :3])[0], rtol=1e-9, atol=1e-9
    )


def test_axes_stay_orthonormal_when_the_spectrum_spans_twelve_decades():
    Z = (orthogonal(30, seed=5) * 10.0 ** -torch.arange(30, dtype=torch.float64).div(5)) @ orthogonal(
        30, seed=6
    )
    axes = principal_axes(Z, gram_spectrum(Z)[1], 30)
    assert_close(axes.T @ axes, torch.eye(30, dtype=Z.dtype), rtol=0, atol=1e-13)


def test_axes_keep_their_sign_when_rows_are_reordered():
    Z = normal(10, 20, seed=7)
    again = Z[torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    assert_close(principal_axes(Z, gram_spectrum(Z)[1], 4), principal_axes(again, gram_spectrum(again)[1], 4))


def test_rank_counts_what_stands_above_rounding():
    def rank(X):
        Z = X - X.mean(0)
        return int(numerical_rank(gram_spectrum(Z)[0], X.norm(dim=1).amax()))

    point = normal(50, seed=8) * 1e3
    assert rank(point.expand(9, 50)) == 0
    assert rank(normal(9, 50, seed=9)) == 8
    assert rank(normal(9, 2, seed=10) @ normal(2, 50, seed=11) + 7) == 2


def test_pooled_samples_share_no_rounding():
    H = torch.full((7, 3), 0.1, dtype=torch.float64)
    S = H.clone()[:4]
    S[0, 1] = 0.5
    Z = Pooled.of(H, S).Z
    assert torch.equal(Z[:, [0, 2]], torch.zeros(11, 2, dtype=torch.float64))
    assert Z[:, 1].abs().max() > 0.3


@pytest.mark.parametrize(("a", "b", "d"), [(4, 6, 50), (30, 20, 12)])
def test_span_holds_both_samples(a, b, d):
    X, Y = normal(a, d, seed=12), normal(b, d, seed=13)
    Q, in_X, in_Y = orthonormal_span(X, Y)
    assert Q.shape == (d, min(a + b, d))
    assert_close(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype))
    assert_close(in_X @ Q.T, X)
    assert_close(in_Y @ Q.T, Y)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_monotone_coupling_is_the_optimal_plan(n, m, seed):
    x, y = normal(n, seed=seed).sort().values, normal(m, seed=seed + 1).sort().values
    i, j, mass = monotone_coupling(n, m)
    assert_close(mass.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert_close(
        torch.zeros(n, dtype=mass.dtype).scatter_add(0, i, mass), torch.full((n,), 1 / n, dtype=mass.dtype)
    )
    cost = float(((x[i] - y[j]).square() * mass).sum())
    assert cost == pytest.approx(ot.emd2_1d(x.numpy(), y.numpy()), abs=1e-12)
