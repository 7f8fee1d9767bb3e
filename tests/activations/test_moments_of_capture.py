"""Moments streamed from a model are those of its captured activations."""

import pytest
import torch

import ot_lens as otl
from ot_lens.activations import CaptureSettings, capture_shard, moments_of, plan_shards
from ot_lens.activations import moments as module
from ot_lens.errors import ActivationError, HookError
from ot_lens.moments import Moments
from ot_lens.transport import AffineMap
from tests import checkpoints
from tests.test_moments import same

D = 32


@pytest.fixture(scope="module")
def model(llama_folder):
    return otl.load_model(llama_folder)


@pytest.fixture(scope="module")
def prompts():
    return checkpoints.contrast(24)


@pytest.mark.parametrize(("block", "batch_size"), [(1, 6), (7, 4), (256, 6)])
def test_streamed_moments_are_those_of_the_capture(model, prompts, monkeypatch, block, batch_size):
    monkeypatch.setattr(module, "BLOCK", block)
    asked = {"positions": [-1, -2], "layers": [0, 3], "batch_size": batch_size}
    streamed = otl.capture_moments(model, prompts, **asked)
    acts = otl.capture(model, prompts, **asked)
    assert (streamed.layers, streamed.positions, streamed.hook) == ((0, 3), (-1, -2), "resid_pre")
    for layer in (0, 3):
        for at in (-1, -2):
            same(streamed.harmful(layer, at), Moments.of(acts.harmful(layer, at)))
            same(streamed.harmless(layer, at), Moments.of(acts.harmless(layer, at)))
    with pytest.raises(AssertionError):
        same(streamed.harmful(3, -1), Moments.of(acts.harmful(3, -2)))


def test_maps_distances_and_differences_of_streamed_moments(model, prompts):
    streamed, acts = otl.capture_moments(model, prompts), otl.capture(model, prompts)
    H, S = acts.harmful(2), acts.harmless(2)
    torch.testing.assert_close(streamed.mean_difference(2), H.mean(0) - S.mean(0), rtol=1e-10, atol=1e-12)
    for options in ({}, {"shrinkage": "oas"}, {"ridge": 0.1}):
        ours, theirs = streamed.bures_wasserstein(2, **options), otl.bures_wasserstein(H, S, **options)
        assert ours.location == pytest.approx(theirs.location, rel=1e-10)
        assert ours.bures == pytest.approx(theirs.bures, rel=1e-7)
    T = otl.fit_gaussian_ot_of_moments(streamed.harmful(2), streamed.harmless(2))
    torch.testing.assert_close(T(H), otl.fit_gaussian_ot(H, S)(H), rtol=1e-8, atol=1e-8)


def test_moments_of_halves_merge_to_those_of_all(model, prompts):
    plan = plan_shards(model, prompts, CaptureSettings(batch_size=4))
    shards = [(shard, capture_shard(model, prompts, plan, shard)) for shard in plan.shards]
    whole = moments_of(plan, shards)
    halves = moments_of(plan, shards[::2]), moments_of(plan, reversed(shards[1::2]))
    merged = halves[0].merge(halves[1])
    for layer in plan.layers:
        same(merged.harmful(layer), whole.harmful(layer))
        same(merged.harmless(layer), whole.harmless(layer))
    assert merged.harmful(0).n == 24
    assert merged.info == whole.info
    other = otl.capture_moments(model, prompts, layers=[0])
    with pytest.raises(ActivationError, match=r"layers differ: \(0, 1, 2, 3\) and \(0,\)"):
        whole.merge(other)
    with pytest.raises(ActivationError, match="harmless"):
        moments_of(plan, [pair for pair in shards if pair[0].label == "harmful"])


def test_edits_progress_and_unusable_activations(model, prompts):
    reported: list[int] = []
    shift = AffineMap(torch.zeros(D, 0), torch.zeros(D, 0), torch.full((D,), 0.5, dtype=torch.float64))
    plain = otl.capture_moments(model, prompts, layers=[2], progress=reported.append)
    edited = otl.capture_moments(model, prompts, layers=[2], edits={2: shift})
    assert sum(reported) == 48
    torch.testing.assert_close(edited.harmful(2).mean, plain.harmful(2).mean + 0.5, rtol=1e-5, atol=1e-5)
    assert "24 harmful, 24 harmless" in repr(plain)
    with pytest.raises(HookError, match="1 was not captured"):
        plain.harmful(1)
    with pytest.raises(ActivationError, match="limit"):
        otl.capture_moments(model, prompts, limit=0)
    broken = AffineMap(torch.zeros(D, 0), torch.zeros(D, 0), torch.full((D,), float("inf")))
    with pytest.raises(ActivationError, match=r"harmful activations .*NaN or Inf at layer 0"):
        otl.capture_moments(model, prompts, edits={0: broken})
