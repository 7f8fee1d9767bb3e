"""Boundaries of affine maps: what is rounding in a product or an inverse, what is kept, what messages say."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, NotInvertibleError
from ot_lens.transport import AffineMap, FitInfo, fit_ace
from ot_lens.transport.algebra import compressed, woodbury_inverse
from tests.generators import naive
from tests.generators.gaussians import classes, normal, orthogonal

EPS = torch.finfo(torch.float64).eps


def shift(*values: float) -> AffineMap:
    bias = torch.tensor(values, dtype=torch.float64)
    none = torch.zeros(len(bias), 0, dtype=torch.float64)
    return AffineMap(none, none, bias, info=FitInfo(method="shift"))


def diagonal(*values: float) -> AffineMap:
    scale = torch.tensor(values, dtype=torch.float64)
    none = torch.zeros(len(scale), 0, dtype=torch.float64)
    return AffineMap(none, none, torch.zeros_like(scale), scale, FitInfo(method="diagonal"))


def rank_two(d: int, seed: int) -> AffineMap:
    return AffineMap(
        normal(d, 2, seed=seed) / d,
        normal(d, 2, seed=seed + 1),
        normal(d, seed=seed + 2),
        info=FitInfo("low"),
    )


# --- the identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_identity_is_empty_and_named(dtype):
    T = AffineMap.identity(5, dtype=dtype)
    assert (T.U.shape, T.V.shape, T.bias.shape, T.scale) == ((5, 0), (5, 0), (5,), None)
    assert {part.dtype for part in (T.U, T.V, T.bias)} == {dtype}
    assert T.info == FitInfo(method="identity", k=0)
    assert T.is_identity
    assert AffineMap.identity(5).dtype == torch.float64
    assert {
        part.device.type
        for part in vars(AffineMap.identity(5, device="meta")).values()
        if torch.is_tensor(part)
    }
    elsewhere = AffineMap.identity(5, device="meta")
    assert {part.device.type for part in (elsewhere.U, elsewhere.V, elsewhere.bias)} == {"meta"}


def test_what_only_looks_like_the_identity_is_computed():
    assert not diagonal(1.0, 1.0).is_identity
    assert not shift(0.0, 1e-300).is_identity
    assert shift(0.0, 0.0).is_identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strength_zero_keeps_type_and_description(dtype):
    T = rank_two(4, seed=0).labelled(layer=3).to(dtype).at(0.0)
    assert T.is_identity
    assert T.dtype == dtype
    assert T.info == FitInfo(method="low", layer=3, strength=0.0)


def test_strengths_multiply():
    T, x = rank_two(4, seed=1), normal(3, 4, seed=2)
    assert T.at(0.5).at(0.5).info.strength == 0.25
    assert_close(T.at(0.5).at(0.5).map(x), T.at(0.25).map(x))
    assert torch.equal(T.at(1.0).map(x), T.map(x))
    assert T.at(1.0).scale is None
    for outside in (-1e-9, 1 + 1e-9):
        with pytest.raises(FitError) as caught:
            T.at(outside)
        assert f"strength = {outside}" in str(caught.value)


# --- applying


def test_what_cannot_be_moved_is_named_with_the_remedy():
    T = rank_two(4, seed=3)
    for x, words in [
        (torch.zeros(4, dtype=torch.int64), "have dtype torch.int64: a map needs real floating point"),
        (torch.zeros(()), "have shape []: this map is of width d = 4"),
        (torch.zeros(4, 3), "have shape [4, 3]: this map is of width d = 4"),
        (torch.zeros(4, device="meta"), "are on meta, the map on cpu: call .to('meta')"),
    ]:
        with pytest.raises(ActivationError) as caught:
            T._check_input(x)  # what `map` does first; there a scalar is stopped by the check of annotations
        assert words in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_overflow_says_how_large_the_image_is(dtype):
    # float16 ends at 65504, bfloat16 at 3.39e38, beyond which float32 in which it is computed ends as well.
    top = torch.finfo(dtype).max
    T, x = shift(-0.9 * top, 0.0), torch.tensor([[-0.9 * top, 1.0]]).to(dtype)
    peak = float(T.bias.abs().max().float() + x.abs().max().float())
    with pytest.raises(ActivationError) as caught:
        T.map(x)
    assert f"{dtype} (largest value {peak:.3g})" in str(caught.value)
    mixed = torch.tensor([[-0.9 * top, 1.0], [torch.inf, 0.0]]).to(dtype)
    assert torch.isinf(T.map(mixed)).sum() == 2, "an infinity that came in is the model's own"


def test_parameters_are_made_once_for_each_dtype():
    T = rank_two(4, seed=4)
    for dtype in (torch.float64, torch.float32):
        first, again = T._parameters(dtype), T._parameters(dtype)
        assert first[0] is again[0]
        assert {part.dtype for part in first if part is not None} == {dtype}
    for x in (normal(2, 4, seed=5), normal(2, 4, seed=6).float(), normal(2, 4, seed=7).half()):
        assert torch.equal(T.map(x), T.map(x))


# --- products


def test_a_product_of_plain_maps_is_plain_and_says_so():
    F, G = shift(1.0, 2.0), shift(3.0, 4.0).labelled(layer=2, position=-1, hook="resid_pre", k=5)
    both = G.compose(F.labelled(layer=1, seed=4))
    assert both.scale is None
    assert both.rank == 0
    assert both.bias.tolist() == [4.0, 6.0]
    assert both.info == FitInfo(method="shift after shift", layer=2, position=-1, hook="resid_pre")
    unnamed = F.labelled(method=None)
    assert unnamed.compose(unnamed).info == FitInfo(method="map after map")
    for first, second in ((diagonal(2.0, 3.0), F), (F, diagonal(2.0, 3.0))):
        assert second.compose(first).scale.tolist() == [2.0, 3.0]


def test_a_product_is_computed_in_float64():
    F, G, x = rank_two(8, seed=8), rank_two(8, seed=11), normal(3, 8, seed=12)
    F32, G32 = F.to(torch.float32), G.to(torch.float32)
    for first, second in ((F32, G32), (F32, G), (F, G32)):
        both = second.compose(first)
        assert both.dtype == torch.float64
        exact = second.to(torch.float64).map(first.to(torch.float64).map(x))
        assert_close(both.map(x), exact, rtol=1e-12, atol=1e-12)
    with pytest.raises(FitError) as caught:
        F.compose(shift(1.0, 2.0))
    assert "8 and 2" in str(caught.value)


@pytest.mark.parametrize(("ratio", "rank"), [(1e-13, 2), (EPS, 1), (1e-30, 1)])
def test_a_product_keeps_directions_until_they_are_rounding(ratio, rank):
    Q, P = orthogonal(20, seed=13)[:, :2], orthogonal(20, seed=14)[:, :2]
    for size in (1e-6, 1.0, 1e6):
        U, V = compressed(Q * torch.tensor([size, size * ratio]), P)
        assert U.shape == V.shape == (20, rank)
        assert_close(U.T @ U, torch.eye(rank, dtype=U.dtype))
        assert_close(
            U @ V.T, (Q * torch.tensor([size, size * ratio])) @ P.T, rtol=0, atol=2 * size * EPS * 20
        )


def test_a_product_without_any_direction_has_none():
    zero = torch.zeros(6, 2, dtype=torch.float64)
    assert [part.shape for part in compressed(zero, zero)] == [(6, 0), (6, 0)]


def test_columns_of_a_product_are_ordered_by_their_size():
    U, V = normal(9, 4, seed=15), normal(9, 4, seed=16)
    left, right = compressed(U, V)
    s = torch.linalg.svdvals(U @ V.T)[:4]
    assert_close(left @ right.T, U @ V.T)
    assert_close(left.T @ left, torch.eye(4, dtype=U.dtype))
    assert_close(right.T @ right, torch.diag(s.square()))


# --- inverses


def test_an_inverse_has_the_form_of_the_map():
    for T, rank, scaled in (
        (shift(1.0, 2.0), 0, False),
        (diagonal(2.0, 4.0), 0, True),
        (rank_two(6, 17), 2, False),
    ):
        back = T.labelled(layer=3).inverse()
        assert back.rank == rank
        assert (back.scale is not None) is scaled
        assert back.info == FitInfo(T.info.method, layer=3, notes=(f"inverse of {T.info.method}",))
    assert diagonal(2.0, 4.0).inverse().scale.tolist() == [0.5, 0.25]
    assert shift(1.0).labelled(method=None).inverse().info.notes == ("inverse of this map",)


def test_an_inverse_is_computed_in_float64():
    T = rank_two(6, seed=18).to(torch.float32)
    x = normal(3, 6, seed=19)
    assert T.inverse().dtype == torch.float64
    assert_close(T.inverse().map(T.to(torch.float64).map(x)), x, rtol=1e-11, atol=1e-11)


def test_woodbury_is_the_dense_inverse():
    U, V, scale = normal(7, 3, seed=20), normal(7, 3, seed=21), 0.5 + normal(7, seed=22).abs()
    for diagonal_ in (scale, None):
        dense = torch.diag(torch.ones(7).double() if diagonal_ is None else diagonal_) + U @ V.T
        left, right, stretch = woodbury_inverse(U, V, diagonal_, "it")
        inverse = torch.diag(torch.ones(7).double() if stretch is None else stretch) + left @ right.T
        assert_close(inverse, torch.linalg.inv(dense), rtol=1e-9, atol=1e-9)
        assert (stretch is None) is (diagonal_ is None)


def test_a_lost_direction_is_named():
    H, S = classes(9, 9, 5, seed=23)
    with pytest.raises(NotInvertibleError) as caught:
        fit_ace(H, S).inverse()
    text = str(caught.value)
    assert text.startswith(
        "ace is a projection: it sends a whole direction to one value (smallest singular value "
    )
    assert text.endswith(") and cannot be inverted; use a transport map such as pca_ot, or strength < 1.")
    with pytest.raises(NotInvertibleError) as caught:
        diagonal(0.0, 1.0, 0.0).inverse()
    assert "2 coordinates" in str(caught.value)


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


def test_only_what_is_asked_for_changes():
    T = dataclasses.replace(rank_two(4, 25), scale=torch.ones(4, dtype=torch.float64))
    for dtype in (torch.float32, torch.bfloat16):
        for moved in (T.to(dtype), T.to(None, dtype), T.to(device=None, dtype=dtype)):
            assert {part.dtype for part in (moved.U, moved.V, moved.bias, moved.scale)} == {dtype}
            assert {part.device.type for part in (moved.U, moved.V, moved.bias, moved.scale)} == {"cpu"}
    for moved in (T.to("meta"), T.to(torch.device("meta")), T.to(device="meta"), T.to("meta", torch.float32)):
        assert {part.device.type for part in (moved.U, moved.V, moved.bias, moved.scale)} == {"meta"}
    assert T.to("meta").dtype == torch.float64
    with pytest.raises(FitError) as caught:
        T.to(torch.int8)
    assert "torch.int8" in str(caught.value)


def test_a_map_prints_what_is_known_of_it_and_no_more():
    T = rank_two(4, seed=27)
    assert repr(T) == "AffineMap(low, d = 4, rank 2, torch.float64)"
    assert repr(AffineMap(T.U, T.V, T.bias)) == "AffineMap(unnamed, d = 4, rank 2, torch.float64)"
    assert (
        repr(diagonal(1.0, 2.0).to(torch.float32))
        == "AffineMap(diagonal, d = 2, rank 0, diagonal, torch.float32)"
    )
    labelled = T.labelled(layer=0, n_harmful=5, n_harmless=6)
    assert repr(labelled) == "AffineMap(low, layer 0, d = 4, rank 2, n = 5 + 6, torch.float64)"


def test_gradients_of_both_working_types():
    T = rank_two(4, seed=28)
    for dtype in (torch.float64, torch.float32):
        x = normal(3, 4, seed=29).to(dtype).requires_grad_()
        T.map(x).sum().backward()
        dense = torch.eye(4, dtype=torch.float64) + T.U @ T.V.T
        assert_close(x.grad.double(), dense.sum(0).expand(3, -1), rtol=1e-5, atol=1e-5)
        assert_close(
            T.map(x.detach()).double(),
            naive.apply(x.detach().double(), T.U, T.V, T.bias, None),
            rtol=1e-5,
            atol=1e-5,
        )
