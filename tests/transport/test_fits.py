import warnings

import ot
import pytest
import torch
from sklearn.decomposition import PCA
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, PoorFitWarning
from ot_lens.transport import (
    METHODS,
    fit,
    fit_ace,
    fit_all,
    fit_directional_ablation,
    fit_linear_act,
    fit_mean_shift,
    fit_pca_ot,
)
from tests.generators import naive
from tests.generators.gaussians import Layers, classes, layered, normal, orthogonal, pair


def line(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


# --- cases by hand


@pytest.mark.parametrize("method", ["pca_ot", "linear_act"])
def test_unit_normal_to_mean_one_variance_four_is_two_x_plus_one(method):
    H, S = line(-1, 0, 1), line(1 - 2, 1, 1 + 2)
    T = fit(method, H, S, **({"k": 1, "ridge": 0.0} if method == "pca_ot" else {}))
    assert_close(T.map(line(-3, 0, 2.5)), line(-5, 1, 6))


def test_mean_shift_by_hand():
    assert_close(fit_mean_shift(line(0, 2), line(4, 8)).map(line(0, 1)), line(5, 6))


def test_projections_by_hand():
    H = torch.tensor([[3.0, 1.0], [3.0, -1.0]])
    S = torch.tensor([[1.0, 5.0], [1.0, -5.0]])
    x = torch.tensor([[7.0, 9.0]])
    assert_close(fit_directional_ablation(H, S).map(x), torch.tensor([[0.0, 9.0]]))
    assert_close(fit_ace(H, S).map(x), torch.tensor([[1.0, 9.0]]))


# --- theorems


def test_mean_shift_moves_the_mean():
    H, S = classes(20, 30, 50, seed=0)
    assert_close(fit_mean_shift(H, S).map(H).mean(0), S.mean(0))


def test_ablation_is_idempotent_and_removes_the_direction():
    H, S = classes(20, 30, 50, seed=1)
    T = fit_directional_ablation(H, S)
    r = H.mean(0) - S.mean(0)
    assert_close(T.map(T.map(H)), T.map(H))
    assert_close(T.map(H) @ r, torch.zeros(20, dtype=H.dtype), atol=1e-10, rtol=0)


def test_ace_lands_on_the_harmless_mean_along_the_direction():
    H, S = classes(20, 30, 50, seed=2)
    r = H.mean(0) - S.mean(0)
    assert_close(fit_ace(H, S).map(H) @ r, (S.mean(0) @ r).expand(20))


@pytest.mark.parametrize(("n_H", "n_S"), [(12, 12), (7, 12), (12, 5)])
def test_linear_act_is_the_coordinate_loop(n_H, n_S):
    H, S = classes(n_H, n_S, 9, seed=3)
    omega, beta = naive.linear_act(H, S)
    T = fit_linear_act(H, S)
    assert_close(T.scale, omega)
    assert_close(T.bias, beta)


def test_linear_act_shifts_a_constant_coordinate():
    H, S = classes(8, 8, 3, seed=4)
    H[:, 1] = 1e3 + 0.1
    T = fit_linear_act(H, S)
    assert T.scale[1] == 1.0
    assert_close(T.map(H).mean(0), S.mean(0))


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("mean_shift", ["full", "subspace"])
def test_pca_ot_is_the_dense_formula(d, mean_shift):
    H, S = classes(20, 30, d, seed=5)
    k, ridge = 2, 0.3
    mu = torch.cat([H, S]).mean(0)
    P = torch.linalg.svd(torch.cat([H, S]) - mu)[2][:k].T
    eye = torch.eye(k, dtype=H.dtype)
    A = naive.monge(naive.covariance(H @ P) + ridge * eye, naive.covariance(S @ P) + ridge * eye)
    shift = S.mean(0) - H.mean(0)
    if mean_shift == "subspace":
        shift = P @ P.T @ shift
    x = normal(6, d, seed=6)
    expected = x + shift + (x - H.mean(0)) @ P @ (A - eye) @ P.T
    assert_close(fit_pca_ot(H, S, k=k, ridge=ridge, mean_shift=mean_shift).map(x), expected)


def test_pca_ot_agrees_with_scikit_learn_and_pot():
    H, S = classes(40, 30, 60, seed=7)
    k = 3
    pca = PCA(k, svd_solver="full").fit(torch.cat([H, S]).numpy())
    source, target = (torch.from_numpy(pca.transform(X.numpy())) for X in (H, S))
    # POT divides by n; the same ridge on both sides of 1/(n - 1) covariances needs them handed over.
    A, b = ot.gaussian.bures_wasserstein_mapping(
        source.mean(0),
        target.mean(0),
        torch.cov(source.T) + 0.1 * torch.eye(k),
        torch.cov(target.T) + 0.1 * torch.eye(k),
    )
    T = fit_pca_ot(H, S, k=k, ridge=0.1)
    moved = torch.from_numpy(pca.transform(T.map(H).numpy()))
    assert_close(moved, source @ A + b, rtol=1e-8, atol=1e-8)


def test_pca_ot_keeps_the_complement():
    H, S = classes(30, 30, 50, seed=8)
    T = fit_pca_ot(H, S, k=2, mean_shift="subspace")
    x = normal(5, 50, seed=9)
    outside = torch.eye(50, dtype=x.dtype) - T.U @ T.U.T
    assert_close(T.map(x) @ outside, x @ outside)


def test_pca_ot_pushes_mean_and_covariance_forward():
    known = pair(60, 6, seed=10)
    T = fit_pca_ot(known.H, known.S, k=6, ridge=0.0)
    assert_close(T.map(known.H), known.answer(known.H), rtol=1e-9, atol=1e-9)
    assert_close(naive.covariance(T.map(known.H)), naive.covariance(known.S), rtol=1e-9, atol=1e-9)


def test_pca_ot_follows_rotation_and_scaling():
    H, S = classes(30, 20, 40, seed=11)
    Q, T = orthogonal(40, seed=12), fit_pca_ot(H, S, k=3)
    assert_close(fit_pca_ot(H @ Q, S @ Q, k=3).map(H @ Q), T.map(H) @ Q, rtol=1e-9, atol=1e-9)
    assert_close(fit_pca_ot(1e4 * H, 1e4 * S, k=3).map(1e4 * H), 1e4 * T.map(H), rtol=1e-9, atol=1e-5)


def test_pca_ot_between_equal_classes_is_the_identity():
    H, _ = classes(30, 20, 40, seed=13)
    T = fit_pca_ot(H, H.flip(0), k=4)
    assert_close(T.map(H), H)


def test_permuted_labels_leave_nothing_to_move():
    H, S = classes(60, 60, 10, seed=14)
    mixed = torch.cat([H, S])[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    true, null = fit_pca_ot(H, S, k=2), fit_pca_ot(mixed[:60], mixed[60:], k=2)
    gap = (H.mean(0) - S.mean(0)).norm()
    assert (true.map(H) - H).norm(dim=1).mean() > 0.5 * gap
    assert (null.map(H) - H).norm(dim=1).mean() < 0.5 * gap


# --- how many components


def test_k_as_a_share_is_the_fewest_that_explain_it():
    H, S = classes(60, 70, 40, seed=15)
    ratios = PCA(svd_solver="full").fit(torch.cat([H, S]).numpy()).explained_variance_ratio_.cumsum()
    for share in (0.3, 0.8, 0.99):
        T = fit_pca_ot(H, S, k=share)
        assert T.info.k == int((ratios < share).sum()) + 1
        assert T.info.explained_variance >= share


def test_k_auto_finds_the_planted_dimension():
    # Two coordinates are rescaled strongly, the others are alike: two components are worth having.
    H, S = normal(200, 24, seed=16), normal(200, 24, seed=17)
    H[:, :2] *= 9.0
    S[:, :2] *= 3.0
    T = fit_pca_ot(H, S, k="auto", seed=1)
    assert T.info.k == 2
    assert T.info.seed == 1
    assert fit_pca_ot(H, S, k="auto", seed=1).info == T.info


@pytest.mark.parametrize(
    ("k", "words"),
    [(0, "k = 0"), (-2, "k = -2"), (1.5, "k = 1.5"), (True, "k = True"), ("best", "'best'"), (7, "rank 5")],
)
def test_impossible_k_is_refused(k, words):
    H, S = classes(3, 3, 20, seed=18)
    with pytest.raises(FitError, match=words):
        fit_pca_ot(H, S, k=k)


def test_k_above_the_rank_says_what_to_choose():
    H, S = classes(3, 3, 20, seed=18)
    with pytest.raises(
        FitError, match=r"k = 7 exceeds the rank 5 of the pooled samples \(n = 3 \+ 3\): choose k <= 5"
    ):
        fit_pca_ot(H, S, k=7)


def test_k_auto_needs_samples_to_hold_out():
    H, S = classes(3, 3, 20, seed=18)
    with pytest.raises(FitError, match="at least 4"):
        fit_pca_ot(H, S, k="auto")


# --- bad input and poor fits


@pytest.mark.parametrize("method", list(METHODS))
def test_every_fit_checks_its_samples(method):
    H, S = classes(5, 5, 4, seed=19)
    with pytest.raises(ActivationError, match="width"):
        fit(method, H, S[:, :2])
    with pytest.raises(ActivationError, match="n = 1"):
        fit(method, H[:1], S)
    with pytest.raises(ActivationError, match="1 of 5 rows"):
        fit(method, H, S.index_fill(0, torch.tensor([2]), torch.nan))


def test_bad_options_are_named():
    H, S = classes(5, 5, 4, seed=20)
    with pytest.raises(FitError, match="-1"):
        fit_pca_ot(H, S, ridge=-1.0)
    with pytest.raises(FitError, match="'half'"):
        fit_pca_ot(H, S, mean_shift="half")
    with pytest.raises(FitError, match="'magic'"):
        fit("magic", H, S)


def test_a_singular_source_needs_a_ridge():
    H, S = classes(3, 9, 20, seed=21)
    with pytest.raises(FitError, match="give ridge > 0"):
        fit_pca_ot(H, S, k=5, ridge=0.0)


def test_coinciding_means_have_no_direction():
    H, _ = classes(5, 5, 4, seed=22)
    for method in ("directional_ablation", "ace"):
        with pytest.raises(FitError, match="means coincide"):
            fit(method, H, H.flip(0))


def test_a_poor_fit_warns_once_with_the_remedy():
    H, S = classes(4, 9, 20, seed=23)
    with pytest.warns(PoorFitWarning, match="smaller k") as caught:
        T = fit_pca_ot(H, S, k=6)
    assert len(caught) == 1
    assert "4 samples" in T.info.problems[0]
    assert torch.isfinite(T.map(H)).all()


def test_classes_without_spread_are_shifted_only():
    H, S = classes(2, 2, 8, seed=30)
    H[1], S[1] = H[0], S[0]
    assert_close(fit_pca_ot(H, S, k=1).map(H), S)
    for k in ("auto", 1, 0.5):
        with pytest.raises(FitError, match=r"rank of the pooled samples .* is 0"):
            fit_pca_ot(H[:1].expand(9, -1), H[:1].expand(8, -1), k=k)


def test_a_source_that_hardly_varies_is_a_poor_fit():
    H, S = normal(30, 6, seed=31), normal(40, 6, seed=32)
    H *= 1e-6
    with pytest.warns(PoorFitWarning, match="stretches a direction by"):
        T = fit_pca_ot(H, S, k=2)
    assert torch.isfinite(T.map(H)).all()


# --- all layers


@pytest.mark.parametrize("method", list(METHODS))
def test_all_layers_at_once_are_the_layers_one_by_one(method):
    acts = layered(12, 15, 30, layers=4, seed=24)
    maps = fit_all(acts, method)
    assert list(maps) == [0, 1, 2, 3]
    for layer, T in maps.items():
        H, S = acts.harmful(layer), acts.harmless(layer)
        assert_close(T.map(H), fit(method, H, S).map(H), rtol=1e-9, atol=1e-9)
        assert (T.info.layer, T.info.position, T.info.hook) == (layer, -1, "resid_pre")
        assert T.info.method == {"rfa": "directional_ablation"}.get(method, method)
        assert (T.info.n_harmful, T.info.n_harmless) == (12, 15)


@pytest.mark.parametrize("k", [0.9, "auto"])
def test_each_layer_has_its_own_k(k):
    acts = layered(12, 15, 30, layers=3, seed=25)
    acts.source[1] *= torch.linspace(0.01, 5, 30, dtype=torch.float64) ** 3
    for layer, T in fit_all(acts, "pca_ot", k=k).items():
        assert T.info.k == fit_pca_ot(acts.harmful(layer), acts.harmless(layer), k=k).info.k


@pytest.mark.parametrize("method", list(METHODS))
def test_a_layer_where_nothing_varies_gets_the_identity(method):
    acts = layered(6, 7, 10, layers=3, seed=26)
    acts.source[0] = acts.target[0] = 0.3
    maps = fit_all(acts, method)
    assert maps[0].is_identity
    assert "identical" in maps[0].info.notes[0]
    assert not maps[1].is_identity


def test_errors_of_all_layers_name_the_layer():
    acts = layered(6, 7, 10, layers=4, seed=27)
    bad = Layers(acts.source.clone(), acts.target, (3, 5, 9, 11))
    bad.source[2, 4, 0] = torch.nan
    with pytest.raises(
        ActivationError, match=r"harmful at layer 9, position -1 has NaN or Inf in 1 of 6 rows"
    ):
        fit_all(bad)
    flat = Layers(acts.source, acts.target.clone(), (3, 5, 9, 11))
    flat.target[1] = flat.source[1].mean(0)
    with pytest.raises(FitError, match="layer 5: The class means coincide"):
        fit_all(flat, "directional_ablation")
    with pytest.raises(ActivationError, match="-2"):
        fit_all(acts, position=-2)
    with pytest.raises(ActivationError, match=r"-2, -1"):
        fit_all(Layers(acts.source, acts.target, acts.layers, positions=(-2, -1)))


def test_poor_layers_are_warned_about_together():
    acts = layered(4, 9, 20, layers=3, seed=28)
    with pytest.warns(PoorFitWarning, match=r"at layers \[0, 1, 2\]") as caught:
        fit_all(acts, k=6)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_all(acts, k=2)


def test_batches_of_layers_change_nothing():
    from ot_lens.samples import layer_batches

    acts = layered(6, 7, 10, layers=5, seed=29)
    sizes = [len(batch.layers) for batch in layer_batches(acts, budget=2 * 8 * 13 * 10)]
    assert sizes == [2, 2, 1]
    assert sum((batch.layers for batch in layer_batches(acts, budget=1)), ()) == acts.layers
