"""How many components: an int, a share, or the held-out choice, at their boundaries."""

import math

import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import FitError
from ot_lens.transport.ranks import _squared_distance, auto_ranks, ranks_of, validate_rank
from tests.generators import naive
from tests.generators.gaussians import normal


@pytest.mark.parametrize("k", [1, 7, 1e-9, 0.5, 1 - 1e-9, "auto"])
def test_ranks_that_can_be_kept(k):
    validate_rank(k)


@pytest.mark.parametrize("k", [0, -1, True, 0.0, 1.0, -0.5, 2.0, float("nan"), float("inf"), "Auto"])
def test_ranks_that_cannot_be_kept_are_named(k):
    with pytest.raises(FitError, match=f"k = {k!r}"):
        validate_rank(k)


def test_a_share_takes_the_fewest_components_of_each_layer():
    eigenvalues = torch.tensor([[6.0, 3.0, 1.0, 0.0], [4.0, 4.0, 1.0, 1.0]], dtype=torch.float64)
    rank = torch.tensor([3, 4])
    for share, expected in ((0.59, [1, 2]), (0.6, [1, 2]), (0.61, [2, 2]), (0.8, [2, 2]), (0.95, [3, 4])):
        assert ranks_of(share, eigenvalues, rank, (4, 4)) == expected
    assert ranks_of(0.999999999, eigenvalues, torch.tensor([2, 3]), (4, 4)) == [2, 3], "at most the rank"
    assert ranks_of(3, eigenvalues, rank, (4, 4)) == [3, 3]
    with pytest.raises(FitError) as caught:
        ranks_of(4, eigenvalues, rank, (4, 5))
    assert "choose k <= 3" in str(caught.value)


def test_a_share_met_up_to_rounding_is_met():
    # Three times a tenth is a little more than 0.3: what is asked for must not cost a fourth component.
    eigenvalues = torch.full((1, 10), 0.1, dtype=torch.float64)
    assert ranks_of(0.1 + 0.2, eigenvalues, torch.tensor([10]), (9, 9)) == [3]
    assert ranks_of(0.3 + 1e-9, eigenvalues, torch.tensor([10]), (9, 9)) == [4]


def recorded(n_H, n_S, rank, seed=0, layers=1, errors=None):
    """Which k are tried on which folds; `errors` shifts the mean of what k components move."""
    scores, calls = normal(layers, n_H + n_S, 6, seed=seed + 50), []

    def push(train_H, train_S, held_out, k):
        calls.append((k, train_H.shape[1], train_S.shape[1], held_out.shape[1]))
        return held_out + (errors or {}).get(k, 0.0)

    found = auto_ranks(scores, n_H, torch.full((layers,), rank), push, seed)
    return found, calls


@pytest.mark.parametrize(
    ("n_H", "n_S", "rank", "candidates"),
    [
        (200, 300, 200, [1, 2, 4, 8, 16, 32, 64]),
        (200, 300, 64, [1, 2, 4, 8, 16, 32, 64]),
        (200, 300, 63, [1, 2, 4, 8, 16, 32]),
        # Of 12 samples three are held out of each fold; nine leave a covariance of rank eight.
        (12, 40, 40, [1, 2, 4, 8]),
        (40, 12, 40, [1, 2, 4, 8]),
        (11, 40, 40, [1, 2, 4]),
        (4, 4, 7, [1]),
        (40, 40, 1, [1]),
    ],
)
def test_candidates_are_the_powers_of_two_that_the_folds_can_hold(n_H, n_S, rank, candidates):
    _, calls = recorded(n_H, n_S, rank)
    assert sorted({k for k, *_ in calls}) == candidates


@pytest.mark.parametrize(("n_H", "n_S", "folds"), [(8, 9, 4), (30, 8, 4), (6, 40, 3), (40, 7, 3), (5, 4, 2)])
def test_every_sample_is_held_out_once(n_H, n_S, folds):
    _, calls = recorded(n_H, n_S, 1)
    assert len(calls) == folds
    assert sum(out for *_, out in calls) == n_H
    for _, train_H, train_S, out in calls:
        assert train_H + out == n_H
        assert out in (n_H // folds, math.ceil(n_H / folds))
        assert n_S - train_S in (n_S // folds, math.ceil(n_S / folds))


@pytest.mark.parametrize(("n_H", "n_S"), [(3, 9), (9, 3)])
def test_too_few_samples_to_hold_any_out(n_H, n_S):
    with pytest.raises(FitError) as caught:
        recorded(n_H, n_S, 1)
    assert f"{n_H} + {n_S}" in str(caught.value)


def test_the_smallest_error_wins_and_of_equals_the_smallest_k():
    assert recorded(40, 40, 8)[0] == [1]
    assert recorded(40, 40, 8, errors={1: 9.0, 2: 9.0, 8: 9.0})[0] == [4]
    assert recorded(40, 40, 8, errors={1: 9.0}, layers=3)[0] == [2, 2, 2]


def test_the_held_out_error_is_the_distance_of_the_moments_over_folds_drawn_by_the_seed():
    # One candidate differs from another by what it adds to W2^2 of the held-out folds, computed densely here.
    n, scores = 24, normal(1, 48, 3, seed=60)
    H, S = scores[0, :n], scores[0, n:]

    def missing(part, whole):
        return [i for i, row in enumerate(whole) if not (part == row).all(1).any()]

    def tried(seed):
        errors, folds = {}, []

        def push(train_H, train_S, held_out, k):
            moved = held_out * (1 + k / 8) + 0.1 * k
            rows, targets = missing(train_H[0], H), missing(train_S[0], S)
            assert torch.equal(H[rows], held_out[0])
            X, Y = moved[0], S[targets]
            parts = naive.w2(X.mean(0), naive.covariance(X), Y.mean(0), naive.covariance(Y))
            errors[k] = errors.get(k, 0.0) + sum(parts)
            folds.append(rows)
            return moved

        return auto_ranks(scores, n, torch.tensor([4]), push, seed), errors, folds

    found, errors, folds = tried(5)
    assert found == [min(errors, key=errors.get)]
    assert sorted(errors) == [1, 2, 4]
    assert sorted(row for rows in folds[:4] for row in rows) == list(range(n))
    assert tried(5)[2] == folds != tried(6)[2]


def test_the_distance_of_held_out_samples_is_that_of_their_gaussians():
    X, Y = normal(3, 9, 4, seed=61) + 2, 3 * normal(3, 12, 4, seed=62)
    found = _squared_distance(X, Y)
    for layer in range(3):
        A, B = X[layer], Y[layer]
        parts = naive.w2(A.mean(0), naive.covariance(A), B.mean(0), naive.covariance(B))
        assert float(found[layer]) == pytest.approx(sum(parts), rel=1e-6)
    assert_close(_squared_distance(X, X), torch.zeros(3, dtype=X.dtype), rtol=0, atol=1e-12)
