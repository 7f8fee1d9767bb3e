"""Interventions where a small change to the code hardly shows: bounds, precision, books, whole messages."""

from pathlib import Path

import pytest
import torch
from torch import nn

import ot_lens as otl
from ot_lens.errors import HookError
from ot_lens.models import ActiveFlag, backend, claim, release
from ot_lens.transport import AffineMap, EntropicMap
from tests import checkpoints
from tests.trust.leak_checks import hook_tables, leaked, random_map

D = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def model(folder):
    return otl.load_model(folder)


@torch.no_grad()
def logits(model, ids: torch.Tensor, **options) -> torch.Tensor:
    return model.hf_model(input_ids=ids, **options).logits


def test_a_prompt_longer_than_the_residual_stream_is_wide_is_edited_to_its_end(model):
    edit, border = random_map(1), 40
    ids = torch.arange(50).remainder(40)[None] + 15
    position = torch.arange(50)[None, :, None]
    point = backend(model).hook_point(1, "resid_pre")
    for tokens, chosen in (("prompt", position < border), ("generated", position >= border)):
        own = edit.to(torch.float32)

        def by_hand(x: torch.Tensor, hook: object, own=own, chosen=chosen) -> torch.Tensor:
            return torch.where(chosen, own(x), x)

        point.add_hook(by_hand)
        expected = logits(model, ids)
        point.remove_hooks()
        with otl.intervene(model, {1: edit}, tokens, prompt_length=border):
            found = logits(model, ids)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_may_be_of_one_token(model):
    edit, ids = random_map(1), torch.tensor([[1, 15, 16]])
    with otl.intervene(model, {1: edit}, "prompt", prompt_length=1):
        found = logits(model, ids)
    with otl.intervene(model, {1: edit}, "last", prompt_length=1):
        assert torch.equal(logits(model, ids), found)
    with otl.intervene(model, {1: edit}, "prompt", prompt_length=2):
        assert not torch.allclose(logits(model, ids), found, atol=1e-3)


def test_rows_that_a_mask_does_not_reach_to_their_end_wait_for_the_call_that_does(model):
    """The first call's mask ends with padding, as if the prompt did; that is decided by the whole one."""
    ids = torch.tensor([[1, 15, 16, 17]])
    known = torch.tensor([[1, 1, 0, 0]])
    plain = logits(model, ids, attention_mask=known)
    with otl.intervene(model, {1: random_map(1)}, "last", prompt_length=6):
        assert torch.equal(logits(model, ids, attention_mask=known), plain)


def test_scope_all_watches_no_calls(model):
    before = hook_tables(model)
    with otl.intervene(model, {1: random_map(1)}, "all"):
        found = leaked(before, hook_tables(model))
    name = "blocks.1.hook_resid_pre"
    assert found == [f"{name}._forward_hooks", f"{name}.fwd_hooks"]


@pytest.mark.parametrize(
    ("dtype", "computed"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_a_map_is_computed_in_the_activations_precision_and_in_float32_at_least(
    folder, dtype, computed, monkeypatch
):
    """Entropic maps compute in the precision they are kept in."""
    seen, mapped = [], EntropicMap.map
    monkeypatch.setattr(
        EntropicMap, "map", lambda edit, x: (seen.append(edit.targets.dtype), mapped(edit, x))[1]
    )
    generator = torch.Generator().manual_seed(0)
    H, S = (torch.randn(20, D, generator=generator, dtype=torch.float64) for _ in range(2))
    with otl.intervene(otl.load_model(folder, dtype=dtype), {1: otl.fit_entropic_ot(H, S)}) as model:
        logits(model, torch.tensor([[1, 15, 16]]))
    assert seen == [getattr(torch, computed)]


def test_an_intervention_edits_nothing_until_it_is_switched_on():
    flag = ActiveFlag()
    assert flag.is_on is False
    flag.on()
    assert flag.is_on is True
    flag.off()
    assert flag.is_on is False


def test_what_was_never_noted_is_released_without_complaint():
    model = nn.Linear(1, 1)
    release(model, ActiveFlag())
    flag = ActiveFlag()
    claim(model, flag)
    for _ in range(2):
        release(model, flag)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"edits": {1: AffineMap.identity(D)}, "tokens": "some"}, "'some'.*all, prompt, last, generated"),
        ({"edits": {(1, "resid_mid"): AffineMap.identity(D)}}, "resid_mid"),
        ({"edits": {1: AffineMap.identity(D + 1)}}, "layer 1 has width 33, the model 32"),
    ],
)
def test_a_site_or_scope_that_cannot_be_edited_is_named(model, options, named):
    with pytest.raises(HookError, match=named):
        otl.intervene(model, **options)
