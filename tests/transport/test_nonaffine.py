"""Maps that are not affine: masks of the support and entropic transport, with the edges of both."""

from dataclasses import replace

import ot
import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, PoorFitWarning
from ot_lens.transport import (
    EntropicMap,
    fit_entropic_ot,
    fit_interchange,
    fit_linear_act,
    fit_mean_shift,
    fit_pca_ot,
    restrict_to_support,
)
from tests.generators.gaussians import classes, normal


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


# --- masks


def test_the_mask_acts_inside_the_source_only_coordinate_by_coordinate():
    H, S = classes(20, 20, 6, seed=0)
    T = fit_linear_act(H, S)
    masked = restrict_to_support(T, H)
    assert_close(masked.map(H), T.map(H))
    far = H.amax(0) + 1
    mixed = torch.where(torch.arange(6) < 3, far, H[0])
    assert torch.equal(masked(mixed), torch.where(torch.arange(6) < 3, far, T.map(H[0])))


def test_the_edges_of_the_support_belong_to_it():
    H = column(0.0, 1.0, 4.0)
    masked = restrict_to_support(fit_mean_shift(H, H + 10), H)
    assert (masked.low.tolist(), masked.high.tolist()) == ([0.0], [4.0])
    x = column(-0.001, 0.0, 2.0, 4.0, 4.001)
    assert_close(masked.map(x), column(-0.001, 10.0, 12.0, 14.0, 4.001))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_outermost_samples_are_inside_whatever_they_are_rounded_to(dtype):
    H, _ = classes(9, 9, 40, seed=12)
    masked = restrict_to_support(fit_mean_shift(H, H + 10), H)
    moved = masked.map(H.to(dtype)) - H.to(dtype)
    assert moved.dtype == dtype
    assert bool((moved > 9).all())


@pytest.mark.parametrize(("quantile", "ends"), [(0.2, [2.0, 8.0]), (0.499, [4.99, 5.01])])
def test_quantiles_are_cut_off_on_either_side(quantile, ends):
    H = torch.arange(11, dtype=torch.float64).unsqueeze(1)
    masked = restrict_to_support(fit_mean_shift(H, H + 1), H, quantile=quantile)
    assert_close(torch.cat([masked.low, masked.high]), torch.tensor(ends).double())


def test_a_mask_follows_its_map_in_strength_type_and_device():
    H, S = classes(9, 9, 4, seed=0)
    masked = restrict_to_support(fit_linear_act(H, S).labelled(layer=3), H)
    half = masked.at(0.5)
    assert (masked.d_model, half.info.strength, half.info.layer) == (4, 0.5, 3)
    assert_close(half.map(H), 0.5 * (H + masked.map(H)))
    for moved, dtype, device in (
        (masked.to(torch.float32), torch.float32, "cpu"),
        (masked.to(dtype=torch.float32), torch.float32, "cpu"),
        (masked.to(device="meta"), torch.float64, "meta"),
    ):
        parts = (moved, moved.affine.bias, moved.affine.scale, moved.low, moved.high)
        assert {(part.dtype, part.device.type) for part in parts} == {(dtype, device)}


def test_what_cannot_be_masked_is_named():
    H, S = classes(9, 9, 4, seed=2)
    T = fit_linear_act(H, S)
    for affine, X, quantile, named in [
        (fit_pca_ot(H, S, k=1), H, 0.0, "rank 1"),
        (T, H[:, :3], 0.0, "width 3.* 4"),
        (T, H, 0.5, "quantile = 0.5"),
        (T, H, -1e-9, "quantile = -1e-09"),
        (T, H, float("nan"), "quantile = nan"),
    ]:
        with pytest.raises(FitError, match=named):
            restrict_to_support(affine, X, quantile=quantile)
    with pytest.raises(ActivationError, match="9 of 9 rows"):
        restrict_to_support(T, torch.full_like(H, torch.nan))


# --- entropic


def by_hand(T: EntropicMap, x: torch.Tensor) -> torch.Tensor:
    moved = []
    for row in x:
        costs = [(row - y).square().sum() for y in T.targets]
        weights = torch.exp((T.potential - torch.stack(costs)) / T.epsilon)
        moved.append(row + T.strength * (weights @ T.targets / weights.sum() - row))
    return torch.stack(moved)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_the_entropic_map_of_new_points_is_the_softmax_of_the_potential(strength):
    H, S = classes(7, 9, 3, seed=3)
    T, x = fit_entropic_ot(H, S, epsilon=0.3).at(strength), normal(4, 3, seed=4)
    assert_close(T.map(x), by_hand(T, x))
    assert_close(T(x.reshape(2, 2, 3)).reshape(4, 3), T.map(x))


def test_on_its_samples_it_is_the_barycentre_of_pots_plan():
    H, S = classes(15, 20, 8, seed=4)
    T = fit_entropic_ot(H, S, epsilon=0.5)
    cost = torch.cdist(H, S).square()
    masses = (torch.full((n,), 1 / n, dtype=torch.float64) for n in (15, 20))
    plan = ot.sinkhorn(*masses, cost, 0.5 * float(cost.mean()), method="sinkhorn_log", numItermax=10_000)
    assert_close(T.map(H), plan @ S / plan.sum(1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert_close(T.map(H).mean(0), S.mean(0), rtol=1e-6, atol=1e-6)


def test_a_small_epsilon_is_the_assignment():
    S = normal(12, 3, seed=5)
    H = S[torch.randperm(12, generator=torch.Generator().manual_seed(0))] + 0.01
    T = fit_entropic_ot(H, S, epsilon=0.003)
    assert_close(T.map(H), H - 0.01, rtol=0, atol=1e-4)


def test_a_large_common_mean_costs_no_digits():
    H, S = classes(15, 20, 8, seed=6)
    near, far = fit_entropic_ot(H, S), fit_entropic_ot(H + 1e6, S + 1e6)
    assert_close(far.map(H + 1e6) - 1e6, near.map(H), rtol=0, atol=1e-4)


def test_epsilon_is_relative_to_the_mean_squared_distance():
    H, S = classes(7, 9, 3, seed=5)
    mean = float(torch.cdist(H, S).square().mean())
    assert fit_entropic_ot(H, S).epsilon == pytest.approx(0.05 * mean)
    one, ten = fit_entropic_ot(H, S, epsilon=0.4), fit_entropic_ot(10 * H, 10 * S, epsilon=0.4)
    assert_close(ten.map(10 * H), 10 * one.map(H))


def test_entropic_strengths_multiply_and_other_parts_stay():
    H, S = classes(7, 9, 3, seed=6)
    T = fit_entropic_ot(H, S, epsilon=0.3)
    assert (T.strength, T.d_model, T.dtype, T.at(0.5).at(0.5).strength) == (1.0, 3, torch.float64, 0.25)
    single = T.at(0.5).to(torch.float32)
    assert (single.strength, single.epsilon, single.info) == (0.5, T.epsilon, replace(T.info, strength=0.5))
    assert single.dtype == single.potential.dtype == T.to(dtype=torch.float32).dtype == torch.float32
    assert T.to("meta").device.type == T.to("meta").potential.device.type == "meta"
    assert single(H.bfloat16()).dtype == torch.bfloat16
    assert_close(single.map(H.float()).double(), T.at(0.5).map(H), rtol=1e-4, atol=1e-4)
    assert torch.equal(single.map(H), single.map(H.float()).double()), "computed in the type of the map"
    for outside in (-1e-9, 1 + 1e-9, float("nan")):
        with pytest.raises(FitError, match=str(outside)):
            T.at(outside)


def test_what_entropic_transport_cannot_do_is_named():
    H, S = classes(7, 9, 3, seed=7)
    T = fit_entropic_ot(H, S, epsilon=0.3)
    for x, named in [
        (torch.zeros(2, 4), r"\[2, 4\].*width d = 3"),
        (torch.zeros(3, dtype=torch.int32), "int32"),
    ]:
        with pytest.raises(ActivationError, match=named):
            T.map(x)
    for epsilon in (0.0, -1.0, float("nan")):
        with pytest.raises(FitError, match=f"epsilon = {epsilon}"):
            fit_entropic_ot(H, S, epsilon=epsilon)
    with pytest.raises(FitError, match="one point"):
        fit_entropic_ot(torch.ones(3, 2), torch.ones(4, 2))


def test_what_did_not_converge_says_how_far_it_came():
    H, S = classes(7, 9, 3, seed=9)
    with pytest.warns(PoorFitWarning) as caught:
        T = fit_entropic_ot(H, S, epsilon=0.01, iterations=3)
    assert T.info.error_bound > 1e-8
    assert f"{T.info.error_bound:.1e}" in str(caught[0].message)
    assert len(caught) == 1


# --- interchange


def test_interchange_puts_samples_of_the_target_in_the_place_of_others():
    H, S = classes(40, 30, 12, seed=8)
    T = fit_interchange(H, S)
    moved = T.map(H)
    drawn = torch.cdist(moved, S).argmin(dim=1)
    assert_close(moved, S[drawn])
    counts = torch.bincount(drawn, minlength=30)
    assert int((counts > 0).sum()) > 12  # of 30 targets 40 independent draws miss 8 on average
    assert int(counts.max()) <= 8
    assert_close(T.map(H), moved)
    assert not torch.equal(fit_interchange(H, S, seed=1).map(H), moved)
    assert_close(T.at(0.25).map(H), H + 0.25 * (moved - H))


def test_the_draw_does_not_depend_on_scale_or_origin_and_not_on_rounding():
    H, S = classes(40, 30, 12, seed=8)
    moved = fit_interchange(H, S).map(H)
    assert_close(fit_interchange(100 * H + 7, S).map(100 * H + 7), moved)
    in_float = fit_interchange(H, S).to(dtype=torch.float32).map(H.float())
    assert_close(in_float, moved.float())


def test_a_source_that_is_one_point_receives_one_target():
    H, S = torch.ones(3, 4, dtype=torch.float64), normal(5, 4, seed=2)
    assert_close(fit_interchange(H, S).map(H), S[:1].expand(3, -1))
