"""Boundaries of the masks and of entropic transport: edges of the support, strengths, types, messages."""

import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, PoorFitWarning, RunFolderError
from ot_lens.transport import (
    EntropicMap,
    FitInfo,
    SupportMask,
    fit_entropic_ot,
    fit_linear_act,
    fit_mean_shift,
    fit_pca_ot,
    restrict_to_support,
)
from ot_lens.transport.entropic import _squared_distances
from tests.generators.gaussians import classes, normal


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


# --- masks


def test_the_edges_of_the_support_belong_to_it():
    H = column(0.0, 1.0, 4.0)
    masked = restrict_to_support(fit_mean_shift(H, H + 10), H)
    assert (masked.low.tolist(), masked.high.tolist()) == ([0.0], [4.0])
    x = column(-0.001, 0.0, 2.0, 4.0, 4.001)
    assert_close(masked.map(x), column(-0.001, 10.0, 12.0, 14.0, 4.001))
    assert torch.equal(masked(x), masked.map(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_outermost_samples_are_inside_whatever_they_are_rounded_to(dtype):
    H, _ = classes(9, 9, 40, seed=12)
    masked = restrict_to_support(fit_mean_shift(H, H + 10), H)
    moved = masked.map(H.to(dtype)) - H.to(dtype)
    assert bool((moved > 9).all())


def test_quantiles_are_cut_off_on_either_side():
    H = torch.arange(11, dtype=torch.float64).unsqueeze(1)
    masked = restrict_to_support(fit_mean_shift(H, H + 1), H, quantile=0.2)
    assert_close(torch.cat([masked.low, masked.high]), torch.tensor([2.0, 8.0]).double())
    narrow = restrict_to_support(fit_mean_shift(H, H + 1), H, quantile=0.499)
    assert float(narrow.high - narrow.low) == pytest.approx(0.02)


def test_a_mask_is_as_wide_and_of_the_type_of_its_map():
    H, S = classes(9, 9, 4, seed=0)
    masked = restrict_to_support(fit_linear_act(H, S).labelled(layer=3), H)
    assert masked.d_model == 4
    assert masked.info == masked.affine.info
    half = masked.at(0.5)
    assert (half.info.strength, half.info.layer) == (0.5, 3)
    assert half.low is masked.low
    assert half.high is masked.high
    for moved in (masked.to(torch.float32), masked.to(dtype=torch.float32)):
        parts = (moved.affine.bias, moved.affine.scale, moved.low, moved.high)
        assert {part.dtype for part in parts} == {moved.dtype} == {torch.float32}
    for moved in (masked.to("meta"), masked.to(device="meta")):
        parts = (moved.affine.bias, moved.affine.scale, moved.low, moved.high)
        assert {part.device.type for part in parts} == {"meta"}
        assert moved.dtype == torch.float64


@pytest.mark.parametrize("fitted", [fit_mean_shift, fit_linear_act])
def test_a_stored_mask_keeps_every_part(fitted, tmp_path):
    H, S = classes(9, 9, 4, seed=1)
    masked = restrict_to_support(fitted(H, S).labelled(layer=3), H)
    masked.save(str(tmp_path / "m"))
    back = SupportMask.load(str(tmp_path / "m"))
    assert back.info == masked.info
    assert (back.affine.scale is None) == (masked.affine.scale is None)
    for part, stored in (
        (masked.low, back.low),
        (masked.high, back.high),
        (masked.affine.bias, back.affine.bias),
    ):
        assert torch.equal(part, stored)
    assert torch.equal(back.map(H), masked.map(H))


@pytest.mark.parametrize("missing", ["U", "V", "bias", "low", "high"])
def test_a_mask_with_a_part_missing_is_refused(missing, tmp_path):
    from ot_lens.transport.storage import write_tensors

    parts = {name: torch.zeros(2, 1) for name in ("U", "V", "bias", "low", "high") if name != missing}
    write_tensors(tmp_path / "m", parts, "SupportMask", FitInfo())
    with pytest.raises(RunFolderError) as caught:
        SupportMask.load(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)


def test_what_cannot_be_masked_is_said():
    H, S = classes(9, 9, 4, seed=2)
    T = fit_linear_act(H, S)
    for affine, X, quantile, words in [
        (
            fit_pca_ot(H, S, k=1),
            H,
            0.0,
            "a support mask is coordinate-wise, this map has rank 1: use fit_linear_act",
        ),
        (T, H[:, :3], 0.0, "the samples have width 3, the map 4"),
        (T, H, 0.5, "quantile = 0.5 is outside [0, 0.5)"),
        (T, H, -1e-9, "quantile = -1e-09 is outside [0, 0.5)"),
        (T, H, float("nan"), "quantile = nan is outside [0, 0.5)"),
    ]:
        with pytest.raises(FitError) as caught:
            restrict_to_support(affine, X, quantile=quantile)
        assert words.lower() in str(caught.value).lower()
    with pytest.raises(ActivationError, match=r"^H has NaN or Inf in 9 of 9 rows"):
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
    assert torch.equal(T(x), T.map(x))
    assert_close(T.map(x.reshape(2, 2, 3)).reshape(4, 3), T.map(x))


def test_epsilon_is_relative_to_the_mean_squared_distance():
    H, S = classes(7, 9, 3, seed=5)
    mean = float(torch.cdist(H, S).square().mean())
    assert fit_entropic_ot(H, S).epsilon == pytest.approx(0.05 * mean)
    assert fit_entropic_ot(H, S, epsilon=0.4).epsilon == pytest.approx(0.4 * mean)
    assert_close(
        fit_entropic_ot(10 * H, 10 * S, epsilon=0.4).map(10 * H),
        10 * fit_entropic_ot(H, S, epsilon=0.4).map(H),
    )


def test_entropic_strengths_multiply_and_other_parts_stay():
    H, S = classes(7, 9, 3, seed=6)
    T = fit_entropic_ot(H, S, epsilon=0.3)
    assert (T.strength, T.d_model, T.dtype) == (1.0, 3, torch.float64)
    twice = T.at(0.5).at(0.5)
    assert twice.strength == 0.25
    for moved in (twice, T.to(torch.float32), T.to("cpu", torch.float32), T.to(dtype=torch.float64)):
        assert (moved.epsilon, moved.info) == (T.epsilon, T.info)
    single = T.at(0.5).to(torch.float32)
    assert (single.strength, single.potential.dtype, single.targets.dtype) == (
        0.5,
        torch.float32,
        torch.float32,
    )
    assert T.to(dtype=torch.float32).dtype == torch.float32
    assert T.to("meta").device.type == T.to("meta").potential.device.type == "meta"
    assert_close(single.map(H.float()).double(), T.at(0.5).map(H), rtol=1e-4, atol=1e-4)
    assert T.at(0.0).map(H).allclose(H)
    rounded = T.to(torch.float32)
    assert torch.equal(rounded.map(H), rounded.map(H.float()).double()), "computed in the type of the map"
    for outside in (-1e-9, 1 + 1e-9, float("nan")):
        with pytest.raises(FitError) as caught:
            T.at(outside)
        assert f"strength = {outside}" in str(caught.value)


def test_what_an_entropic_map_cannot_move_is_named():
    H, S = classes(7, 9, 3, seed=7)
    T = fit_entropic_ot(H, S, epsilon=0.3)
    for x, words in [
        (torch.zeros(2, 4), "[2, 4] torch.float32"),
        (torch.zeros(3, dtype=torch.int32), "[3] torch.int32"),
    ]:
        with pytest.raises(ActivationError) as caught:
            T.map(x)
        assert words in str(caught.value)


def test_what_has_no_entropic_map_is_said():
    H, S = classes(7, 9, 3, seed=8)
    for epsilon in (0.0, -1.0, float("nan")):
        with pytest.raises(FitError) as caught:
            fit_entropic_ot(H, S, epsilon=epsilon)
        assert f"epsilon = {epsilon}" in str(caught.value)
    with pytest.raises(FitError) as caught:
        fit_entropic_ot(torch.ones(3, 2), torch.ones(4, 2))
    assert "one point" in str(caught.value)


def test_what_did_not_converge_says_how_far_it_came():
    H, S = classes(7, 9, 3, seed=9)
    with pytest.warns(PoorFitWarning) as caught:
        T = fit_entropic_ot(H, S, epsilon=0.01, iterations=3)
    error = T.info.error_bound
    assert error > 1e-8
    assert [str(warning.message) for warning in caught] == [
        f"Sinkhorn stopped at marginal error {error:.1e}: choose a larger epsilon or more iterations"
    ]


def test_squared_distances_are_never_negative():
    X = 1e3 * normal(6, 4, seed=10)
    distances = _squared_distances(X, X)
    assert bool((distances >= 0).all())
    assert_close(distances, torch.cdist(X, X).square(), rtol=1e-9, atol=1e-6)
    near = normal(6, 4, seed=11)
    far = 1e6 * normal(4, seed=13)
    assert_close(
        _squared_distances(near + far, near + far), torch.cdist(near, near).square(), rtol=0, atol=1e-7
    )
    assert_close(
        _squared_distances(near, near + 1e-3).diagonal(), torch.full((6,), 4e-6).double(), rtol=1e-6, atol=0
    )
