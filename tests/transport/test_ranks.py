"""How many components: an int, a share, or the held-out choice, at their boundaries."""

import pytest
import torch

from ot_lens.errors import FitError
from ot_lens.transport.pca_ot import auto_ranks, ranks_of, validate_rank
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
