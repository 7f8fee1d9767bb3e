import ot
import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, PoorFitWarning, RunFolderError
from ot_lens.transport import (
    AffineMap,
    SupportMask,
    fit_entropic_ot,
    fit_linear_act,
    fit_pca_ot,
    restrict_to_support,
)
from tests.generators.gaussians import classes, normal


def test_the_mask_acts_inside_the_source_only():
    H, S = classes(20, 20, 6, seed=0)
    T = fit_linear_act(H, S)
    masked = restrict_to_support(T, H)
    assert_close(masked.map(H), T.map(H))
    far = H.amax(0) + 1
    assert torch.equal(masked.map(far), far)
    mixed = torch.where(torch.arange(6) < 3, far, H[0])
    assert torch.equal(masked.map(mixed), torch.where(torch.arange(6) < 3, far, T.map(H[0])))


def test_the_mask_may_cut_the_tails_and_keeps_dtype_and_strength():
    H, S = classes(101, 20, 6, seed=1)
    masked = restrict_to_support(fit_linear_act(H, S), H, quantile=0.1)
    moved = (masked.map(H) != H).double().mean(0)
    assert_close(moved, torch.full((6,), 81 / 101, dtype=torch.float64))
    half = masked.to(torch.float32).at(0.5)
    assert half(H.half()).dtype == torch.float16
    assert half.dtype == torch.float32
    assert half.device == H.device
    inside = (half.low <= H) & (half.high >= H)
    assert_close(half.map(H)[inside], (0.5 * (H + masked.map(H)))[inside], rtol=1e-5, atol=1e-5)


def test_a_stored_mask_comes_back(tmp_path):
    H, S = classes(20, 20, 6, seed=2)
    masked = restrict_to_support(fit_linear_act(H, S), H)
    masked.save(tmp_path / "m.safetensors")
    assert torch.equal(SupportMask.load(tmp_path / "m.safetensors").map(H), masked.map(H))
    with pytest.raises(RunFolderError, match="not a stored AffineMap"):
        AffineMap.load(tmp_path / "m.safetensors")


def test_bad_masks_are_named():
    H, S = classes(20, 20, 6, seed=3)
    T = fit_linear_act(H, S)
    with pytest.raises(FitError, match="rank 2"):
        restrict_to_support(fit_pca_ot(H, S, k=2), H)
    with pytest.raises(FitError, match=r"quantile = 0.5"):
        restrict_to_support(T, H, quantile=0.5)
    with pytest.raises(FitError, match="width 3"):
        restrict_to_support(T, H[:, :3])


def test_entropic_map_on_its_samples_is_the_barycentre_of_pots_plan():
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


def test_entropic_strength_dtype_and_errors():
    H, S = classes(15, 20, 8, seed=7)
    T = fit_entropic_ot(H, S)
    assert_close(T.at(0.5).map(H), 0.5 * (H + T.map(H)))
    assert T.to(torch.float32)(H.bfloat16()).dtype == torch.bfloat16
    assert T.to(torch.float32).dtype == torch.float32
    assert T.device == H.device
    assert T.map(H.reshape(3, 5, 8)).shape == (3, 5, 8)
    with pytest.raises(ActivationError, match="width 8"):
        T.map(H[:, :2])
    with pytest.raises(FitError, match="outside"):
        T.at(2.0)
    with pytest.raises(FitError, match="epsilon = 0"):
        fit_entropic_ot(H, S, epsilon=0.0)
    with pytest.raises(FitError, match="one point"):
        fit_entropic_ot(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.warns(PoorFitWarning, match="more iterations"):
        fit_entropic_ot(H, S, epsilon=0.001, iterations=2)
