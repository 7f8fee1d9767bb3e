"""Affine maps: applying, composing and inverting them, what is rounding there, and how they are displayed."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, NotInvertibleError
from ot_lens.transport import AffineMap, FitInfo, fit_ace, fit_directional_ablation, fit_pca_ot
from tests.generators import naive
from tests.generators.gaussians import classes, normal, orthogonal

EPS = torch.finfo(torch.float64).eps
KINDS = st.sampled_from(["shift", "diagonal", "low rank", "both"])
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random_map(kind: str, d: int, seed: int) -> AffineMap:
    k = 0 if kind in ("shift", "diagonal") else 2
    scale = None if kind in ("shift", "low rank") else 0.5 + normal(d, seed=seed).abs()
    U, V = normal(d, k, seed=seed + 1) / d**0.5, normal(d, k, seed=seed + 2)
    return AffineMap(U, V, normal(d, seed=seed + 3), scale, FitInfo(method=kind))


def shift(*values: float) -> AffineMap:
    bias = torch.tensor(values, dtype=torch.float64)
    none = torch.zeros(len(bias), 0, dtype=torch.float64)
    return AffineMap(none, none, bias, info=FitInfo(method="shift"))


def diagonal(*values: float) -> AffineMap:
    none = shift(*[0.0] * len(values))
    return dataclasses.replace(none, scale=torch.tensor(values).double(), info=FitInfo(method="diagonal"))


def parts(T: AffineMap) -> list[torch.Tensor]:
    return [part for part in (T.U, T.V, T.bias, T.scale) if part is not None]


# --- applying


@given(KINDS, st.integers(2, 12), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_map_is_its_dense_matrix(kind, d, seed):
    T, x = random_map(kind, d, seed), normal(3, 5, d, seed=seed + 9)
    assert_close(T.map(x), naive.apply(x, T.U, T.V, T.bias, T.scale))
    assert torch.equal(T(x), T.map(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (0, 6)])
def test_map_keeps_dtype_and_shape(dtype, shape):
    T, x = random_map("both", 6, 1), normal(*shape, seed=0).to(dtype)
    moved = T.map(x)
    assert (moved.dtype, moved.shape) == (dtype, x.shape)
    exact, eps = naive.apply(x.double(), T.U, T.V, T.bias, T.scale), torch.finfo(dtype).eps
    assert_close(moved.double(), exact, rtol=4 * eps, atol=20 * eps)


def test_half_precision_is_computed_in_float32():
    # 300 * 300 overflows float16 on the way, the image does not.
    V = torch.full((2, 1), 300.0, dtype=torch.float64)
    T = AffineMap(-V / 180_000, V, torch.zeros(2, dtype=torch.float64))
    x = torch.tensor([[300.0, 200.0]], dtype=torch.float16)
    assert_close(T.map(x), torch.tensor([[50.0, -50.0]], dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_overflow_names_the_largest_value(dtype):
    # float16 ends at 65504, bfloat16 at 3.39e38, where float32, in which it is computed, ends as well.
    top = torch.finfo(dtype).max
    T, x = shift(-0.9 * top, 0.0), torch.tensor([[-0.9 * top, 1.0]]).to(dtype)
    peak = float(T.bias.abs().max().float() + x.abs().max().float())
    with pytest.raises(ActivationError) as caught:
        T.map(x)
    assert f"{dtype} (largest value {peak:.3g})" in str(caught.value)
    mixed = torch.tensor([[-0.9 * top, 1.0], [torch.inf, 0.0]]).to(dtype)
    assert torch.isinf(T.map(mixed)).sum() == 2, "an infinity that came in is the model's own"


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (torch.zeros(2, 5), r"\[2, 5\].* d = 6"),
        (torch.zeros(2, 6, dtype=torch.int64), "int64"),
        (torch.zeros(2, 6, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 6, device="meta"), "meta.*cpu"),
    ],
)
def test_activations_that_cannot_be_moved_are_named(x, named):
    with pytest.raises(ActivationError, match=named):
        random_map("both", 6, 0).map(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_map_lets_gradients_through_also_after_inference_mode(dtype):
    T, x = random_map("both", 5, 3), normal(2, 5, seed=1).to(dtype).requires_grad_()
    with torch.inference_mode():
        T.map(x)
    T.map(x).sum().backward()
    dense = torch.diag(T.scale) + T.U @ T.V.T
    assert_close(x.grad.double(), dense.sum(0).expand(2, -1), rtol=1e-5, atol=1e-5)


# --- the identity, and strength


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_is_bit_equal(dtype):
    x = normal(3, 4, seed=0).to(dtype)
    x[0, 0] = -0.0
    assert AffineMap.identity(4).map(x) is x
    assert random_map("both", 4, 0).at(0.0).map(x) is x
    assert [T.is_identity for T in (diagonal(1.0, 1.0), shift(0.0, 1e-300), shift(0.0, 0.0))] == [0, 0, 1]


@given(KINDS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_strength_interpolates_linearly_and_strengths_multiply(kind, t, s, seed):
    T, x = random_map(kind, 5, seed), normal(7, 5, seed=seed + 1)
    assert_close(T.at(t).map(x), x + t * (T.map(x) - x))
    assert T.at(t).info.strength == t
    assert_close(T.at(t).at(s).map(x), T.at(t * s).map(x))
    assert T.at(t).at(s).info.strength == t * s


@pytest.mark.parametrize("t", [-1e-9, 1 + 1e-9, float("nan")])
def test_strength_outside_the_unit_interval_is_refused(t):
    with pytest.raises(FitError, match=str(t)):
        shift(1.0).at(t)


# --- products


@given(KINDS, KINDS, st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_composition_is_exact_and_in_float64(first, second, seed):
    F, G, x = random_map(first, 8, seed), random_map(second, 8, seed + 50), normal(4, 8, seed=seed + 1)
    single = F.to(torch.float32)
    for F_, both in ((F, G.compose(F)), (single.to(torch.float64), G.compose(single))):
        assert_close(both.map(x), G.map(F_.map(x)), rtol=1e-10, atol=1e-10)
        assert both.rank <= F.rank + G.rank
        assert both.dtype == torch.float64
        assert_close(both.U.T @ both.U, torch.eye(both.rank, dtype=torch.float64))


def test_composition_truncates_what_cancels():
    H, S = classes(40, 50, 30, seed=0)
    once = fit_directional_ablation(H, S)
    assert once.compose(once).rank == 1
    T = fit_pca_ot(H, S, k=3)
    assert T.inverse().compose(T).rank == 0 or T.inverse().compose(T).V.abs().max() < 1e-9


def test_a_product_of_plain_maps_is_plain_and_says_so():
    F, G = shift(1.0, 2.0), shift(3.0, 4.0).labelled(layer=2, position=-1, hook="resid_pre", k=5)
    both = G.compose(F.labelled(layer=1, seed=4))
    assert (both.scale, both.rank, both.bias.tolist()) == (None, 0, [4.0, 6.0])
    assert both.info == FitInfo(method="shift after shift", layer=2, position=-1, hook="resid_pre")
    unnamed = F.labelled(method=None)
    assert unnamed.compose(unnamed).info == FitInfo(method="map after map")
    for first, second in ((diagonal(2.0, 3.0), F), (F, diagonal(2.0, 3.0))):
        assert second.compose(first).scale.tolist() == [2.0, 3.0]
    with pytest.raises(FitError, match="2 and 3"):
        F.compose(shift(1.0, 2.0, 3.0))


# --- inverses


@given(KINDS, st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_inverse_undoes_in_the_form_of_the_map(kind, seed):
    T, x = random_map(kind, 8, seed).labelled(layer=3), normal(4, 8, seed=seed + 1)
    back = T.inverse()
    assert_close(back.map(T.map(x)), x, rtol=1e-7, atol=1e-7)
    assert (back.rank, back.scale is None) == (T.rank, T.scale is None)
    assert back.info == FitInfo(kind, layer=3, notes=(f"inverse of {kind}",))
    single = T.to(torch.float32)
    assert single.inverse().dtype == torch.float64
    assert_close(single.inverse().map(single.to(torch.float64).map(x)), x, rtol=1e-7, atol=1e-7)


def test_a_projection_has_no_inverse_but_a_partial_one_has():
    H, S = classes(40, 50, 30, seed=0)
    for fitted in (fit_directional_ablation(H, S), fit_ace(H, S)):
        with pytest.raises(NotInvertibleError, match=f"{fitted.info.method} is a projection"):
            fitted.inverse()
        assert_close(fitted.at(0.5).inverse().map(fitted.at(0.5).map(H)), H)
    with pytest.raises(NotInvertibleError, match="2 coordinates"):
        diagonal(0.0, 1.0, 0.0).inverse()


def test_an_inverse_survives_eigenvalues_of_both_extremes():
    Q = torch.linalg.qr(normal(20, 4, seed=0)).Q
    a = torch.tensor([1e-6, 1e-3, 1e3, 1e6], dtype=torch.float64)
    T = AffineMap(Q, Q * (a - 1), torch.zeros(20, dtype=torch.float64))
    assert_close((T.inverse().map(Q.T) @ Q).diagonal(), 1 / a, rtol=1e-7, atol=0)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    ("left_over", "invertible"), [(1e-10, True), (1e-12, True), (EPS, False), (0.0, False)]
)
def test_a_projection_is_told_from_a_strong_contraction(k, left_over, invertible):
    Q = orthogonal(9, seed=24)[:, :k]
    keep = torch.ones(k, dtype=torch.float64)
    keep[-1] = left_over
    T = AffineMap(Q * (keep - 1), Q, torch.zeros(9, dtype=torch.float64), info=FitInfo("contraction"))
    if invertible:
        assert_close(T.inverse().map(T.map(Q.T)), Q.T, rtol=0, atol=1e-3)
    else:
        with pytest.raises(NotInvertibleError, match="contraction is a projection"):
            T.inverse()


def test_a_direction_lost_among_large_numbers_is_lost():
    # I + V^T U = (1 + 1e8) [[1, 1], [1, 1]]: what rounding leaves of its zero is far above the rounding of 1.
    Q, large = orthogonal(9, seed=30)[:, :2], 1e8
    coupling = torch.tensor([[large, 1 + large], [1 + large, large]], dtype=torch.float64)
    T = AffineMap(Q, Q @ coupling.T, torch.zeros(9, dtype=torch.float64), info=FitInfo("lost"))
    with pytest.raises(NotInvertibleError, match="lost is a projection"):
        T.inverse()


# --- moving and printing


def test_to_takes_what_torch_takes_and_changes_no_more():
    T, single = random_map("both", 4, 0), torch.float32
    for moved in (T.to(single), T.to("cpu", single), T.to(single, "cpu"), T.to(device=None, dtype=single)):
        assert {(part.dtype, part.device.type) for part in parts(moved)} == {(single, "cpu")}
        assert moved.info == T.info
    for moved in (T.to("meta"), T.to(torch.device("meta")), T.to(device="meta")):
        assert {(part.dtype, part.device.type) for part in parts(moved)} == {(torch.float64, "meta")}
    with pytest.raises(FitError, match="int64"):
        T.to(torch.int64)
