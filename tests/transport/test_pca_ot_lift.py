"""`lift="discard"`, the literal formula of the paper: the orthogonal complement becomes a constant."""

import warnings

import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import FitError, NotInvertibleError, PoorFitWarning
from ot_lens.transport import AffineMap, fit_all, fit_pca_ot
from ot_lens.transport.pca_ot import auto_ranks
from tests.generators import naive
from tests.generators.gaussians import classes, layered, normal


def discarding(H, S, **options) -> AffineMap:
    with pytest.warns(PoorFitWarning, match="lift"):
        return fit_pca_ot(H, S, lift="discard", **options)


def test_by_hand_the_second_coordinate_becomes_the_mean_of_the_target():
    H = torch.tensor([[-1, 2], [0, 2], [1, 2]], dtype=torch.float64)
    S = torch.tensor([[-1, 5], [1, 5], [3, 5]], dtype=torch.float64) * torch.tensor([1.0, 0.4])
    T = discarding(H, S, k=1, ridge=0.0)
    x = torch.tensor([[-3, 7], [2.5, -1]], dtype=torch.float64)
    assert_close(T.map(x), torch.tensor([[-5, 2], [6, 2]], dtype=torch.float64))
    assert_close(fit_pca_ot(H, S, k=1, ridge=0.0).map(x), torch.tensor([[-5.0, 7], [6, -1]]).double())


@pytest.mark.parametrize("mean_shift", ["full", "subspace"])
@pytest.mark.parametrize("d", [3, 40])
def test_it_is_the_dense_formula_and_differs_from_keep_by_the_complement_alone(d, mean_shift):
    H, S = classes(20, 30, d, seed=5)
    k, ridge, pooled = 2, 0.3, torch.cat([H, S])
    P = torch.linalg.svd(pooled - pooled.mean(0))[2][:k].T
    eye = torch.eye(k, dtype=H.dtype)
    A = naive.monge(naive.covariance(H @ P) + ridge * eye, naive.covariance(S @ P) + ridge * eye)
    shift = S.mean(0) - H.mean(0)
    end = S.mean(0) if mean_shift == "full" else H.mean(0) + shift @ P @ P.T
    x, options = normal(6, d, seed=6), {"k": k, "ridge": ridge, "mean_shift": mean_shift}
    T = discarding(H, S, **options)
    assert_close(T.map(x), end + (x - H.mean(0)) @ P @ A @ P.T)
    complement = (x - H.mean(0)) - (x - H.mean(0)) @ P @ P.T
    assert_close(T.map(x) + complement, fit_pca_ot(H, S, **options).map(x))
    assert T.rank == k, "no d x d matrix"


def test_where_the_components_span_everything_nothing_is_lost():
    H, S = classes(20, 30, 5, seed=7)
    x = normal(6, 5, seed=8)
    assert_close(discarding(H, S, k=5).map(x), fit_pca_ot(H, S, k=5).map(x))


def test_it_warns_once_per_call_and_its_description_says_why():
    acts = layered(12, 12, 8, layers=3, seed=9)
    with pytest.warns(PoorFitWarning, match="lift = 'discard'") as warned:
        maps = fit_all(acts, "pca_ot", k=2, lift="discard")
    assert len(warned) == 1
    assert all("discard" in T.info.problems[0] and "discard" in T.info.notes[0] for T in maps.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = fit_all(acts, "pca_ot", k=2, lift="keep")
    assert all(T.info.problems == T.info.notes == () for T in kept.values())


def test_the_held_out_choice_of_k_is_made_for_the_map_that_is_fitted(monkeypatch):
    seen = {}

    def watched(scores, n_H, rank, push, seed):
        seen["moved"] = push(scores[:, :10], scores[:, n_H : n_H + 10], scores[:, 10:14], 1)
        return auto_ranks(scores, n_H, rank, push, seed)

    monkeypatch.setattr("ot_lens.transport.pca_ot.auto_ranks", watched)
    H, S = classes(30, 30, 6, seed=10)
    T = discarding(H, S, k="auto", seed=1)
    moved = seen["moved"][0] - seen["moved"][0].mean(0)
    assert torch.linalg.matrix_rank(moved) == 1
    assert T.info.k in (1, 2, 4)
    assert_close(T.map(H), discarding(H, S, k=T.info.k).map(H))


def test_it_has_no_inverse_and_an_unknown_lift_is_named():
    H, S = classes(20, 30, 5, seed=11)
    with pytest.raises(NotInvertibleError):
        discarding(H, S, k=2).inverse()
    half = discarding(H, S, k=2).at(0.5)
    assert_close(half.map(H), (H + discarding(H, S, k=2).map(H)) / 2)
    with pytest.raises(FitError, match="lift"):
        fit_pca_ot(H, S, lift="drop")
