"""Positions by index, by name and as a mean, from a model and from caches."""

import pytest
import torch

import ot_lens as otl
from ot_lens.activations import Activations
from ot_lens.errors import HookError
from ot_lens.models import backend, encode, pad_left
from ot_lens.samples import resolve_position
from tests import checkpoints


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request, tmp_path_factory):
    return otl.load_model(checkpoints.write(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def prompts():
    return checkpoints.contrast(5)


def test_post_instruction_positions_are_those_after_every_instruction(model, prompts):
    found = otl.resolve_positions(model, "post_instruction")
    rows = encode(backend(model), [p.text for _, group in prompts for p in group])
    assert found == tuple(range(-len(found), 0))
    for position in found:
        assert len({row[position] for row in rows}) == 1, "of the template"
    assert len({row[-len(found) - 1] for row in rows}) > 1, "of the instructions"


@pytest.mark.parametrize("hook", ["resid_pre", "mlp_out"])
def test_named_positions_are_their_indices(model, prompts, hook):
    count = len(otl.resolve_positions(model, "post_instruction"))
    named = otl.capture(model, prompts, hook=hook, positions="post_instruction", layers=[1, 3])
    by_index = otl.capture(model, prompts, hook=hook, positions=list(range(-count, 0)), layers=[1, 3])
    last = otl.capture(model, prompts, hook=hook, positions="last", layers=[1, 3])
    assert named.positions == by_index.positions == tuple(range(-count, 0))
    assert torch.equal(named.data["harmful"], by_index.data["harmful"])
    assert torch.equal(last.harmful(3), named.harmful(3, -1))
    assert torch.equal(last.harmful(3, "last"), last.harmful(3, -1))
    assert resolve_position(named, "last") == -1


def test_the_mean_is_the_mean_of_the_positions(model, prompts, tmp_path):
    at = [-1, -2, -4]
    apart = otl.capture(model, prompts, positions=at)
    expected = torch.stack([apart.stacked("harmful", p) for p in at]).mean(0)
    for acts in (
        otl.capture(model, prompts, positions=at, reduce="mean"),
        otl.capture(model, prompts, positions=at, reduce="mean", store=tmp_path / "a"),
        otl.load_activations(tmp_path / "a"),
    ):
        assert acts.positions == ("mean",)
        torch.testing.assert_close(acts.stacked("harmful"), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(acts.harmful(2, "mean"), acts.harmful(2))
        with pytest.raises(HookError, match="-1 was not captured"):
            acts.harmful(2, -1)
    assert not torch.allclose(expected, apart.stacked("harmful", -1), atol=1e-2)
    # Rounded once, not at every sum.
    half = otl.capture(model, prompts, positions=at, reduce="mean", dtype="bfloat16")
    assert torch.equal(half.stacked("harmful"), acts.stacked("harmful").bfloat16().double())


def test_a_mean_goes_through_maps_tables_and_moments(model, prompts):
    acts = otl.capture(model, prompts, positions="post_instruction", reduce="mean", layers=[1, 2])
    assert set(otl.fit_all(acts, "mean_shift")) == {1, 2}
    table = otl.diagnose(acts, permutations=5, bootstrap=5)
    assert set(table["position"]) == {"mean"}
    moments = otl.capture_moments(model, prompts, positions="post_instruction", reduce="mean", layers=[1, 2])
    torch.testing.assert_close(moments.harmful(1).mean, acts.harmful(1).mean(0), rtol=1e-10, atol=1e-12)
    with pytest.raises(HookError, match="without reduce"):
        otl.score_directions(model, prompts, acts, refusal_tokens=[1])


def test_caches_take_names_means_and_types(model, prompts):
    caches, masks = {}, {}
    for label, group in prompts:
        tokens, masks[label] = pad_left(encode(backend(model), group), pad=0)
        with torch.no_grad():
            _, caches[label] = model.run_with_cache(tokens, attention_mask=masks[label])
    given = {**caches, "harmful_mask": masks["harmful"], "harmless_mask": masks["harmless"]}
    at = otl.resolve_positions(model, "post_instruction")
    mean = Activations.from_caches(**given, positions=at, reduce="mean", dtype="bfloat16")
    captured = otl.capture(model, prompts, positions=at, reduce="mean")
    assert mean.dtype == torch.bfloat16
    assert mean.positions == ("mean",)
    torch.testing.assert_close(mean.stacked("harmless"), captured.stacked("harmless"), rtol=1e-2, atol=1e-2)
    last = Activations.from_caches(**given, positions="last")
    assert last.positions == (-1,)
    with pytest.raises(HookError, match=r"resolve_positions\(model, 'post_instruction'\)"):
        Activations.from_caches(**given, positions="post_instruction")


def test_a_template_with_nothing_after_the_instruction_is_refused(model, prompts):
    template = model.tokenizer.chat_template
    try:
        model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        with pytest.raises(HookError, match="nothing after the instruction"):
            otl.capture(model, prompts, positions="post_instruction")
    finally:
        model.tokenizer.chat_template = template
