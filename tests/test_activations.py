"""Capture: the correct numbers from both kinds of hooked model, from caches, and under edits."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

import ot_lens as otl
from ot_lens.activations import Activations
from ot_lens.errors import ActivationError, HookError, RunFolderError
from ot_lens.models import backend, batches, encode, pad_left
from ot_lens.prompts import Contrast, Prompt
from ot_lens.transport import AffineMap
from tests import checkpoints

D = 32


@pytest.fixture(scope="module")
def model(llama_folder: Path):
    return otl.load_model(llama_folder)


@pytest.fixture(scope="module")
def prompts() -> Contrast:
    return checkpoints.contrast(7)


def hidden_states(model, prompt: Prompt) -> list[torch.Tensor]:
    """Hugging Face's hidden states of one prompt, without padding."""
    batch = next(batches(backend(model), [prompt], 1))
    with torch.no_grad():
        return model.hf_model(batch.tokens, output_hidden_states=True).hidden_states


def test_resid_pre_is_hugging_face_s_hidden_state(model, prompts):
    acts = otl.capture(model, prompts, positions=[-1, -3], batch_size=3)
    for row, prompt in enumerate(prompts.harmful):
        states = hidden_states(model, prompt)
        for layer in range(4):
            for position in (-1, -3):
                expected = states[layer][0, position].double()
                torch.testing.assert_close(acts.harmful(layer, position)[row], expected, rtol=1e-4, atol=1e-5)


def test_batch_size_and_order_change_nothing(model, prompts):
    one, many = otl.capture(model, prompts, batch_size=1), otl.capture(model, prompts, batch_size=64)
    torch.testing.assert_close(one.stacked("harmful"), many.stacked("harmful"), rtol=1e-4, atol=1e-5)
    reordered = Contrast(prompts.harmful[::-1], prompts.harmless)
    reversed_ = otl.capture(model, reordered, batch_size=64)
    torch.testing.assert_close(
        reversed_.stacked("harmful").flip(1), many.stacked("harmful"), rtol=1e-4, atol=1e-5
    )


def test_the_pass_ends_at_the_highest_requested_layer(model, prompts):
    ran = []
    handle = model.hf_model.model.layers[2].register_forward_hook(lambda *_: ran.append(1))
    acts = otl.capture(model, prompts, layers=[0, 1])
    assert not ran
    otl.capture(model, prompts, layers=[3])
    assert ran
    handle.remove()
    assert acts.layers == (0, 1)


def test_from_caches_with_masks_and_lists(model, prompts):
    expected = otl.capture(model, prompts, positions=[-1, -2])
    caches: dict[str, list] = {"harmful": [], "harmless": []}
    masks: dict[str, list] = {"harmful": [], "harmless": []}
    for label, group in prompts:
        for prompt in group[:4], group[4:]:
            tokens, mask = pad_left(encode(backend(model), prompt), pad=0)
            with torch.no_grad():
                _, cache = model.run_with_cache(tokens, attention_mask=mask)
            caches[label].append(cache)
            masks[label].append(mask)
    acts = Activations.from_caches(
        harmful=caches["harmful"],
        harmless=caches["harmless"],
        positions=[-1, -2],
        harmful_mask=masks["harmful"],
        harmless_mask=masks["harmless"],
    )
    for position in (-1, -2):
        torch.testing.assert_close(
            acts.stacked("harmful", position), expected.stacked("harmful", position), rtol=1e-4, atol=1e-5
        )


def test_from_caches_takes_activation_caches_of_right_padded_runs(llama_folder):
    bridge = otl.load_model(llama_folder, hooks="full")
    tokens = torch.tensor([[1, 15, 16, 17], [1, 18, 0, 0]])
    mask = (tokens != 0).long()
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens, attention_mask=mask)
        _, alone = bridge.run_with_cache(tokens[1:, :2])
    acts = Activations.from_caches(
        harmful=cache, harmless=cache, positions=[-1], harmful_mask=mask, harmless_mask=mask
    )
    expected = alone["blocks.2.hook_resid_pre"][0, 1].double()
    torch.testing.assert_close(acts.harmful(2)[1], expected, rtol=1e-4, atol=1e-5)
    unmasked = Activations.from_caches(harmful=cache, harmless=cache)
    assert not torch.allclose(unmasked.harmful(2)[1], expected, atol=1e-2)  # the mask made the difference


def test_capture_does_not_share_memory_with_the_model(model, prompts):
    acts = otl.capture(model, prompts)
    before = acts.stacked("harmful").clone()
    with torch.no_grad():
        model(torch.tensor([[1, 15, 16]]))
    assert torch.equal(acts.stacked("harmful"), before)
    assert not acts.data["harmful"].requires_grad


def test_capture_under_an_edit_reads_the_edited_stream(model, prompts):
    shift = torch.full((D,), 0.5, dtype=torch.float64)
    edit = AffineMap(torch.zeros(D, 0), torch.zeros(D, 0), shift)
    plain = otl.capture(model, prompts)
    edited = otl.capture(model, prompts, edits={2: edit}, tokens="last")
    assert torch.equal(edited.harmful(1), plain.harmful(1))
    torch.testing.assert_close(edited.harmful(2), plain.harmful(2) + 0.5, rtol=1e-5, atol=1e-5)
    assert (edited.harmful(3) - plain.harmful(3)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [9]}, "9 does not exist.*0-3"),
        ({"layers": []}, "layers is empty"),
        ({"layers": "some"}, "'some'"),
        ({"hook": "resid"}, "no hook point 'resid'"),
        ({"positions": [0]}, "negative integers"),
        ({"positions": []}, "negative integers"),
        ({"positions": [-90]}, "shortest has"),
        ({"positions": "frist"}, "no named position 'frist': choose one of last, post_instruction"),
        ({"positions": [-1, -1]}, "distinct"),
        ({"positions": [True]}, "negative integers"),
        ({"reduce": "median"}, "no reduction of positions 'median': choose one of mean"),
    ],
)
def test_bad_captures_are_named(model, prompts, options, message):
    with pytest.raises(HookError, match=message):
        otl.capture(model, prompts, **options)


def test_samples_that_were_not_captured_or_are_not_finite(model, prompts):
    acts = otl.capture(model, prompts, layers=[0, 2], positions=[-1, -2])
    with pytest.raises(HookError, match=r"1 was not captured.*0, 2"):
        acts.harmful(1, -1)
    with pytest.raises(HookError, match="-1, -2"):
        acts.harmful(0)
    with pytest.raises(HookError, match="-5 was not captured"):
        acts.harmful(0, -5)
    data = {label: values.clone() for label, values in acts.data.items()}
    data["harmful"][1, 3] = float("inf")
    broken = Activations(data, acts.layers, acts.positions, acts.hook)
    with pytest.raises(ActivationError, match="1 of 7 harmful activations at layer 2"):
        broken.harmful(2, -1)
    with pytest.raises(ActivationError, match="harmless"):
        Activations({"harmful": data["harmful"]}, acts.layers, acts.positions, acts.hook)


def test_a_model_that_overflows_is_an_error_of_every_capture(llama_folder, prompts, tmp_path):
    """From layer 1 on no number of float16 holds the stream; layer 0 is whole."""
    model = otl.load_model(llama_folder, dtype="float16")
    with torch.no_grad():
        model.hf_model.model.layers[0].mlp.down_proj.weight.mul_(2e5)
    assert otl.capture(model, prompts, layers=[0]).n_harmful == len(prompts.harmful)
    for captured in (otl.capture, otl.capture_moments, partial(otl.capture, store=tmp_path / "store")):
        with pytest.raises(ActivationError, match=r"harmful.*NaN or Inf at layer 1.*bfloat16"):
            captured(model, prompts)
    with pytest.raises(RunFolderError, match="unfinished"):
        otl.load_activations(tmp_path / "store")
    cache = {"blocks.0.hook_resid_pre": torch.full((2, 5, D), math.nan)}
    with pytest.raises(ActivationError, match=r"2 of 2 harmful .*layer 0"):
        Activations.from_caches(harmful=cache, harmless=cache)


def test_caches_without_the_hook_or_with_a_foreign_mask(model):
    x = torch.zeros(2, 5, D)
    with pytest.raises(HookError, match=r"share no blocks\.\*\.hook_resid_pre"):
        Activations.from_caches(harmful={"blocks.0.hook_attn_out": x}, harmless={"blocks.0.hook_attn_out": x})
    cache = {"blocks.0.hook_resid_pre": x}
    with pytest.raises(ActivationError, match="does not match"):
        Activations.from_caches(harmful=cache, harmless=cache, harmful_mask=torch.ones(2, 4))


@pytest.mark.parametrize("as_list", [False, True])
def test_from_caches_reads_arrays_of_numpy(as_list):
    """As other libraries keep them: caches and masks as arrays, alone or one per batch."""
    x = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]])
    cache, padding = {"blocks.0.hook_resid_pre": x.numpy()}, mask.numpy()
    given = ([cache], [padding]) if as_list else (cache, padding)
    acts = Activations.from_caches(
        harmful=given[0], harmless=given[0], harmful_mask=given[1], harmless_mask=given[1]
    )
    assert torch.equal(acts.harmful(0), x[[0, 1, 2], [2, 4, 3]].double())


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        ([[1, 1], [0, 0]], "Row 1"),  # its last real token would be the last column
        ([[0.0, 0.0], [0.0, -1e9]], "other values"),  # added to attention scores: 0 marks real tokens
        ([[1, 1, 1], [1, 1, 1]], "does not match"),
        (["real", "padding"], "list"),
    ],
)
def test_from_caches_refuses_masks_that_mark_nothing(mask, named):
    cache = {"blocks.0.hook_resid_pre": torch.zeros(2, 2, D)}
    masks = {"harmful_mask": [mask], "harmless_mask": [mask]}
    with pytest.raises(ActivationError, match=named):
        Activations.from_caches(harmful=[cache], harmless=[cache], **masks)
