"""Which layers, which subspace, which floor: the choices of the fits, at their boundaries."""

import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError
from ot_lens.transport import (
    METHODS,
    AffineMap,
    fit,
    fit_all,
    fit_gaussian_ot,
    fit_leace,
    fit_linear_act,
    fit_pca_ot,
    fit_subspace_ablation,
)
from ot_lens.transport.pca_ot import PooledPCA, _pusher, covariance, subspace_transport
from ot_lens.transport.projection import ablation_of, unit_directions
from tests.generators import naive
from tests.generators.gaussians import Layers, classes, layered, normal, orthogonal

EPS = torch.finfo(torch.float64).eps


# --- PCA-OT


def test_the_scores_are_an_isometry_of_the_samples():
    H, S = classes(6, 7, 30, seed=0)
    pca = PooledPCA.of(torch.stack([H, 2 * H]), torch.stack([S, 2 * S]))
    assert_close(pca.scores() @ pca.scores().mT, pca.Z @ pca.Z.mT)
    assert pca.rank.tolist() == [12, 12]
    assert pca.take([0, 1]) is pca
    second = pca.take([1])
    for name in ("Z", "mean", "eigenvalues", "eigenvectors", "rank"):
        assert torch.equal(getattr(second, name), getattr(pca, name)[1:])


@pytest.mark.parametrize("mean_shift", ["full", "subspace"])
def test_a_pushed_sample_is_a_mapped_one(mean_shift):
    H, S = classes(9, 12, 20, seed=1)
    pca = PooledPCA.of(H[None], S[None])
    pushed = subspace_transport(pca, 9, 3, 0.2, mean_shift).push(pca.Z)
    T = fit_pca_ot(H, S, k=3, ridge=0.2, mean_shift=mean_shift)
    assert_close(pushed[0] + pca.mean, T.map(torch.cat([H, S])))


@pytest.mark.parametrize("mean_shift", ["full", "subspace"])
def test_what_is_held_out_moves_like_any_sample(mean_shift):
    H, S = classes(12, 16, 6, seed=44)
    held_out = normal(5, 6, seed=45) + 30
    T = fit_pca_ot(H + 30, S + 30, k=2, ridge=0.2, mean_shift=mean_shift)
    moved = _pusher(0.2, mean_shift)((H + 30)[None], (S + 30)[None], held_out[None], 2)
    assert_close(moved[0], T.map(held_out))


def test_identical_samples_are_counted_by_class():
    with pytest.raises(FitError, match=r"^The rank of the pooled samples \(n = 9 \+ 8\) is 0"):
        fit_pca_ot(torch.ones(9, 5).double(), torch.ones(8, 5).double(), k=1)


def test_the_held_out_choice_tries_the_map_that_is_asked_for(monkeypatch):
    from ot_lens.transport import pca_ot

    tried = []

    def watched(pca, *arguments):
        tried.append(arguments)
        return subspace_transport(pca, *arguments)

    monkeypatch.setattr(pca_ot, "subspace_transport", watched)
    H, S = classes(12, 16, 6, seed=41)
    T = fit_pca_ot(H, S, k="auto", ridge=0.2, mean_shift="subspace")
    folds, final = tried[:-1], tried[-1]
    assert folds == [(9, k, 0.2, "subspace") for k in (1, 2, 4) for _ in range(4)]
    assert final == (12, T.info.k, 0.2, "subspace")


def test_covariances_of_a_batch():
    X = normal(3, 9, 4, seed=2) + 5
    assert_close(covariance(X), torch.stack([naive.covariance(layer) for layer in X]))


def test_layers_of_unlike_rank_keep_their_order():
    acts = layered(12, 15, 30, layers=4, seed=3)
    acts.source[2] *= torch.linspace(0.01, 5, 30, dtype=torch.float64) ** 3
    maps = METHODS["pca_ot"].batch(acts.source, acts.target, 0.9)
    singles = [fit_pca_ot(H, S, k=0.9) for H, S in zip(acts.source, acts.target, strict=True)]
    assert len({T.info.k for T in singles}) > 1
    for T, single, H in zip(maps, singles, acts.source, strict=True):
        assert T.info.k == single.info.k
        assert_close(T.map(H), single.map(H))


def test_pca_ot_moves_two_components_and_the_whole_mean_unless_told_otherwise():
    acts = layered(12, 15, 30, layers=1, seed=4)
    H, S = acts.harmful(0), acts.harmless(0)
    for T in (fit_pca_ot(H, S), fit_all(acts)[0], METHODS["pca_ot"].batch(H[None], S[None])[0]):
        assert (T.info.method, T.info.k) == ("pca_ot", 2)
        assert_close(T.map(H).mean(0), S.mean(0))


@pytest.mark.parametrize("k", [1, 3])
def test_a_source_of_too_low_rank_needs_a_ridge(k):
    H, S = classes(9, 12, 20, seed=5)
    T = fit_pca_ot(H, S, k=k, ridge=0.0)
    assert T.info.ridge == 0.0
    flat = H.mean(0) + torch.zeros_like(H)
    flat[:, :] += normal(9, k - 1, seed=6) @ normal(k - 1, 20, seed=7) if k > 1 else 0.0
    with pytest.raises(FitError) as caught:
        fit_pca_ot(flat, S, k=k, ridge=0.0)
    assert f"k = {k} " in str(caught.value)


@pytest.mark.parametrize("ridge", [-1e-9, float("nan"), float("inf")])
def test_a_ridge_must_be_a_variance_even_where_another_option_is_wrong(ridge):
    H, S = classes(9, 12, 20, seed=8)
    for method in ("pca_ot", "gaussian_ot", "leace"):
        with pytest.raises(FitError, match=rf"{ridge}"):
            fit(method, H, S, ridge=ridge)
    with pytest.raises(FitError) as caught:
        fit_pca_ot(H, S, mean_shift="Full")
    assert "'Full'" in str(caught.value)


def test_without_spread_the_default_ridge_leaves_a_shift():
    # Both classes are single points: no variance to take a share of, and nothing to rescale.
    H, S = torch.zeros(3, 4).double(), torch.ones(3, 4).double()
    T = fit_pca_ot(H, S, k=1)
    assert T.info.ridge == 1.0
    assert_close(T.map(H), S)


# --- Gaussian OT, LEACE, Linear-AcT


def test_a_singular_source_is_named_with_the_remedy():
    H, S = classes(9, 12, 20, seed=9)
    for source in (H, H[:1].expand(9, -1)):
        with pytest.raises(FitError) as caught:
            fit_gaussian_ot(source, S, shrinkage=None)
        assert "n_H = 9" in str(caught.value)


def test_a_singular_source_is_named_also_where_the_target_lies_in_its_span():
    """Every direction of the joint span has spread then, and those outside have none."""
    H, _ = classes(9, 12, 20, seed=9)
    with pytest.raises(FitError, match="singular"):
        fit_gaussian_ot(H, 2 * H, ridge=0.0, shrinkage=None)
    assert fit_gaussian_ot(H, 2 * H, ridge=1e-3, shrinkage=None).rank == 8


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
    Q = torch.linalg.svd(torch.cat([H - H.mean(0), S - S.mean(0)]))[2]
    outside = Q[9:]
    from ot_lens.gaussian import Gaussian

    floors = [float(Gaussian.fit(X, shrinkage="oas").floor) for X in (H, S)]
    moved = T.map(H.mean(0) + outside) - S.mean(0)
    assert_close(moved, (floors[1] / floors[0]) ** 0.5 * outside, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["leace", "gaussian_ot", "pca_ot"])
def test_layers_of_unlike_scale_do_not_see_each_other(method):
    acts = layered(9, 12, 30, layers=3, seed=13)
    scale = torch.tensor([1e-9, 1.0, 1e9], dtype=torch.float64)[:, None, None]
    acts = Layers(acts.source * scale, acts.target * scale, acts.layers)
    for options in ({}, {"ridge": 0.5}):
        maps = fit_all(acts, method, **options)
        for layer, T in maps.items():
            single = fit(method, acts.harmful(layer), acts.harmless(layer), **options)
            size = float(acts.harmful(layer).abs().max())
            assert_close(
                T.map(acts.harmful(layer)), single.map(acts.harmful(layer)), rtol=1e-8, atol=1e-9 * size
            )
            assert T.info.rank == single.info.rank
            assert T.info.explained_variance == pytest.approx(single.info.explained_variance)


def test_leace_takes_the_pseudo_inverse_where_samples_depend_on_each_other():
    H, S = classes(9, 12, 4, seed=14)
    lift = orthogonal(30, seed=15)[:, :4].T
    T, small = fit_leace(H @ lift + 2, S @ lift + 2, shrinkage=None), fit_leace(H, S, shrinkage=None)
    assert T.info.rank == small.info.rank == 4
    assert_close(T.map(H @ lift + 2), small.map(H) @ lift + 2, rtol=1e-8, atol=1e-8)


def test_a_coordinate_that_hardly_varies_is_scaled_and_one_that_is_constant_is_not():
    H, S = classes(30, 30, 4, seed=16)
    H[:, 0] = 1e6 + 1e-6 * normal(30, seed=17)
    H[:, 1] = -1e6 / 3
    T = fit_linear_act(H, S)
    assert abs(float(T.scale[0])) > 1e3
    assert float(T.scale[1]) == 1.0
    assert_close(T.map(H)[:, 1], S.mean(0)[1].expand(30), rtol=0, atol=1e-8)
    S[:, 0] = 1e6 / 3
    assert float(fit_linear_act(H, S).scale[0]) == 0.0, "a target without spread leaves none"
    at_zero = torch.cat([torch.zeros(5, 1), torch.ones(5, 1)], dim=1).double()
    assert fit_linear_act(at_zero, S[:, :2]).scale.tolist() == [1.0, 1.0]


# --- projections


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_means_coincide_up_to_rounding_only(scale):
    point = scale * normal(6, seed=18)
    size, aside = float(point.norm()), torch.zeros(6, dtype=torch.float64)

    def directions(distance):
        aside[0] = distance * size
        H = torch.stack([point, point])[None]
        return unit_directions(H + aside, H)[0]

    assert_close(directions(1e-9)[0], torch.eye(6, dtype=torch.float64)[0], rtol=0, atol=1e-5)
    for distance in (0.0, 4 * EPS):
        with pytest.raises(FitError, match=r"^The class means coincide \(distance \d.\de[-+]\d\d\): "):
            directions(distance)


def test_coinciding_means_are_judged_layer_by_layer():
    H, S = classes(9, 12, 6, seed=40)
    scale = torch.tensor([1e-20, 1.0]).double()[:, None, None]
    r, _ = unit_directions(scale * H, scale * S)
    assert_close(r[0], r[1])
    assert_close(unit_directions(scale.flip(0) * H, scale.flip(0) * S)[0], r)
    with pytest.raises(FitError, match="means coincide"):
        unit_directions(torch.zeros(1, 3, 6).double(), torch.zeros(1, 4, 6).double())


def test_the_layer_without_a_direction_is_told_by_its_distance():
    H = normal(2, 5, 4, seed=19)
    S = H.clone()
    S[0] += 3.0
    with pytest.raises(FitError) as caught:
        unit_directions(H, S)
    assert "(distance 0.0e+00)" in str(caught.value)
    r, mean = unit_directions(H[:1], S[:1])
    assert_close(r, -torch.full((1, 4), 0.5, dtype=torch.float64))
    assert_close(mean, S[:1].mean(1))


def test_an_ablation_without_anything_to_keep_has_no_bias():
    Q = orthogonal(5, seed=20)[:, :2]
    T = ablation_of(Q, AffineMap.identity(5).info)
    assert not bool(T.bias.any())
    assert_close(T.map(Q.T), torch.zeros(2, 5, dtype=Q.dtype), rtol=0, atol=1e-12)
    assert_close(ablation_of(Q, T.info, keep=Q[:, 0]).map(torch.zeros(5).double()), Q[:, 0])


# --- subspaces


def test_k_runs_from_one_to_the_rank():
    H, S = classes(4, 9, 8, seed=21)
    for k in (1, 4):
        assert fit_subspace_ablation(H, S, k=k).rank == k
    for k in (0, 5):
        with pytest.raises(FitError) as caught:
            fit_subspace_ablation(H, S, k=k)
        assert f"k = {k} " in str(caught.value)


def test_each_way_to_name_a_subspace_is_refused_in_its_own_words():
    H, S = classes(5, 5, 8, seed=22)
    for options, words in [
        (
            {"k": 2, "directions": torch.ones(1, 8)},
            "k, categories and directions are three ways to choose the subspace: give one of them",
        ),
        ({"categories": "ab"}, "2 categories for 5 source samples: give one per sample"),
        ({"directions": torch.zeros(2, 8)}, "all directions are zero: there is nothing to ablate"),
        ({"directions": torch.ones(2, 3)}, "directions have width 3, the samples 8"),
    ]:
        with pytest.raises(FitError) as caught:
            fit_subspace_ablation(H, S, **options)
        assert words.lower() in str(caught.value).lower()
    with pytest.raises(ActivationError, match=r"^directions has NaN or Inf in 1 of 2 rows \(first: row 1\)"):
        fit_subspace_ablation(H, S, directions=torch.ones(2, 8).index_fill(0, torch.tensor([1]), torch.nan))


def test_one_direction_may_be_given():
    H, S = classes(5, 5, 8, seed=23)
    T = fit_subspace_ablation(H, S, directions=torch.eye(8)[:1].float())
    assert (T.rank, T.info.k, T.info.rank) == (1, 1, 1)
    assert_close(T.map(H)[:, 1:], H[:, 1:])
    assert not bool(T.map(H)[:, 0].any())


@pytest.mark.parametrize(("ratio", "rank"), [(1e-9, 2), (1e-11, 1)])
def test_directions_that_are_nearly_one_are_merged(ratio, rank):
    H, S = classes(5, 5, 8, seed=24)
    Q = orthogonal(8, seed=25)[:2]
    T = fit_subspace_ablation(H, S, directions=1e5 * Q * torch.tensor([[1.0], [ratio]]).double())
    assert T.rank == T.info.rank == rank


def test_subspaces_of_all_layers_are_those_of_each():
    acts = layered(6, 7, 10, layers=8, seed=26)  # more layers than samples
    acts.source[1] *= 1e-12
    acts.target[1] *= 1e-12
    labels = ["a", "b", "a", "c", "b", "a"]
    Q = normal(2, 10, seed=27)
    for options in ({"k": 3}, {"categories": labels}, {"directions": Q}, {"k": 2, "keep_mean": True}):
        for layer, T in fit_all(acts, "subspace_ablation", **options).items():
            H = acts.harmful(layer)
            single = fit_subspace_ablation(H, acts.harmless(layer), **options)
            assert_close(T.map(H), single.map(H), rtol=1e-8, atol=1e-9 * float(H.abs().max()))
            assert (T.info.k, T.info.rank) == (single.info.k, single.info.rank)


# --- by name


@pytest.mark.parametrize("method", list(METHODS))
def test_a_fit_is_made_where_its_samples_are(method):
    # Whatever is made on the default device, which here holds no numbers, would meet the samples' and fail.
    acts = layered(6, 7, 10, layers=3, seed=43)
    acts.source[1] = acts.target[1] = 0.5
    x = acts.harmful(0)
    expected = fit_all(acts, method)
    with torch.device("meta"):
        found = fit_all(acts, method)
        halfway = found[0].at(0.5).compose(found[2]).map(x)
        back = found[0].at(0.5).inverse().map(found[0].at(0.5).map(x))
        still = found[0].at(0.0).map(x)
    for layer, T in expected.items():
        assert_close(found[layer].map(x), T.map(x))
    assert_close(halfway, expected[0].at(0.5).map(expected[2].map(x)))
    assert_close(back, x, rtol=1e-6, atol=1e-6)
    assert torch.equal(still, x)


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(FitError, match=r"'magic'.*directional_ablation, rfa, ace"):
        fit_all(layered(5, 5, 4, layers=1, seed=28), "magic")


def test_layers_where_nothing_varies_are_left_out_of_the_fit_and_keep_their_place():
    acts = layered(6, 7, 10, layers=5, seed=29)
    for layer in (1, 3):
        acts.source[layer] = acts.target[layer] = float(layer)
    maps = fit_all(acts, "mean_shift")
    assert [layer for layer, T in maps.items() if T.is_identity] == [1, 3]
    assert {T.d_model for T in maps.values()} == {10}
    for layer in (0, 2, 4):
        assert_close(maps[layer].map(acts.harmful(layer)).mean(0), acts.harmless(layer).mean(0))
    acts.source[:], acts.target[:] = 1.0, 1.0
    assert all(T.is_identity for T in fit_all(acts, "gaussian_ot").values())


@pytest.mark.parametrize("layers_at_a_time", [1, 2])
def test_layers_fitted_in_several_batches_are_all_there(layers_at_a_time, monkeypatch):
    acts = layered(6, 7, 10, layers=5, seed=42)
    together = fit_all(acts, "ace")
    monkeypatch.setattr("ot_lens.samples.BATCH_BYTES", {"cpu": layers_at_a_time * 8 * 13 * 10})
    apart = fit_all(acts, "ace")
    assert list(apart) == list(together) == [0, 1, 2, 3, 4]
    for layer, T in together.items():
        assert_close(apart[layer].map(acts.harmful(layer)), T.map(acts.harmful(layer)))
        assert apart[layer].info == T.info


def test_classes_that_are_two_points_are_not_one():
    acts = layered(6, 7, 10, layers=1, seed=30)
    acts.source[:], acts.target[:] = 1.0, 2.0
    assert not fit_all(acts, "mean_shift")[0].is_identity
    acts.target[:] = 1.0
    acts.target[0, 6, 9] = 1.5
    assert not fit_all(acts, "mean_shift")[0].is_identity
    acts.source[0, 5, 0], acts.target[0, 6, 9] = 1.5, 1.0
    assert not fit_all(acts, "mean_shift")[0].is_identity


def test_the_layer_that_cannot_be_fitted_is_named_and_an_error_of_all_is_passed_on():
    acts = layered(6, 7, 10, layers=4, seed=31)
    shown = Layers(acts.source, acts.target.clone(), (3, 5, 9, 11))
    shown.target[2] = shown.source[2].mean(0)
    with pytest.raises(FitError) as caught:
        fit_all(shown, "ace")
    assert str(caught.value).startswith("layer 9: The class means coincide")
    assert isinstance(caught.value.__cause__, FitError)
    with pytest.raises(FitError) as caught:
        fit_all(acts, "pca_ot", mean_shift="half")
    assert str(caught.value).startswith("layer 0: mean_shift = 'half'")
