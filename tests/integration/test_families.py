"""Real architectures, saved and loaded as users do: logits, hidden states, rendering, answers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import ot_lens as otl
from ot_lens.errors import ActivationError, PromptError
from ot_lens.models import backend, encode, evaluating, model_record, render
from ot_lens.transport import AffineMap, fit_all
from tests import checkpoints, families

pytestmark = pytest.mark.usefixtures("mixed_lengths")

PROMPTS = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11"]
SYSTEM = "Answer in rhymes."


@pytest.fixture(scope="module", params=families.FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def family(name: str) -> families.Family:
    return families.FAMILIES[name]


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write(tmp_path_factory.mktemp(name), name)


@pytest.fixture(scope="module", params=["residual", "full"])
def model(request: pytest.FixtureRequest, folder: Path):
    return otl.load_model(folder, hooks=request.param)


def test_logits_and_hidden_states_are_hugging_face_s(folder, model):
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    served = backend(model)
    for prompt in PROMPTS[:2]:
        batch = checkpoints.one_batch(model, [prompt])
        with evaluating(served.model):
            expected = plain(batch.tokens, output_hidden_states=True)
            found = served.logits(batch.tokens, batch.mask)
        torch.testing.assert_close(found, expected.logits, rtol=1e-4, atol=1e-4)
        contrast = otl.Contrast((otl.Prompt(prompt),), (otl.Prompt(prompt),))
        before, after = (otl.capture(model, contrast, hook=h) for h in ("resid_pre", "resid_post"))
        for layer in range(served.n_layers):
            state = expected.hidden_states[layer][0, -1].double()
            torch.testing.assert_close(before.harmful(layer)[0], state, rtol=1e-4, atol=1e-4)
            if layer:
                torch.testing.assert_close(after.harmful(layer - 1)[0], state, rtol=1e-4, atol=1e-4)


def test_the_stream_adds_up(model):
    contrast = checkpoints.contrast(2)
    parts = {
        h: otl.capture(model, contrast, hook=h).stacked("harmful")
        for h in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    }
    middle = parts["resid_pre"] + parts["attn_out"]
    torch.testing.assert_close(middle, parts["resid_mid"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(middle + parts["mlp_out"], parts["resid_post"], rtol=1e-4, atol=1e-4)


def test_the_template_is_rendered_once_and_no_second_bos_is_added(folder, family, model):
    served = backend(model)
    (text,), (ids,) = render(served, ["w1 w2"]), encode(served, ["w1 w2"])
    assert served.tokenizer.decode(ids) == text
    assert text.endswith(f"w1 w2{family.suffix}")
    assert (family.own_system or "") in text
    if family.special is not families.QWEN:  # Qwen has no BOS; the others' tokenizers would add one
        assert ids.count(served.tokenizer.bos_token_id) == 1
        assert served.tokenizer("w1")["input_ids"][0] == served.tokenizer.bos_token_id


def test_left_padding_agrees_with_single_prompts(model):
    together = otl.complete(model, PROMPTS, max_new_tokens=6)
    assert together == [otl.complete(model, [p], max_new_tokens=6)[0] for p in PROMPTS]
    assert together == otl.complete(model, PROMPTS, max_new_tokens=6, use_cache=False)
    batch = checkpoints.one_batch(model, PROMPTS)
    assert not bool(batch.mask.all())
    served = backend(model)
    with evaluating(served.model):
        padded = served.logits(batch.tokens, batch.mask, keep=1)[:, -1]
    alone = torch.cat([otl.next_token_logprobs(model, [p]) for p in PROMPTS])
    torch.testing.assert_close(padded.double().log_softmax(-1), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hooks", ["residual", "full"])
def test_a_system_prompt_is_effective_and_recorded(folder, family, hooks):
    plain = otl.load_model(folder, hooks=hooks)
    record = model_record(plain)
    assert record["template_adds_system_turn"] == (family.own_system is not None)
    assert record["system_prompt"] == ("none" if family.own_system is None else "template's own")
    model = otl.load_model(folder, hooks=hooks, system_prompt=SYSTEM)
    if family.system == "refuses":
        with pytest.raises(PromptError, match="refuses the system prompt"):
            render(backend(model), PROMPTS)
        return
    assert model_record(model)["system_prompt"]["length"] == len(SYSTEM)
    text = render(backend(model), PROMPTS)[0]
    assert text.count(SYSTEM) == 1
    assert (family.own_system or "Llama dates") not in text or "llama3" in str(folder)
    assert not torch.equal(otl.next_token_logprobs(model, PROMPTS), otl.next_token_logprobs(plain, PROMPTS))
    assert SYSTEM not in render(backend(plain), PROMPTS)[0]


def test_an_edit_acts_and_the_identity_does_not(model):
    acts = otl.capture(model, checkpoints.contrast(8))
    maps = fit_all(acts, "mean_shift")
    served = backend(model)
    assert set(maps) == set(range(served.n_layers))
    before = otl.next_token_logprobs(model, PROMPTS)
    with otl.intervene(model, {2: maps[2]}, "last"):
        during = otl.next_token_logprobs(model, PROMPTS)
    assert (during - before).abs().max() > 1e-3
    identity = AffineMap.identity(served.d_model)
    with otl.intervene(model, dict.fromkeys(range(served.n_layers), identity)):
        assert torch.equal(otl.next_token_logprobs(model, PROMPTS), before)
    assert torch.equal(otl.next_token_logprobs(model, PROMPTS), before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_maps_are_computed_in_float32(folder, dtype):
    """An edited stream is the map's image in float32, rounded once."""
    model = otl.load_model(folder, dtype=dtype)
    contrast = checkpoints.contrast(4)
    plain = otl.capture(model, contrast)
    generator = torch.Generator().manual_seed(0)
    d = backend(model).d_model
    U, V = (torch.randn(d, 2, generator=generator) / 4 for _ in range(2))
    edit = AffineMap(U, V, torch.randn(d, generator=generator))
    edited = otl.capture(model, contrast, edits={1: edit}, tokens="last", layers=[1])
    image = edit.map(plain.harmful(1).float()).to(getattr(torch, dtype))
    assert torch.equal(edited.harmful(1), image.double())
    with otl.intervene(model, {1: edit}):
        assert len(otl.complete(model, PROMPTS, max_new_tokens=3)) == len(PROMPTS)


def test_an_overflow_of_half_precision_is_named(folder):
    model = otl.load_model(folder, dtype="float16")
    d = backend(model).d_model
    far = AffineMap(torch.zeros(d, 0), torch.zeros(d, 0), torch.full((d,), 1e5))
    with otl.intervene(model, {1: far}), pytest.raises(ActivationError, match="overflows"):
        otl.next_token_logprobs(model, PROMPTS)
