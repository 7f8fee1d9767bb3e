"""Ablation of directions and subspaces, affine concept editing, and LEACE."""

import pytest
import torch
from concept_erasure import LeaceFitter
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError
from ot_lens.moments import shrinkage_intensity
from ot_lens.transport import (
    fit,
    fit_ace,
    fit_all,
    fit_directional_ablation,
    fit_leace,
    fit_subspace_ablation,
)
from ot_lens.transport.projection import unit_directions
from tests.generators.gaussians import classes, layered, normal, orthogonal

EPS = torch.finfo(torch.float64).eps


# --- one direction


def test_projections_by_hand():
    H = torch.tensor([[3.0, 1.0], [3.0, -1.0]])
    S = torch.tensor([[1.0, 5.0], [1.0, -5.0]])
    x = torch.tensor([[7.0, 9.0]])
    assert_close(fit_directional_ablation(H, S).map(x), torch.tensor([[0.0, 9.0]]))
    assert_close(fit_ace(H, S).map(x), torch.tensor([[1.0, 9.0]]))


def test_ablation_is_idempotent_and_removes_the_direction_and_ace_sets_it():
    H, S = classes(20, 30, 50, seed=1)
    r = H.mean(0) - S.mean(0)
    T = fit_directional_ablation(H, S)
    assert_close(T.map(T.map(H)), T.map(H))
    assert_close(T.map(H) @ r, torch.zeros(20, dtype=H.dtype), atol=1e-10, rtol=0)
    assert_close(fit_ace(H, S).map(H) @ r, (S.mean(0) @ r).expand(20))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_means_coincide_up_to_rounding_only(scale):
    point = scale * normal(6, seed=18)
    H, aside = point.expand(1, 2, 6), torch.zeros(6, dtype=torch.float64)
    aside[0] = float(point.norm())
    r, _ = unit_directions(H + 1e-9 * aside, H)
    assert_close(r[0], torch.eye(6, dtype=torch.float64)[0], rtol=0, atol=1e-5)
    for distance in (0.0, 4 * EPS):
        with pytest.raises(FitError, match=r"means coincide \(distance \d.\de[-+]\d\d\)"):
            unit_directions(H + distance * aside, H)


def test_coinciding_means_are_judged_layer_by_layer():
    H, S = classes(9, 12, 6, seed=40)
    scale = torch.tensor([1e-20, 1.0]).double()[:, None, None]
    r, means = unit_directions(scale * H, scale * S)
    assert_close(r[0], r[1])
    assert_close(unit_directions(scale.flip(0) * H, scale.flip(0) * S)[0], r)
    assert_close(means[1], S.mean(0))
    for target in (torch.stack([S, H.mean(0).expand(12, -1)]), torch.zeros(2, 4, 6).double()):
        source = torch.stack([H, H]) if target.any() else torch.zeros(2, 3, 6).double()
        with pytest.raises(FitError, match="means coincide"):
            unit_directions(source, target)


# --- subspaces


def test_subspace_of_given_vectors():
    H, S = classes(9, 12, 20, seed=7)
    Q = orthogonal(20, seed=8)[:, :3]
    dependent = torch.cat([Q.T, 2 * Q.T[:1] + Q.T[1:2]])
    T = fit_subspace_ablation(H, S, directions=dependent)
    assert (T.rank, T.info.k, T.info.rank) == (3, 3, 3)
    assert_close(T.map(H), H - H @ Q @ Q.T)
    keeping = fit_subspace_ablation(H, S, directions=dependent, keep_mean=True)
    assert_close(keeping.map(H) @ Q, (S.mean(0) @ Q).expand(9, -1))
    one = fit_subspace_ablation(H, S, directions=torch.eye(20)[:1].float()).map(H)
    assert_close(one, H.index_fill(1, torch.tensor([0]), 0.0))


@pytest.mark.parametrize(("ratio", "rank"), [(1e-9, 2), (1e-11, 1)])
def test_directions_that_are_nearly_one_are_merged(ratio, rank):
    H, S = classes(5, 5, 8, seed=24)
    directions = 1e5 * orthogonal(8, seed=25)[:2] * torch.tensor([[1.0], [ratio]]).double()
    T = fit_subspace_ablation(H, S, directions=directions)
    assert T.rank == T.info.rank == rank


def test_categories_are_all_removed_and_one_is_directional_ablation():
    H, S = classes(12, 12, 20, seed=10)
    T = fit_subspace_ablation(H, S, categories=[index % 3 for index in range(12)])
    assert T.rank == 3
    for label in range(3):
        direction = H[label::3].mean(0) - S.mean(0)
        assert float((T.map(H) @ direction).abs().max()) < 1e-9
    one = fit_subspace_ablation(H, S, categories=["harmful"] * 12)
    assert_close(one.map(H), fit_directional_ablation(H, S).map(H))


def test_components_of_the_differences():
    H, S = classes(12, 12, 20, seed=11)
    Q = torch.linalg.svd(H - S.mean(0))[2][:4].T
    assert_close(fit_subspace_ablation(H, S, k=4).map(H), H - H @ Q @ Q.T)
    assert [fit_subspace_ablation(H, S, **options).rank for options in ({}, {"k": 1}, {"k": 12})] == [
        2,
        1,
        12,
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": 6}, "k = 6.*rank 5"),
        ({"k": 0}, "k = 0"),
        ({"k": 2, "categories": [0] * 5}, "one of them"),
        ({"categories": [0, 1]}, "2 categories for 5"),
        ({"directions": torch.zeros(2, 8)}, "zero"),
        ({"directions": torch.ones(2, 3)}, "width 3"),
        ({"directions": torch.tensor([[1.0] * 8, [torch.nan] * 8])}, "1 of 2 rows .*row 1"),
    ],
)
def test_bad_subspaces_are_named(options, named):
    with pytest.raises((FitError, ActivationError), match=named):
        fit_subspace_ablation(*classes(5, 5, 8, seed=12), **options)


def test_subspaces_of_all_layers_are_those_of_each():
    acts = layered(6, 7, 10, layers=8, seed=26)  # more layers than samples
    acts.source[1] *= 1e-12
    acts.target[1] *= 1e-12
    labels, Q = ["a", "b", "a", "c", "b", "a"], normal(2, 10, seed=27)
    for options in ({"k": 3}, {"categories": labels}, {"directions": Q}, {"k": 2, "keep_mean": True}):
        for layer, T in fit_all(acts, "subspace_ablation", **options).items():
            H = acts.harmful(layer)
            single = fit_subspace_ablation(H, acts.harmless(layer), **options)
            assert_close(T.map(H), single.map(H), rtol=1e-8, atol=1e-9 * float(H.abs().max()))
            assert (T.info.k, T.info.rank) == (single.info.k, single.info.rank)


# --- LEACE


@pytest.mark.parametrize(("n_H", "n_S", "d"), [(40, 60, 12), (9, 12, 50)])
def test_leace_is_that_of_concept_erasure(n_H, n_S, d):
    H, S = classes(n_H, n_S, d, seed=0)
    options = {"dtype": torch.float64, "svd_tol": 1e-12, "shrinkage": False, "constrain_cov_trace": False}
    labels = torch.cat([torch.ones(n_H), torch.zeros(n_S)]).double()
    theirs = LeaceFitter(d, 1, **options).update(torch.cat([H, S]), labels).eraser
    assert_close(fit_leace(H, S, shrinkage=None).map(H), theirs(H), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n_H", "n_S", "d"), [(15, 20, 30), (12, 12, 30), (30, 40, 5), (7, 9, 1)])
@pytest.mark.parametrize(("ridge", "name"), [(0.3, None), (0.0, "oas"), (0.3, "ledoit_wolf")])
def test_leace_is_the_dense_oblique_projection(n_H, n_S, d, ridge, name):
    H, S = classes(n_H, n_S, d, seed=1)
    X = torch.cat([H, S])
    Z = X - X.mean(0)
    s = 0.0 if name is None else float(shrinkage_intensity(Z, name))
    C, eye = Z.T @ Z / (len(Z) - 1), torch.eye(d, dtype=torch.float64)
    sigma = (1 - s) * C + (s * torch.trace(C) / d + ridge) * eye
    delta = H.mean(0) - S.mean(0)
    probe, x = torch.linalg.solve(sigma, delta), normal(4, d, seed=2)
    expected = x - ((x - X.mean(0)) @ probe)[:, None] * delta / (probe @ delta)
    assert_close(fit_leace(H, S, ridge=ridge, shrinkage=name).map(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shrinkage", [None, "ledoit_wolf", "oas"])
def test_leace_merges_the_means_and_moves_less_than_others_that_do(shrinkage):
    H, S = classes(200, 300, 20, seed=3)
    T = fit_leace(H, S, shrinkage=shrinkage)
    assert_close(T.map(H).mean(0), T.map(S).mean(0))
    assert_close(T.map(T.map(H)), T.map(H), rtol=1e-9, atol=1e-9)
    X = torch.cat([H, S])
    orthogonal_erasure = fit_directional_ablation(H - X.mean(0), S - X.mean(0))
    moved, peer_moved = T.map(X) - X, orthogonal_erasure.map(X - X.mean(0)) - (X - X.mean(0))
    assert moved.square().sum() < peer_moved.square().sum()


def test_leace_leaves_nothing_for_a_linear_probe_and_a_wrong_direction_does():
    H, S = classes(300, 300, 10, seed=4)
    X, y = torch.cat([H, S]), torch.cat([torch.ones(300), -torch.ones(300)]).double()

    def explained(Z):
        Z = Z - Z.mean(0)
        return float((Z @ torch.linalg.lstsq(Z, y.unsqueeze(1)).solution).square().mean())

    assert explained(X) > 0.5
    assert explained(fit_leace(H, S, shrinkage=None).map(X)) < 1e-12
    wrong = fit_subspace_ablation(H, S, directions=normal(1, 10, seed=5))
    assert explained(wrong.map(X)) > 0.5


def test_leace_takes_the_pseudo_inverse_where_samples_depend_on_each_other():
    H, S = classes(9, 12, 4, seed=14)
    lift = orthogonal(30, seed=15)[:, :4].T
    T, small = fit_leace(H @ lift + 2, S @ lift + 2, shrinkage=None), fit_leace(H, S, shrinkage=None)
    assert T.info.rank == small.info.rank == 4
    assert_close(T.map(H @ lift + 2), small.map(H) @ lift + 2, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["directional_ablation", "ace", "leace"])
def test_coinciding_means_have_no_direction(method):
    H, _ = classes(5, 5, 4, seed=22)
    with pytest.raises(FitError, match="means coincide"):
        fit(method, H, H.flip(0))
