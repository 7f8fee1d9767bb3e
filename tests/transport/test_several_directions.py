"""INLP, SOM directions, projected ablation, reflection, and the probe behind the first two."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from ot_lens.errors import FitError, PoorFitWarning
from ot_lens.linalg import Pooled
from ot_lens.transport import (
    AffineMap,
    fit,
    fit_all,
    fit_directional_ablation,
    fit_inlp,
    fit_projected_ablation,
    fit_reflection,
    fit_som,
)
from ot_lens.transport.probe import CrossFit, logistic_weights
from ot_lens.transport.som import hexagonal, neurons
from tests.generators.gaussians import classes, layered, normal, orthogonal

NEW = ["projected_ablation", "reflection", "inlp", "som"]


def gaps(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes whose means differ along several axes of very different spread, which no single probe finds."""
    scale = torch.tensor([0.5, 2.0, 6.0]).double()
    H, S = normal(n, 30, seed=seed), normal(n, 30, seed=seed + 1)
    H[:, :3], S[:, :3] = scale * H[:, :3] + 2 * scale, scale * S[:, :3]
    return H, S


def left_auc(T: AffineMap, train: tuple, test: tuple) -> float:
    """AUC on test samples of a probe trained on edited training samples."""
    X, x = (T.map(torch.cat(pair)).numpy() for pair in (train, test))
    y, labels = ([1] * len(pair[0]) + [0] * len(pair[1]) for pair in (train, test))
    probe = LogisticRegression(C=0.1, max_iter=1000).fit(X, y)
    return float(roc_auc_score(labels, probe.decision_function(x)))


# --- what all of them are


@pytest.mark.parametrize("method", NEW)
def test_new_maps_are_stored_and_computed_in_half_precision(method, tmp_path):
    H, S = classes(40, 30, 20, seed=1)
    T = fit(method, H, S)
    T.save(tmp_path / "m")
    back = AffineMap.load(tmp_path / "m")
    assert back.info == T.info
    assert torch.equal(back.map(H), T.map(H))
    half = T.map(H.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_close(half.double(), T.map(H.bfloat16().double()), rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("method", ["inlp", "som", "projected_ablation"])
def test_ablations_are_orthogonal_projections_that_follow_rotations(method):
    H, S = classes(40, 30, 20, seed=2)
    T, Q = fit(method, H, S), orthogonal(20, seed=3)
    assert_close(T.map(T.map(H)), T.map(H), rtol=1e-9, atol=1e-9)
    kept, removed = T.map(H), H - T.map(H)
    assert_close((kept * removed).sum(1), torch.zeros(40).double(), rtol=0, atol=1e-8)
    assert torch.linalg.matrix_rank(removed, tol=1e-8) == T.info.k
    assert_close(fit(method, H @ Q, S @ Q).map(H @ Q), T.map(H) @ Q, rtol=1e-6, atol=1e-6)
    assert_close(fit(method, 1e4 * H, 1e4 * S).map(1e4 * H), 1e4 * T.map(H), rtol=1e-6, atol=1e-2)


# --- the probe


@pytest.mark.parametrize(
    ("n_H", "n_S", "d", "penalty"), [(20, 30, 50, 1e-2), (60, 40, 5, 1e-6), (50, 9, 3, 1e2)]
)
def test_the_probe_is_that_of_scikit_learn(n_H, n_S, d, penalty):
    H, S = classes(n_H, n_S, d, seed=1)
    X, y = torch.cat([H, S]) - torch.cat([H, S]).mean(0), torch.arange(n_H + n_S) < n_H
    weights = torch.where(y, 0.5 / n_H, 0.5 / n_S).double()
    ours = logistic_weights((X @ X.T)[None], y.double(), weights[None], penalty)[0] @ X
    theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10000, solver="newton-cg")
    theirs.fit(X.numpy(), y.numpy(), sample_weight=weights.numpy())
    assert_close(ours, torch.from_numpy(theirs.coef_[0]), rtol=1e-3, atol=1e-5 * float(ours.norm()))


def test_held_out_scores_are_of_probes_that_have_not_seen_the_fold():
    H, S = classes(11, 14, 6, seed=4)
    crossed = CrossFit.of(Pooled.of(H, S), 11, 0.1, seed=5)
    grams = crossed.gram.expand(crossed.folds + 1, -1, -1)
    X, source, wins, pairs = torch.cat([H, S]), crossed.is_source, 0.0, 0
    for fold in range(crossed.folds):
        train, test = crossed.fold != fold, crossed.fold == fold
        weights = torch.where(source, 0.5 / (train & source).sum(), 0.5 / (train & ~source).sum())
        probe = LogisticRegression(C=1 / crossed.penalty, tol=1e-10, max_iter=1000)
        probe.fit(X[train].numpy(), source[train].numpy(), sample_weight=weights[train].numpy())
        size = int((test & source).sum() * (test & ~source).sum())
        wins += size * roc_auc_score(source[test], probe.decision_function(X[test].numpy()))
        pairs += size
    assert crossed.held_out_auc(grams, crossed.probes(grams)).value == pytest.approx(wins / pairs)


def test_directions_leave_the_gram_matrix_once():
    H, S = classes(9, 8, 12, seed=6)
    crossed, a = CrossFit.of(Pooled.of(H, S), 9, 0.1, seed=0), normal(1, 17, seed=7)
    Z = Pooled.of(H, S).Z
    direction = (a @ Z) / (a @ Z).norm()
    projected = Z - Z @ direction.T @ direction
    once = crossed.without(crossed.gram[None], a)
    assert_close(once[0], projected @ projected.T)
    assert torch.equal(crossed.without(once, a), once)
    assert torch.equal(crossed.without(once, 0 * a), once)


# --- INLP


def test_inlp_ends_at_chance_on_samples_it_has_not_seen_and_one_direction_does_not():
    train, test = gaps(120, seed=10), gaps(400, seed=20)
    T = fit_inlp(*train)
    assert T.info.k > 1
    assert not T.info.problems
    assert "n = 120 + 120" in T.info.notes[0]
    assert abs(left_auc(T, train, test) - 0.5) < 0.1
    with pytest.warns(PoorFitWarning, match="at k = 1: choose more rounds"):
        one = fit_inlp(*train, rounds=1)
    assert one.info.k == 1
    assert left_auc(one, train, test) > 0.7


def test_inlp_of_equal_classes_is_the_identity_and_says_why():
    X = normal(120, 30, seed=30)
    T = fit_inlp(X[:60], X[60:])
    assert T.is_identity
    assert (T.info.method, T.info.k, T.info.seed, T.info.n_harmless) == ("inlp", 0, 0, 60)
    assert "the map is the identity" in T.info.notes[0]


def test_inlp_depends_on_its_seed_through_the_folds_only():
    H, S = gaps(60, seed=40)
    maps = [fit_inlp(H, S, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(maps[0].map(H), maps[1].map(H))
    assert maps[2].info.seed == 1
    same = min(T.info.k for T in maps)
    assert_close(maps[0].V[:, :same].abs(), maps[2].V[:, :same].abs())


@pytest.mark.parametrize(("options", "named"), [({"rounds": 0}, "rounds = 0"), ({"ridge": -1.0}, "-1.0")])
def test_inlp_refuses_what_makes_no_probe(options, named):
    with pytest.raises(FitError, match=named):
        fit_inlp(*classes(9, 9, 4, seed=1), **options)


# --- SOM directions


def clusters(per: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Five tight harmful clusters, their centres, and harmless samples."""
    centres = 8 * normal(5, 40, seed=seed)
    H = centres.repeat_interleave(per, 0) + 0.1 * normal(5 * per, 40, seed=seed + 1)
    return H, centres, normal(100, 40, seed=seed + 2)


def test_a_map_of_one_neuron_is_directional_ablation():
    H, S = classes(20, 30, 50, seed=1)
    T = fit_som(H, S, grid=(1, 1))
    assert T.info.k == 1
    assert_close(T.map(H), fit_directional_ablation(H, S).map(H))


def test_neurons_are_centroids_of_the_samples_they_win_and_neighbours_are_alike():
    H, centres, _ = clusters(30, seed=50)
    Z, places = H - H.mean(0), hexagonal((4, 4), H)
    members = torch.ones(2, len(H), dtype=torch.bool)
    members[1, ::3] = False
    weights, wins = neurons(Z @ Z.T, members, places)
    assert wins.sum(1).tolist() == [150, 100]
    assert (wins.diff(dim=1) <= 0).all()
    assert_close(weights.sum(-1), torch.ones(2, 16).double())
    assert not weights[1, :, ~members[1]].any()
    nearest = torch.cdist(centres, weights[0, wins[0] > 0] @ H).amin(1)
    assert float(nearest.max()) < 1.0
    assert float(torch.cdist(centres, centres).fill_diagonal_(torch.inf).min()) > 30.0


def test_a_grid_keeps_the_order_of_a_plane():
    flat = torch.rand(400, 2, generator=torch.Generator().manual_seed(1)).double() @ normal(2, 30, seed=51)
    Z, places = flat - flat.mean(0), hexagonal((4, 4), flat)
    assert float(torch.cdist(places, places).fill_diagonal_(9).min()) == pytest.approx(1)
    nodes = neurons(Z @ Z.T, torch.ones(1, 400, dtype=torch.bool), places)[0][0] @ flat
    # Neurons come in order of their samples: what is near in the plane is told by the nodes themselves.
    spread = torch.cdist(nodes, nodes).fill_diagonal_(torch.inf).amin(1)
    assert float(torch.cdist(flat, nodes).amin(1).mean()) < 0.35 * float(Z.norm(dim=1).mean())
    assert float(spread.min()) > 0


def test_som_removes_every_cluster_and_its_choice_leaves_chance():
    (H, centres, S), (H_new, _, S_new) = clusters(30, seed=60), clusters(30, seed=60)
    S_new = normal(100, 40, seed=63)
    T = fit_som(H, S, k=5)
    assert T.info.seed is None
    moved = T.map(centres) - T.map(S.mean(0, keepdim=True))
    assert float(moved.norm(dim=1).max()) < 0.05 * float((centres - S.mean(0)).norm(dim=1).min())
    chosen = fit_som(H, S)
    assert 1 <= chosen.info.k <= 6
    assert chosen.info.seed == 0
    assert "n = 150 + 100" in chosen.info.notes[0]
    assert_close(fit_som(H, S, k=chosen.info.k, seed=7).map(H), chosen.map(H))
    assert left_auc(chosen, (H, S), (H_new, S_new)) < 0.75
    assert left_auc(AffineMap.identity(40), (H, S), (H_new, S_new)) > 0.99


@pytest.mark.parametrize(
    ("options", "named"),
    [({"k": 0}, "k = 0"), ({"k": 99}, "k = 99.*neurons"), ({"grid": (0, 4)}, "0, 4"), ({"grid": (4,)}, "4,")],
)
def test_som_refuses_impossible_maps(options, named):
    with pytest.raises(FitError, match=named):
        fit_som(*classes(9, 9, 4, seed=1), **options)


def test_som_of_harmful_samples_at_the_harmless_mean_has_nothing_to_ablate():
    _, S = classes(9, 9, 4, seed=1)
    with pytest.raises(FitError, match="zero"):
        fit_som(S.mean(0).expand(9, -1), S)


# --- projected ablation


def test_projected_ablation_by_hand():
    H, S = torch.tensor([[3.0, 1.0], [3.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert_close(fit_projected_ablation(H, S).map(torch.tensor([[7.0, 9.0]])), torch.tensor([[7.0, 0.0]]))


def test_projected_ablation_leaves_the_harmless_mean_where_it_is():
    H, S = classes(20, 30, 50, seed=1)
    T, mean = fit_projected_ablation(H, S), S.mean(0, keepdim=True)
    assert_close(T.map(mean), mean)
    assert not torch.allclose(fit_directional_ablation(H, S).map(mean), mean, rtol=1e-3)
    r = (H.mean(0) - S.mean(0)) - mean[0] * ((H.mean(0) - S.mean(0)) @ mean[0]) / (mean[0] @ mean[0])
    assert_close(T.map(H) @ r, torch.zeros(20).double(), rtol=0, atol=1e-8)


def test_projected_ablation_of_centred_classes_is_directional_ablation():
    H, S = classes(20, 30, 50, seed=1)
    H, S = H - S.mean(0), S - S.mean(0)
    assert_close(fit_projected_ablation(H, S).map(H), fit_directional_ablation(H, S).map(H))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_direction_along_the_harmless_mean_leaves_nothing(scale):
    _, S = classes(9, 12, 6, seed=2)
    H, aside = 3 * S, torch.zeros(6).double()
    with pytest.raises(FitError, match=r"parallel .*use directional_ablation"):
        fit_projected_ablation(scale * H, scale * S)
    aside[0] = 1e-6 * float(S.mean(0).norm())
    fit_projected_ablation(scale * (H + aside), scale * S)
    acts = layered(9, 12, 6, layers=3, seed=3)
    acts.source[1, :] = 2 * acts.target[1].mean(0)
    with pytest.raises(FitError, match=r"layer 1: .*parallel"):
        fit_all(acts, "projected_ablation")


# --- reflection


def test_a_reflection_keeps_norms_undoes_itself_and_half_of_it_ablates():
    H, S = classes(20, 30, 50, seed=1)
    T, r = fit_reflection(H, S), H.mean(0) - S.mean(0)
    assert_close(T.map(T.map(H)), H)
    assert_close(T.inverse().map(H), T.map(H))
    assert_close(T.map(H).norm(dim=1), H.norm(dim=1))
    assert_close(T.map(H) @ r, -H @ r)
    assert_close(T.at(0.5).map(H), fit_directional_ablation(H, S).map(H))
    assert_close(fit_reflection(S, H).map(H), T.map(H))
