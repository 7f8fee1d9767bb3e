import pytest
import torch
from concept_erasure import LeaceFitter
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError
from ot_lens.moments import shrinkage_intensity
from ot_lens.transport import fit_all, fit_directional_ablation, fit_leace, fit_subspace_ablation
from tests.generators.gaussians import classes, layered, normal, orthogonal


def peer(H, S, **options):
    fitter = LeaceFitter(H.shape[1], 1, dtype=torch.float64, svd_tol=1e-12, **options)
    labels = torch.cat([torch.ones(len(H)), torch.zeros(len(S))]).double()
    return fitter.update(torch.cat([H, S]), labels).eraser


@pytest.mark.parametrize(("n_H", "n_S", "d"), [(40, 60, 12), (9, 12, 50)])
def test_leace_is_that_of_concept_erasure(n_H, n_S, d):
    H, S = classes(n_H, n_S, d, seed=0)
    theirs = peer(H, S, shrinkage=False, constrain_cov_trace=False)
    ours = fit_leace(H, S, shrinkage=None)
    assert_close(ours.map(H), theirs(H), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n_H", "n_S", "d"), [(15, 20, 30), (12, 12, 30), (30, 40, 5), (7, 9, 1)])
@pytest.mark.parametrize(("ridge", "name"), [(0.3, None), (0.0, "oas"), (0.3, "ledoit_wolf")])
def test_leace_is_the_dense_oblique_projection(n_H, n_S, d, ridge, name):
    H, S = classes(n_H, n_S, d, seed=1)
    Z = torch.cat([H, S])
    Z = Z - Z.mean(0)
    s = 0.0 if name is None else float(shrinkage_intensity(Z, name))
    C, eye = Z.T @ Z / (len(Z) - 1), torch.eye(d, dtype=torch.float64)
    sigma = (1 - s) * C + (s * torch.trace(C) / d + ridge) * eye
    delta = H.mean(0) - S.mean(0)
    probe = torch.linalg.solve(sigma, delta)
    x = normal(4, d, seed=2)
    expected = x - ((x - torch.cat([H, S]).mean(0)) @ probe)[:, None] * delta / (probe @ delta)
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


def test_leace_at_all_layers():
    acts = layered(8, 9, 30, layers=3, seed=6)
    for layer, T in fit_all(acts, "leace").items():
        single = fit_leace(acts.harmful(layer), acts.harmless(layer))
        assert_close(T.map(acts.harmful(layer)), single.map(acts.harmful(layer)))


def test_subspace_of_given_vectors():
    H, S = classes(9, 12, 20, seed=7)
    Q = orthogonal(20, seed=8)[:, :3]
    dependent = torch.cat([Q.T, 2 * Q.T[:1] + Q.T[1:2]])
    T = fit_subspace_ablation(H, S, directions=dependent)
    assert T.rank == 3
    assert_close(T.map(H), H - H @ Q @ Q.T)
    keeping = fit_subspace_ablation(H, S, directions=dependent, keep_mean=True)
    assert_close(keeping.map(H) @ Q, (S.mean(0) @ Q).expand(9, -1))


def test_one_category_is_directional_ablation():
    H, S = classes(9, 12, 20, seed=9)
    T = fit_subspace_ablation(H, S, categories=["harmful"] * 9)
    assert_close(T.map(H), fit_directional_ablation(H, S).map(H))


def test_categories_are_all_removed():
    H, S = classes(12, 12, 20, seed=10)
    labels = [index % 3 for index in range(12)]
    T = fit_subspace_ablation(H, S, categories=labels)
    assert T.rank == 3
    for label in range(3):
        direction = H[label::3].mean(0) - S.mean(0)
        assert float((T.map(H) @ direction).abs().max()) < 1e-9


def test_components_of_the_differences():
    H, S = classes(12, 12, 20, seed=11)
    T = fit_subspace_ablation(H, S, k=4)
    Q = torch.linalg.svd(H - S.mean(0))[2][:4].T
    assert_close(T.map(H), H - H @ Q @ Q.T)
    assert fit_subspace_ablation(H, S).rank == 2


def test_bad_subspaces_are_named():
    H, S = classes(5, 5, 8, seed=12)
    for options, words in [
        ({"k": 9}, "rank 5"),
        ({"k": 0}, "k = 0"),
        ({"k": 2, "categories": [0] * 5}, "one of them"),
        ({"categories": [0, 1]}, "2 categories for 5"),
        ({"directions": torch.zeros(2, 8)}, "zero"),
        ({"directions": torch.ones(2, 3)}, "width 3"),
    ]:
        with pytest.raises(FitError, match=words):
            fit_subspace_ablation(H, S, **options)
    with pytest.raises(ActivationError, match="NaN"):
        fit_subspace_ablation(H, S, directions=torch.full((1, 8), torch.nan))
    with pytest.raises(FitError, match="means coincide"):
        fit_leace(H, H.flip(0))
    with pytest.raises(FitError, match="-1"):
        fit_leace(H, S, ridge=-1.0)
