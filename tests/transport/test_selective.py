"""Null-space constraints, gates, norms that are kept, rotations, and methods modified by them."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from ot_lens.errors import FitError, RunFolderError
from ot_lens.localization import as_methods
from ot_lens.localization.settings import scope_of
from ot_lens.transport import (
    ActivationMap,
    AffineMap,
    GatedMap,
    NormPreservingMap,
    RotationMap,
    fit,
    fit_all,
    fit_directional_ablation,
    fit_entropic_ot,
    fit_mean_shift,
    fit_mixture_ot,
    fit_pca_ot,
    fit_rotation,
    gated,
    load_map,
    method_label,
    method_named,
    norm_preserving,
    null_space,
)
from ot_lens.transport.gated import ScoreGate
from tests.generators.gaussians import classes, layered, normal, orthogonal


def apart(n: int, d: int = 12, gap: float = 6.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes that differ along the first coordinate, H above S."""
    H, S = normal(n, d, seed=seed), normal(n, d, seed=seed + 1)
    H[:, 0] += gap
    return H, S


# --- null space


def test_a_null_space_map_leaves_the_targets_subspace_alone_and_moves_the_source_as_the_map_does():
    d, inside = 40, 5
    basis = orthogonal(d, seed=3)
    S = normal(60, inside, seed=4) @ basis[:, :inside].T
    H = 2 * normal(30, inside, seed=5) @ basis[:, :inside].T + normal(30, d, seed=6)
    T = fit_mean_shift(H, S)
    constrained = null_space(T, H, S, variance=1.0, ridge=1e-9)
    x = 100 * normal(20, inside, seed=7) @ basis[:, :inside].T
    assert constrained.info.null_space_rank == inside
    assert (constrained.map(x) - x).abs().max() < 1e-10 * 100
    assert (T.map(x) - x).abs().max() > 0.1
    assert_close(constrained.map(H), T.map(H), rtol=1e-5, atol=1e-5)
    assert constrained.rank <= len(H)


def test_it_is_the_ridge_regression_of_the_displacement_written_out():
    H, S = classes(15, 20, 30, seed=1)
    T, a = fit_pca_ot(H, S, k=2), 0.3
    constrained = null_space(T, H, S, variance=0.9, ridge=a)
    values, vectors = torch.linalg.eigh(S.T @ S)
    order = values.argsort(descending=True)
    share = values[order].cumsum(0) / values.sum()
    Q = vectors[:, order[: int((share < 0.9).sum()) + 1]]
    R = H @ (torch.eye(30, dtype=torch.float64) - Q @ Q.T)
    gram = R @ R.T
    weights = torch.linalg.inv(gram + a * gram.diagonal().mean() * torch.eye(15, dtype=torch.float64))
    x = normal(9, 30, seed=2)
    assert constrained.info.null_space_rank == Q.shape[1]
    assert_close(constrained.map(x), x + x @ R.T @ weights @ (T.map(H) - H))


def test_a_null_space_needs_room_and_a_fitting_map():
    H, S = classes(9, 9, 5, seed=2)
    T = fit_mean_shift(H, S)
    with pytest.raises(FitError, match=r"5 dimensions that hold 100\.0%"):
        null_space(T, H, S, variance=1.0)
    for options, named in [({"variance": 0.0}, "variance = 0.0"), ({"ridge": 0.0}, "ridge = 0.0")]:
        with pytest.raises(FitError, match=named):
            null_space(T, H, S, **options)
    with pytest.raises(FitError, match="width 3, the map 5"):
        null_space(T, H[:, :3], S[:, :3])


# --- gates


@pytest.mark.parametrize("n", [60, 250])
def test_a_gate_keeps_its_false_positive_rate_on_held_out_samples(n):
    rates = []
    for seed in range(12):
        H, S = apart(n, gap=3.0, seed=10 * seed)
        T = gated(fit_mean_shift(H, S), H, S, gate="threshold", false_positive_rate=0.1)
        _, fresh = apart(2000, gap=3.0, seed=1000 + seed)
        rates.append(float((T.gate.score(fresh) > 0).double().mean()))
    # The mean over fits is at most 0.1; its standard error over 12 fits of 60 samples is below 0.015.
    assert sum(rates) / len(rates) < 0.1 + 0.03
    assert sum(rates) / len(rates) > 0.02, "a gate that never opens holds any rate"


def test_the_score_tells_held_out_classes_apart_as_well_as_its_held_out_auc_says():
    H, S = apart(100, gap=2.0)
    T = gated(fit_mean_shift(H, S), H, S)
    fresh_H, fresh_S = apart(2000, gap=2.0, seed=50)
    scores = T.gate.score(torch.cat([fresh_H, fresh_S]))
    auc = roc_auc_score([1] * 2000 + [0] * 2000, scores.numpy())
    assert T.info.gate_auc == pytest.approx(auc, abs=0.05)
    assert auc > 0.85


def test_equal_classes_give_a_gate_that_knows_nothing():
    S = normal(200, 12, seed=1)
    T = gated(fit_mean_shift(S + 1e-3 * normal(200, 12, seed=2), S), normal(200, 12, seed=3), S)
    assert abs(T.info.gate_auc - 0.5) < 0.12


def test_a_fold_that_sees_equal_samples_only_tells_nothing_apart():
    H, S = torch.ones(6, 5, dtype=torch.float64), torch.ones(6, 5, dtype=torch.float64)
    S[0, 0] = 2.0
    T = gated(fit_mean_shift(H, S), H, S)
    assert 0.0 <= T.info.gate_auc <= 1.0
    assert torch.isfinite(T.map(H)).all()


def test_a_hard_gate_moves_wholly_or_not_at_all_and_a_logistic_one_by_its_weight():
    H, S = apart(50)
    plain = fit_mean_shift(H, S)
    hard, soft = (gated(plain, H, S, gate=gate) for gate in ("threshold", "logistic"))
    x = torch.cat([H, S, normal(40, 12, seed=9)])
    is_open = hard.gate.score(x) > 0
    assert 40 < int(is_open.sum()) < 80
    assert torch.equal(hard.map(x)[~is_open], x[~is_open])
    assert_close(hard.map(x)[is_open], plain.map(x)[is_open])
    weight = torch.sigmoid(hard.gate.score(x))[:, None]
    assert_close(soft.map(x), x + weight * (plain.map(x) - x))
    assert_close(soft.at(0.25).map(x), x + 0.25 * (soft.map(x) - x))
    assert (hard.info.gate_true_positives, hard.info.gate_false_positives) == (1.0, 0.0)


def test_gates_that_cannot_be_are_named():
    H, S = apart(10)
    T = fit_mean_shift(H, S)
    for options, named in [
        ({"gate": "door"}, "'door'.*logistic, threshold"),
        ({"false_positive_rate": 0.0}, "false_positive_rate = 0.0"),
        ({"components": 0}, "components = 0"),
    ]:
        with pytest.raises(FitError, match=named):
            gated(T, H, S, **options)
    with pytest.raises(FitError, match=r"at least 4 samples of each class.* 3"):
        gated(T, H[:3], S)
    with pytest.raises(FitError, match="identical"):
        gated(T, torch.ones_like(H), torch.ones_like(S))


# --- norms


@pytest.mark.parametrize("kind", ["rotation", "norm_preserving"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_norms_stay_at_every_strength(kind, dtype, tolerance):
    H, S = classes(20, 30, 16, seed=4)
    T = fit_rotation(H, S) if kind == "rotation" else norm_preserving(fit_pca_ot(H, S, k=2))
    x = 10 * normal(25, 16, seed=5).to(dtype)
    for strength in (0.0, 0.3, 1.0):
        moved = T.at(strength).map(x)
        assert_close(moved.norm(dim=1), x.norm(dim=1), rtol=tolerance, atol=0)
        assert (strength == 0.0) == torch.equal(moved, x)
    assert fit_pca_ot(H, S, k=2).map(x).norm(dim=1).sub(x.norm(dim=1)).abs().max() > 0.1


def test_a_rotation_in_the_plane_of_two_axes_by_hand():
    basis = torch.eye(3, dtype=torch.float64)[:, :2]
    T = RotationMap(basis, math.radians(90))
    x = torch.tensor([[3.0, 0, 5], [0, -2, 1], [0, 0, 7]], dtype=torch.float64)
    assert_close(T.map(x), torch.tensor([[0.0, 3, 5], [0, 2, 1], [0, 0, 7]], dtype=torch.float64))
    half = math.sqrt(0.5) * 3
    assert_close(T.at(0.5).map(x[:1]), torch.tensor([[half, half, 5.0]], dtype=torch.float64))
    # From -90 degrees to 170 the shorter way passes 180.
    turned = RotationMap(basis, math.radians(170)).at(0.9).map(x[1:2])[0]
    assert_close(turned, torch.tensor([-2.0, 0, 1], dtype=torch.float64))


def test_a_fitted_rotation_turns_every_sample_to_the_targets_angle():
    H, S = classes(20, 30, 16, seed=6)
    T = fit_rotation(H, S)
    assert_close(T.basis.T @ T.basis, torch.eye(2, dtype=torch.float64))
    assert_close(T.basis[:, 0], (H.mean(0) - S.mean(0)) / (H.mean(0) - S.mean(0)).norm())
    inside, target = T.map(H) @ T.basis, S.mean(0) @ T.basis
    assert_close(inside / inside.norm(dim=1, keepdim=True), (target / target.norm()).expand(20, 2))
    assert math.degrees(fit_rotation(H, S, angle=30.0).angle) == pytest.approx(30.0)
    with pytest.raises(FitError, match="angle = nan"):
        fit_rotation(H, S, angle=math.nan)
    line = torch.arange(5.0)[:, None] * torch.ones(1, 4)
    with pytest.raises(FitError, match="one line"):
        fit_rotation(line, line + 1)


def test_norm_preserving_leaves_alone_what_its_map_sends_to_zero():
    T = norm_preserving(
        fit_directional_ablation(torch.eye(3).double()[:1].expand(2, 3), torch.zeros(2, 3).double())
    )
    x = torch.tensor([[2.0, 0, 0], [1.0, 1, 0]], dtype=torch.float64)
    assert_close(T.map(x), torch.tensor([[2.0, 0, 0], [0, 2**0.5, 0]], dtype=torch.float64))


# --- stored


def every_kind() -> dict[str, ActivationMap]:
    H, S = apart(20)
    shift, entropic = fit_mean_shift(H, S), fit_entropic_ot(H, S, epsilon=0.3).at(0.5)
    return {
        "affine": shift,
        "entropic": entropic,
        "rotation": fit_rotation(H, S).at(0.3),
        "gated": gated(shift, H, S, gate="threshold"),
        "mixture": fit_mixture_ot(H, S, 1, 2).at(0.5),
        "gated entropic": gated(entropic, H, S),
        "gated twice": gated(gated(fit_pca_ot(H, S, k=2), H, S), H, S).at(0.5),
        "norm": norm_preserving(gated(shift, H, S)),
    }


@pytest.mark.parametrize("name", list(every_kind()))
def test_every_kind_comes_back_from_disk_and_moves_between_dtypes(name, tmp_path):
    T, x = every_kind()[name].labelled(layer=3), normal(9, 12, seed=8)
    T.save(tmp_path / "map")
    back = load_map(tmp_path / "map")
    assert (type(back), back.info, back.settings()) == (type(T), T.info, T.settings())
    assert torch.equal(back.map(x), T.map(x))
    assert type(T).load(tmp_path / "map").info.layer == 3
    assert_close(T.to(torch.float32).map(x.float()).double(), T.map(x), rtol=1e-3, atol=1e-3)
    assert T.map(x.bfloat16()).dtype == torch.bfloat16
    assert T.to("meta").device.type == "meta"
    other = RotationMap if not isinstance(T, RotationMap) else GatedMap
    with pytest.raises(RunFolderError, match=type(T).__name__):
        other.load(tmp_path / "map")


@pytest.mark.parametrize(
    "change",
    [
        {"gate": {"kind": "Door", "settings": {}}},
        {"gate": None},
        {"parts": []},
        {"parts": [{"kind": "AffineMap"}]},
        {"parts": [{"kind": "GatedMap", "settings": {}}]},
        {"parts": [{"kind": "EntropicMap", "settings": {"epsilon": "a", "strength": 1}}]},
    ],
)
def test_a_damaged_gated_map_is_refused(change, tmp_path):
    from ot_lens.transport.storage import write_tensors

    T = every_kind()["gated"]
    write_tensors(tmp_path / "map", T.tensors(), "GatedMap", T.info, T.settings() | change)
    with pytest.raises(RunFolderError):
        load_map(tmp_path / "map")


# --- as methods


@pytest.mark.parametrize(
    ("asked", "name", "kind"),
    [
        ({"within": "null_space"}, "pca_ot_null_space", AffineMap),
        ({"gate": "logistic"}, "pca_ot_gated", GatedMap),
        ({"gate": "threshold"}, "pca_ot_gated_threshold", GatedMap),
        ({"norm_preserving": True}, "pca_ot_norm_preserving", NormPreservingMap),
        ({"within": "null_space", "gate": "threshold"}, "pca_ot_null_space_gated_threshold", GatedMap),
    ],
)
def test_a_method_is_modified_by_its_parameters_or_its_name(asked, name, kind):
    (spec,) = as_methods([{"name": "pca_ot", "k": 2, **asked}])
    assert (spec.name, spec.params) == (name, {"k": 2})
    acts = layered(12, 12, 20, layers=2, seed=3)
    by_name, by_parameters = fit_all(acts, name, k=2), fit_all(acts, "pca_ot", k=2, **asked)
    assert spec.k(list(by_name.values())) == 2
    for layer, T in by_name.items():
        assert type(T) is kind
        assert (T.info.method, T.info.layer) == (name, layer)
        x = acts.harmful(layer)
        assert_close(by_parameters[layer].map(x), T.map(x))
        assert_close(fit("pca_ot", x, acts.harmless(layer), k=2, **asked).map(x), T.map(x))
    assert method_label(name, 2).startswith("PCA-OT, ")
    assert method_named(name).family == "transport"


def test_options_of_modifiers_reach_them():
    H, S = apart(30)
    narrow, wide = (fit("mean_shift", H, S, within="null_space", variance=v) for v in (0.5, 0.95))
    assert narrow.info.null_space_rank < wide.info.null_space_rank
    assert fit("mean_shift", H, S, gate="logistic", false_positive_rate=0.5).info.gate_false_positives > 0.3


def test_modified_projections_act_where_they_were_fitted():
    assert scope_of("directional_ablation", "auto", -1) == "all"
    assert scope_of("directional_ablation_gated", "auto", -1) == "last"
    assert scope_of("directional_ablation_norm_preserving", "auto", -1) == "all"


def test_what_cannot_modify_is_named():
    for method, named in [
        ({"name": "pca_ot", "within": "here"}, "'here'.*null_space"),
        ({"name": "pca_ot", "gate": "door"}, "'door'.*logistic, threshold"),
        ({"name": "rfa", "gate": "logistic"}, "directional_ablation"),
        ("magic_gated", "'magic_gated'"),
    ]:
        with pytest.raises(FitError, match=named):
            as_methods([method])


def test_a_gate_stored_with_a_method_is_the_one_that_was_fitted():
    gate = ScoreGate(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 5.0]))
    assert_close(gate.weights(torch.tensor([[3.0, 9.0], [4.0, 0.0]]))[:, 0], torch.tensor([0.5, 0.7310586]))
