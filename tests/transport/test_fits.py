"""The fits that move distributions, the choice of their components, and the fits of all layers at once."""

import warnings

import ot
import pytest
import torch
from sklearn.decomposition import PCA
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, PoorFitWarning
from ot_lens.transport import METHODS, AffineMap, fit, fit_all, fit_linear_act, fit_mean_shift, fit_pca_ot
from tests.generators import naive
from tests.generators.gaussians import Layers, classes, layered, normal, orthogonal, pair

FITTED = [name for name, known in METHODS.items() if known.fit is not None]
# Of methods whose defaults need more samples than the tests of every method have.
SMALL = {"mixture_ot": {"q": 2}}


def line(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


# --- shifts and coordinate-wise transport


@pytest.mark.parametrize(
    ("method", "options"),
    [("pca_ot", {"k": 1, "ridge": 0.0}), ("linear_act", {}), ("gaussian_ot", {"shrinkage": None})],
)
def test_unit_normal_to_mean_one_variance_four_is_two_x_plus_one(method, options):
    T = fit(method, line(-1, 0, 1), line(1 - 2, 1, 1 + 2), **options)
    assert_close(T.map(line(-3, 0, 2.5)), line(-5, 1, 6))


def test_mean_shift_moves_the_mean():
    assert_close(fit_mean_shift(line(0, 2), line(4, 8)).map(line(0, 1)), line(5, 6))
    H, S = classes(20, 30, 50, seed=0)
    assert_close(fit_mean_shift(H, S).map(H).mean(0), S.mean(0))


@pytest.mark.parametrize(("n_H", "n_S"), [(12, 12), (7, 12), (12, 5)])
def test_linear_act_is_the_coordinate_loop(n_H, n_S):
    H, S = classes(n_H, n_S, 9, seed=3)
    omega, beta = naive.linear_act(H, S)
    T = fit_linear_act(H, S)
    assert_close(T.scale, omega)
    assert_close(T.bias, beta)


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


# --- PCA-OT


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("mean_shift", ["full", "subspace"])
def test_pca_ot_is_the_dense_formula(d, mean_shift):
    H, S = classes(20, 30, d, seed=5)
    k, ridge, mu = 2, 0.3, torch.cat([H, S]).mean(0)
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
    pca = PCA(3, svd_solver="full").fit(torch.cat([H, S]).numpy())
    source, target = (torch.from_numpy(pca.transform(X.numpy())) for X in (H, S))
    # POT divides by n; the same ridge on both sides of 1/(n - 1) covariances needs them handed over.
    C_H, C_S = (torch.cov(X.T) + 0.1 * torch.eye(3) for X in (source, target))
    A, b = ot.gaussian.bures_wasserstein_mapping(source.mean(0), target.mean(0), C_H, C_S)
    moved = torch.from_numpy(pca.transform(fit_pca_ot(H, S, k=3, ridge=0.1).map(H).numpy()))
    assert_close(moved, source @ A + b, rtol=1e-8, atol=1e-8)


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
    assert_close(fit_pca_ot(H, H.flip(0), k=4).map(H), H)


def test_permuted_labels_leave_nothing_to_move():
    H, S = classes(60, 60, 10, seed=14)
    mixed = torch.cat([H, S])[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    true, null = fit_pca_ot(H, S, k=2), fit_pca_ot(mixed[:60], mixed[60:], k=2)
    gap = (H.mean(0) - S.mean(0)).norm()
    assert (true.map(H) - H).norm(dim=1).mean() > 0.5 * gap
    assert (null.map(H) - H).norm(dim=1).mean() < 0.5 * gap


def test_pca_ot_moves_two_components_and_the_whole_mean_unless_told_otherwise():
    acts = layered(12, 15, 30, layers=1, seed=4)
    H, S = acts.harmful(0), acts.harmless(0)
    for T in (fit_pca_ot(H, S), fit_all(acts)[0], METHODS["pca_ot"].batch(H[None], S[None])[0]):
        assert (T.info.method, T.info.k) == ("pca_ot", 2)
        assert_close(T.map(H).mean(0), S.mean(0))


@pytest.mark.parametrize("k", [1, 3])
def test_a_source_of_too_low_rank_needs_a_ridge(k):
    H, S = classes(9, 12, 20, seed=5)
    assert fit_pca_ot(H, S, k=k, ridge=0.0).info.ridge == 0.0
    flat = H.mean(0) + normal(9, k - 1, seed=6) @ normal(k - 1, 20, seed=7)
    with pytest.raises(FitError, match=f"k = {k} .*give ridge > 0"):
        fit_pca_ot(flat, S, k=k, ridge=0.0)


def test_classes_without_spread_are_shifted_only():
    # Both classes are single points: no variance to take a share of, and nothing to rescale.
    H, S = torch.zeros(9, 4).double(), torch.ones(8, 4).double()
    T = fit_pca_ot(H, S, k=1)
    assert T.info.ridge == 1.0
    assert_close(T.map(H)[:8], S)
    for k in ("auto", 1, 0.5):
        with pytest.raises(FitError, match=r"n = 9 \+ 8\) is 0"):
            fit_pca_ot(H, H[:8], k=k)


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
    assert fit_pca_ot(H, S, k="auto", seed=1).info == T.info


@pytest.mark.parametrize(
    ("k", "named"),
    [(0, "k = 0"), ("best", "'best'"), (7, r"k = 7 .*rank 5 .*3 \+ 3"), ("auto", "at least 4")],
)
def test_impossible_k_is_refused(k, named):
    with pytest.raises(FitError, match=named):
        fit_pca_ot(*classes(3, 3, 20, seed=18), k=k)


# --- by name, and all layers


@pytest.mark.parametrize("method", FITTED)
def test_every_fit_checks_its_samples(method):
    H, S = classes(5, 5, 4, seed=19)
    with pytest.raises(ActivationError, match="width"):
        fit(method, H, S[:, :2])
    with pytest.raises(ActivationError, match="n = 1"):
        fit(method, H[:1], S)
    with pytest.raises(ActivationError, match="1 of 5 rows"):
        fit(method, H, S.index_fill(0, torch.tensor([2]), torch.nan))


@pytest.mark.parametrize("ridge", [-1e-9, float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["pca_ot", "gaussian_ot", "leace", "mixture_ot"])
def test_a_ridge_must_be_a_variance(ridge, method):
    with pytest.raises(FitError, match=str(ridge)):
        fit(method, *classes(9, 12, 20, seed=8), ridge=ridge)


def test_unknown_names_are_named_with_the_known_ones():
    acts = layered(5, 5, 4, layers=1, seed=28)
    with pytest.raises(FitError, match=r"'magic'.*directional_ablation, rfa, ace"):
        fit_all(acts, "magic")
    with pytest.raises(FitError, match=r"'half'.*full, subspace"):
        fit_all(acts, "pca_ot", mean_shift="half")


@pytest.mark.parametrize("method", FITTED)
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
def test_layers_of_unlike_rank_have_their_own_k_and_keep_their_order(k):
    acts = layered(12, 15, 30, layers=4, seed=25)
    acts.source[1:3] *= torch.linspace(0.01, 5, 30, dtype=torch.float64) ** 3
    maps = fit_all(acts, "pca_ot", k=k)
    for layer, T in maps.items():
        single = fit_pca_ot(acts.harmful(layer), acts.harmless(layer), k=k)
        assert T.info.k == single.info.k
        assert_close(T.map(acts.harmful(layer)), single.map(acts.harmful(layer)))
    assert k == "auto" or len({T.info.k for T in maps.values()}) > 1


@pytest.mark.parametrize("method", ["leace", "gaussian_ot", "pca_ot", "mixture_ot"])
@pytest.mark.parametrize("options", [{}, {"ridge": 0.5}])
def test_layers_of_unlike_scale_do_not_see_each_other(method, options):
    acts = layered(9, 12, 30, layers=3, seed=13)
    scale = torch.tensor([1e-9, 1.0, 1e9], dtype=torch.float64)[:, None, None]
    acts = Layers(acts.source * scale, acts.target * scale, acts.layers)
    for layer, T in fit_all(acts, method, **options).items():
        H = acts.harmful(layer)
        single = fit(method, H, acts.harmless(layer), **options)
        assert_close(T.map(H), single.map(H), rtol=1e-8, atol=1e-9 * float(H.abs().max()))
        assert T.info.rank == single.info.rank
        assert T.info.explained_variance == pytest.approx(single.info.explained_variance)


@pytest.mark.parametrize("method", FITTED)
def test_a_fit_is_made_where_its_samples_are(method):
    # Whatever is made on the default device, which here holds no numbers, would meet the samples' and fail.
    acts = layered(6, 7, 10, layers=3, seed=43)
    acts.source[1] = acts.target[1] = 0.5
    x, expected = acts.harmful(0), fit_all(acts, method, **SMALL.get(method, {}))
    with torch.device("meta"):
        found = fit_all(acts, method, **SMALL.get(method, {}))
        half = found[0].at(0.4)  # half a reflection is a projection, which has no inverse
        still = half.at(0.0).map(x)
        if isinstance(half, AffineMap):
            halfway, back = half.compose(found[2]).map(x), half.inverse().map(half.map(x))
    for layer, T in expected.items():
        assert_close(found[layer].map(x), T.map(x))
    assert torch.equal(still, x)
    if isinstance(half, AffineMap):
        assert_close(halfway, expected[0].at(0.4).map(expected[2].map(x)))
        assert_close(back, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", FITTED)
def test_layers_where_nothing_varies_get_the_identity_and_keep_their_place(method):
    acts = layered(16, 17, 10, layers=5, seed=29)
    for layer in (1, 3):
        acts.source[layer] = acts.target[layer] = float(layer)
    maps = fit_all(acts, method, **SMALL.get(method, {}))
    assert [layer for layer, T in maps.items() if T.is_identity] == [1, 3]
    info = maps[1].info
    assert "identical" in info.notes[0]
    assert (info.method, info.layer, info.hook, info.rank, info.n_harmless) == (method, 1, "resid_pre", 0, 17)
    for layer in (0, 2, 4):
        single = fit(method, acts.harmful(layer), acts.harmless(layer), **SMALL.get(method, {}))
        assert_close(maps[layer].map(acts.harmful(layer)), single.map(acts.harmful(layer)))
    acts.source[:], acts.target[:] = 1.0, 1.0
    assert all(T.is_identity for T in fit_all(acts, method, **SMALL.get(method, {})).values())


def test_classes_that_are_two_points_are_not_one():
    acts = layered(6, 7, 10, layers=1, seed=30)
    acts.source[:], acts.target[:] = 1.0, 2.0
    assert not fit_all(acts, "mean_shift")[0].is_identity
    acts.target[:] = 1.0
    acts.target[0, 6, 9] = 1.5
    assert not fit_all(acts, "mean_shift")[0].is_identity
    acts.source[0, 5, 0], acts.target[0, 6, 9] = 1.5, 1.0
    assert not fit_all(acts, "mean_shift")[0].is_identity


def test_errors_of_all_layers_name_the_layer():
    acts = layered(6, 7, 10, layers=4, seed=27)
    bad = Layers(acts.source.clone(), acts.target, (3, 5, 9, 11))
    bad.source[2, 4, 0] = torch.nan
    with pytest.raises(ActivationError, match=r"harmful at layer 9, position -1 .* 1 of 6 rows"):
        fit_all(bad)
    flat = Layers(acts.source, acts.target.clone(), (3, 5, 9, 11))
    flat.target[1] = flat.source[1].mean(0)
    with pytest.raises(FitError, match="layer 5: The class means coincide") as caught:
        fit_all(flat, "directional_ablation")
    assert isinstance(caught.value.__cause__, FitError)
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


@pytest.mark.parametrize(("layers_at_a_time", "sizes"), [(1, [1] * 5), (2, [2, 2, 1])])
def test_layers_fitted_in_several_batches_are_all_there(layers_at_a_time, sizes, monkeypatch):
    from ot_lens.samples import layer_batches

    acts, budget = layered(6, 7, 10, layers=5, seed=42), layers_at_a_time * 8 * 13 * 10
    assert [len(batch.layers) for batch in layer_batches(acts, budget=budget)] == sizes
    together = fit_all(acts, "ace")
    monkeypatch.setattr("ot_lens.samples.BATCH_BYTES", {"cpu": budget})
    apart = fit_all(acts, "ace")
    assert list(apart) == list(together) == [0, 1, 2, 3, 4]
    for layer, T in together.items():
        assert_close(apart[layer].map(acts.harmful(layer)), T.map(acts.harmful(layer)))
        assert apart[layer].info == T.info
