"""Transport between Gaussian mixtures: PCA-OT for one component, POT's plan and map for several."""

import ot
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ot_lens.errors import FitError, PoorFitWarning
from ot_lens.transport import fit_all, fit_mixture_ot, fit_pca_ot, mixture_ot
from ot_lens.transport.gated import MixtureGate
from ot_lens.transport.mixture_ot import Components, component_plan, squared_distances, transport_of_pairs
from tests.generators.gaussians import classes, layered, normal, orthogonal, rng, spd


def clusters(n: int, d: int, centres: Tensor, seed: int) -> Tensor:
    """Samples of a mixture with equal weights, of unit variance in all d coordinates."""
    labels = torch.randint(len(centres), (n,), generator=rng(seed))
    return normal(n, d, seed=seed + 1) + torch.nn.functional.pad(centres, (0, d - centres.shape[1]))[labels]


def three(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Classes of three clusters each, whose nearest counterparts lie in unlike directions."""
    source = torch.tensor([[0.0, 0, 0], [9, 0, 0], [0, 9, 0]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0, 5], [9, 4, 0], [-4, 9, 0]], dtype=torch.float64)
    return clusters(n, 16, source, seed), clusters(n, 16, target, seed + 10)


def squared_w2(X: Tensor, Y: Tensor) -> float:
    return float(ot.emd2([], [], torch.cdist(X, Y).square().numpy()))


@pytest.mark.parametrize("ridge", [None, 0.3, 0.0])
def test_one_component_per_class_is_pca_ot(ridge):
    H, S = classes(40, 30, 60, seed=1)
    T, single = fit_mixture_ot(H, S, 4, 1, ridge=ridge, seed=3), fit_pca_ot(H, S, k=4, ridge=ridge)
    x = 10 * normal(9, 60, seed=2)
    assert_close(T.map(x), single.map(x), rtol=1e-10, atol=1e-10)
    assert (T.info.components_harmful, T.info.components_harmless, T.info.seed) == (1, 1, 3)
    described = vars(
        T.labelled(method="pca_ot", seed=None, components_harmful=None, components_harmless=None).info
    )
    assert {**described, "condition_number": pytest.approx(described["condition_number"])} == vars(
        single.info
    )


def test_gaussian_classes_have_one_component_and_lose_nothing():
    H, S = classes(90, 80, 12, seed=5)
    x = normal(9, 12, seed=6)
    assert_close(fit_mixture_ot(H, S, 3).map(x), fit_pca_ot(H, S, k=3).map(x), rtol=1e-9, atol=1e-9)


def test_two_clusters_on_a_line_by_hand():
    H = torch.tensor([-11.0, -9, 9, 11], dtype=torch.float64).unsqueeze(1)
    S = torch.tensor([-22.0, -18, 28, 32], dtype=torch.float64).unsqueeze(1)
    T = fit_mixture_ot(H, S, 1, 2, ridge=0.0)
    # 2 (x + 10) - 20 on the left, 2 (x - 10) + 30 on the right.
    x = torch.tensor([-12.0, -10, 10, 9.5], dtype=torch.float64).unsqueeze(1)
    assert_close(T.map(x).squeeze(1), torch.tensor([-24.0, -20, 30, 29], dtype=torch.float64))
    assert_close(T.at(0.5).map(x), (x + T.map(x)) / 2)


def random_components(K: int, axes: Tensor, seed: int) -> tuple[Components, dict[str, Tensor]]:
    """Components in a subspace, and the same as POT takes them."""
    q = axes.shape[1]
    weights = torch.softmax(normal(K, seed=seed), 0)
    m, C = 2 * normal(K, q, seed=seed + 1), torch.stack([spd(q, seed + 2 + k) for k in range(K)])
    return Components(weights, m @ axes.T, m, *torch.linalg.eigh(C)), {"m": m, "C": C, "w": weights}


@pytest.mark.parametrize(("K_H", "K_S"), [(3, 2), (2, 4)])
def test_plan_distance_and_map_are_those_of_pot(K_H, K_S):
    axes, centre = orthogonal(6, seed=0)[:, :3], normal(6, seed=1)
    (source, s), (target, t) = random_components(K_H, axes, 2), random_components(K_S, axes, 20)
    precisions = torch.linalg.cholesky(torch.linalg.inv(s["C"]))
    gate = MixtureGate(axes, centre, s["w"].log(), s["m"], precisions, torch.eye(K_H, dtype=torch.float64))
    both = s["m"], t["m"], s["C"], t["C"], s["w"], t["w"]
    plan, costs = component_plan(source, target), squared_distances(source, target)
    assert_close(costs, ot.gmm.dist_bures_squared(*both[:4]))
    assert_close(plan, ot.gmm.gmm_ot_plan(*both))
    assert_close((plan * costs).sum(), ot.gmm.gmm_ot_loss(*both))
    z, outside = normal(7, 3, seed=5), normal(7, 6, seed=6)
    outside = outside - outside @ axes @ axes.T
    T, _ = transport_of_pairs(source, target, gate)
    moved = T.map(z @ axes.T + outside + centre) - centre
    assert_close(moved @ axes, ot.gmm.gmm_ot_apply_map(z, *both, plan=plan))
    assert_close(moved - moved @ axes @ axes.T, outside)


@pytest.mark.parametrize("components", ["bic", 2, (3, 1), [1, 3]])
def test_the_mean_of_the_moved_samples_is_that_of_the_target_in_all_coordinates(components):
    H, S = three(120, seed=0)
    assert_close(fit_mixture_ot(H, S, 3, components).map(H).mean(0), S.mean(0))


def test_clusters_are_found_and_moved_better_than_by_one_gaussian():
    H, S = three(120, seed=0)
    new_H, new_S = three(300, seed=40)
    T = fit_mixture_ot(H, S, 3)
    assert (T.info.components_harmful, T.info.components_harmless) == (3, 3)
    one, several = (squared_w2(f.map(new_H), new_S) for f in (fit_pca_ot(H, S, k=3), T))
    assert several < 0.9 * one
    # The floor that no map can beat: two samples of the target.
    assert several < 1.2 * squared_w2(three(300, seed=80)[1], new_S)


def test_by_bic_the_target_has_no_more_components_than_the_source():
    _, S = three(120, seed=0)
    H = normal(120, 16, seed=1)
    assert fit_mixture_ot(H, S, 3).info.components_harmless == 1
    assert fit_mixture_ot(S, H, 3).info.components_harmful == 3
    # Why: the single source component goes to the barycentre of three.
    collapsed = fit_mixture_ot(H, S, 3, (1, 3)).map(H)
    assert squared_w2(collapsed, S) > 1.2 * squared_w2(fit_pca_ot(H, S, k=3).map(H), S)


def test_the_seed_decides():
    H, S = classes(40, 40, 12, seed=3)
    first, again = (fit_mixture_ot(H, S, 3, 3, seed=1) for _ in range(2))
    assert first.info == again.info
    assert all(torch.equal(part, again.tensors()[name]) for name, part in first.tensors().items())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"q": 0}, "q = 0"),
        ({"q": True}, "q = True"),
        ({"q": 7}, r"q = 7 .*rank 6 .*9 \+ 8"),
        ({"components": "aic"}, "'aic'"),
        ({"components": 0}, "components = 0"),
        ({"components": True}, "components = True"),
        ({"components": (1, 2, 3)}, r"\(1, 2, 3\)"),
        ({"components": (10, 1)}, "10 components exceed the 9 distinct source samples"),
        ({"components": (1, 9)}, "9 components exceed the 8 distinct target samples"),
    ],
)
def test_what_cannot_be_fitted_is_named(options, named):
    with pytest.raises(FitError, match=named):
        fit_mixture_ot(*classes(9, 8, 6, seed=4), **{"q": 2, **options})


def test_a_class_that_is_one_point_has_one_component():
    H, S = classes(40, 40, 6, seed=4)
    point = torch.ones_like(S)
    x = normal(5, 6, seed=5)
    assert_close(fit_mixture_ot(H, point, 2).map(x), fit_pca_ot(H, point, k=2).map(x))
    with pytest.raises(FitError, match="2 components exceed the 1 distinct target"):
        fit_mixture_ot(H, point, 2, (1, 2))
    with pytest.raises(FitError, match="rank 0"):
        fit_mixture_ot(point, point, 1)


def test_a_cluster_of_one_point_needs_a_ridge():
    H, S = classes(20, 20, 2, seed=6)
    H[:10] = 50.0
    assert fit_mixture_ot(H, S, 2, (2, 1), ridge=0.1).info.components_harmful == 2
    with pytest.raises(FitError, match="source covariance is singular in q = 2"):
        fit_mixture_ot(H, S, 2, (2, 1), ridge=0.0)


def test_doubtful_fits_are_warned_about(monkeypatch):
    H, S = classes(20, 20, 6, seed=7)
    with pytest.warns(PoorFitWarning, match="in 4 dimensions: choose fewer components, a smaller q"):
        fit_mixture_ot(H, S, 4, 6)
    monkeypatch.setattr(mixture_ot, "ITERATIONS", 1)
    with pytest.warns(PoorFitWarning, match="EM of the source did not converge"):
        fit_mixture_ot(H, S, 2, (2, 1))
    monkeypatch.setattr(mixture_ot, "FEWEST", 15.0)
    with pytest.raises(FitError, match="2 components leave one of the source"):
        fit_mixture_ot(H, S, 2, 2)


def test_layers_of_unlike_numbers_of_components_keep_their_order():
    acts = layered(120, 120, 16, layers=3, seed=8)
    acts.source[1], acts.target[1] = three(120, seed=0)
    maps = fit_all(acts, "mixture_ot", q=3)
    assert [T.info.components_harmful for T in maps.values()] == [1, 3, 1]
    assert_close(maps[1].map(acts.source[1]).mean(0), acts.target[1].mean(0))
