"""ot_lens on a HookedTransformer: the same numbers as the Hugging Face model of the same checkpoint."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer

import ot_lens as otl
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.models import backend, encode, evaluating, model_record, post_instruction_tokens, render
from ot_lens.organism.evaluation import WEIGHTS
from ot_lens.prompts import Contrast
from ot_lens.single_pass import next_token_sweep
from ot_lens.transport import AffineMap
from tests import checkpoints
from tests.tl3.build import hooked_transformer
from tests.trust.leak_checks import random_map
from tests.trust.model_numbers import VARIANTS, check_numbers

pytestmark = pytest.mark.usefixtures("mixed_lengths")

D = 32
PROMPTS = ["w1 w2 w3 w4 w5", "w6", "w7 w8 w9"]


@pytest.fixture
def reference(llama_folder):
    """The same checkpoint as a HookedCausalLM."""
    return otl.load_model(llama_folder)


@pytest.fixture
def contrast() -> Contrast:
    return checkpoints.contrast(10)


def test_capture_agrees_with_hugging_face(hooked, reference, contrast):
    for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
        ours = otl.capture(hooked, contrast, hook=hook, positions=[-1, -2], batch_size=4)
        theirs = otl.capture(reference, contrast, hook=hook, positions=[-1, -2], batch_size=4)
        for position in (-1, -2):
            torch.testing.assert_close(
                ours.stacked("harmful", position), theirs.stacked("harmful", position), rtol=1e-3, atol=1e-4
            )


def test_activation_caches_are_read(hooked, contrast):
    batch = checkpoints.one_batch(hooked, contrast.harmful)
    with torch.no_grad():
        _, cache = hooked.run_with_cache(batch.tokens, attention_mask=batch.mask)
    acts = otl.Activations.from_caches(
        harmful=cache, harmless=cache, harmful_mask=batch.mask, harmless_mask=batch.mask
    )
    expected = otl.capture(hooked, contrast).harmful(1)[torch.tensor(batch.indices)]
    torch.testing.assert_close(acts.harmful(1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_identity_leaves_logits_bit_equal(hooked, tokens):
    before = otl.next_token_logprobs(hooked, PROMPTS)
    with otl.intervene(hooked, {0: AffineMap.identity(D), 1: AffineMap.identity(D)}, tokens):
        assert torch.equal(otl.next_token_logprobs(hooked, PROMPTS), before)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_answers_agree_with_hugging_face_under_every_scope(hooked, reference, tokens):
    answers = {}
    for name, model in (("hooked", hooked), ("reference", reference)):
        with otl.intervene(model, {0: random_map(1), 1: random_map(2)}, tokens):
            answers[name] = otl.complete(model, PROMPTS, max_new_tokens=6)
            assert answers[name] == otl.complete(model, PROMPTS, max_new_tokens=6, use_cache=False)
            assert answers[name] == [otl.complete(model, [p], max_new_tokens=6)[0] for p in PROMPTS]
    assert answers["hooked"] == answers["reference"]


def test_the_model_s_own_calls_are_edited_and_left_clean(hooked):
    batch = checkpoints.one_batch(hooked, PROMPTS)
    seen = []
    point = hooked.hook_dict["blocks.1.hook_resid_pre"]
    point.add_hook(lambda x, hook: seen.append(x.clone()))
    with evaluating(hooked):
        before = hooked(batch.tokens, attention_mask=batch.mask)
        with otl.intervene(hooked, {1: random_map()}, "last"):
            inside = hooked(batch.tokens, attention_mask=batch.mask)
            with_cache, _ = hooked.run_with_cache(batch.tokens, attention_mask=batch.mask)
        after = hooked(batch.tokens, attention_mask=batch.mask)
    assert torch.equal(before, after)
    assert (inside[:, -1] - before[:, -1]).abs().max() > 1e-2
    torch.testing.assert_close(inside, with_cache)
    torch.testing.assert_close(inside[:, :-1], before[:, :-1])  # scope last: earlier positions as they were
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1])


def test_resid_mid_reaches_the_skip_path_here(hooked):
    """Unlike in a Hugging Face model, where ot_lens refuses the edit."""
    before = otl.next_token_logprobs(hooked, PROMPTS)
    shift = AffineMap(torch.zeros(D, 0), torch.zeros(D, 0), torch.ones(D))
    batch = checkpoints.one_batch(hooked, PROMPTS)
    with torch.no_grad():
        _, plain = hooked.run_with_cache(batch.tokens, attention_mask=batch.mask)
        with otl.intervene(hooked, {(0, "resid_mid"): shift}):
            _, moved = hooked.run_with_cache(batch.tokens, attention_mask=batch.mask)
    branch = moved["blocks.0.hook_mlp_out"] - plain["blocks.0.hook_mlp_out"]
    stream = moved["blocks.0.hook_resid_post"] - plain["blocks.0.hook_resid_post"]
    torch.testing.assert_close(stream - branch, torch.ones_like(stream), rtol=1e-4, atol=1e-4)
    assert torch.equal(otl.next_token_logprobs(hooked, PROMPTS), before)


def test_the_whole_sweep_agrees_with_hugging_face(hooked, reference):
    prompts = checkpoints.contrast_set(10)
    options = {
        "methods": ["mean_shift", "directional_ablation", "rfa", {"name": "pca_ot", "k": 2}],
        "max_new_tokens": 4,
        "refusal_tokens": ["w1"],
    }
    ours = otl.localize(hooked, prompts, **options)
    theirs = otl.localize(reference, prompts, **options)
    both = [table.select_dtypes(exclude="float").drop(columns="engine") for table in (ours, theirs)]
    pd.testing.assert_frame_equal(*both)
    # Answers are verified on Hugging Face models only.
    assert set(ours.loc[ours["measure"] == "refusal_rate", "engine"]) == {"hooks"}
    rows = ours["measure"].isin(["refusal_score", "kl"])
    assert (ours.loc[rows, "engine"] == theirs.loc[rows, "engine"]).all()
    rows |= ours["measure"] == "perplexity"
    np.testing.assert_allclose(ours.loc[rows, "value"], theirs.loc[rows, "value"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_the_single_pass_is_equal_to_plain_hooks(hooked, tokens):
    maps = [random_map(seed) for seed in range(2)]
    candidates = [{0: maps[0]}, {1: maps[1]}, {0: maps[0], 1: maps[1]}, {(1, "resid_post"): maps[0]}, {}]
    scores = next_token_sweep(
        hooked, PROMPTS, candidates, lambda rows, _own: rows.log_softmax(-1), tokens=tokens, batch_size=2
    )
    base = otl.next_token_logprobs(hooked, PROMPTS)
    for edits, row in zip(candidates, scores, strict=True):
        with otl.intervene(hooked, edits, tokens):
            expected = otl.next_token_logprobs(hooked, PROMPTS)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
        assert not edits or (row - base).abs().max() > 1e-2


def test_interchange_agrees_with_hugging_face(hooked, reference, contrast):
    few = Contrast(*(group[:3] for _, group in contrast))
    options = {"positions": ["last", "instruction"], "modules": ["block", "mlp"], "classes": ["harmful"]}
    ours, theirs = (otl.interchange(model, few, **options) for model in (hooked, reference))
    assert (set(ours["engine"]), set(theirs["engine"])) == ({"hooks"}, {"single_pass"})
    np.testing.assert_allclose(ours["value"], theirs["value"], rtol=1e-3, atol=1e-3)


def test_weight_processing_is_recorded(hooked):
    """Folding and centring change what a covariance of the stream means; the weights show both."""
    raw = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False}
    assert model_record(hooked)["weight_processing"] == {**raw, "fold_value_biases": None}
    # The RMS norms of a Llama do not allow centring of the writing weights.
    hooked.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=True)
    processed = {**raw, "fold_ln": True, "center_unembed": True}
    found = model_record(hooked)["weight_processing"]
    assert {name: found[name] for name in processed} == processed


@pytest.mark.parametrize("processed", [False, True])
def test_weight_processing_of_layer_norms_and_biases_is_recorded(llama_folder, processed):
    config = HookedTransformerConfig(
        n_layers=2, d_model=16, d_head=8, n_ctx=32, d_vocab=50, act_fn="gelu", normalization_type="LN"
    )
    model = HookedTransformer(config)
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.b_V)
    model.tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    if processed:
        model.process_weights_()
    names = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    assert model_record(model)["weight_processing"] == dict.fromkeys(names, processed)


def test_a_system_prompt_and_positions_are_those_of_hugging_face(hooked, reference):
    assert otl.load_model(hooked, system_prompt="w9 w8") is hooked
    assert "<system> w9 w8" in render(backend(hooked), ["w1"])[0]
    assert model_record(hooked)["system_prompt"]["length"] == 5
    assert not hasattr(hooked, "system_prompt")  # a user's model gets no attribute of ours
    assert post_instruction_tokens(backend(hooked)) == post_instruction_tokens(backend(reference))
    asked = otl.load_model(reference, system_prompt="w9 w8")
    assert encode(backend(hooked), PROMPTS) == encode(backend(asked), PROMPTS)
    ours, theirs = (otl.next_token_logprobs(m, PROMPTS) for m in (hooked, asked))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_numbers_and_conclusions_are_those_of_the_other_library(variant, size, record_property):
    """Of the embedded models, in float64 on transformer-lens 4."""
    check_numbers(hooked_transformer(Path(WEIGHTS) / variant), variant, size, record_property)
