"""Model families: hook points where the branches join the stream, and one module that knows the families."""

import re
from pathlib import Path

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
)

import ot_lens as otl
from ot_lens.errors import ModelError
from ot_lens.models import architectures
from ot_lens.single_pass import next_token_sweep, why_not_replayed
from ot_lens.transport import AffineMap
from tests import checkpoints

PROMPTS = ["w1 w2 w3 w4 w5", "w6", "w7 w8 w9"]
WORDS = len(checkpoints.SPECIAL) + len(checkpoints.WORDS)
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GRANITE = {"residual_multiplier": 0.3, "embedding_multiplier": 2.0, "logits_scaling": 4.0}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**SHAPE)),  # a norm after each branch, none before
    "granite": (GraniteForCausalLM, GraniteConfig(**SHAPE, **GRANITE)),  # scaled branches
    "cohere": (CohereForCausalLM, CohereConfig(**SHAPE)),  # parallel branches, scaled logits
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=3, n_head=4, pad_token_id=0)),
}


def load(name: str):
    model = checkpoints.random_weights(*FAMILIES[name], 0)
    return otl.load_model(model, tokenizer=checkpoints.tokenizer("llama"))


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str):
    return load(name)


def test_the_branches_add_up_to_the_stream(name, model):
    hooks = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    if name != "cohere":  # nothing reads the stream between parallel branches
        hooks.append("resid_mid")
    acts = {h: otl.capture(model, checkpoints.contrast(2), hook=h).stacked("harmful") for h in hooks}
    middle = acts["resid_pre"] + acts["attn_out"]
    torch.testing.assert_close(middle + acts["mlp_out"], acts["resid_post"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(middle, acts.get("resid_mid", middle), rtol=1e-4, atol=1e-4)


def test_an_edit_of_a_branch_reaches_the_stream_as_it_is(model):
    shift = AffineMap(torch.zeros(32, 0), torch.zeros(32, 0), torch.full((32,), 0.5))
    options = {"hook": "resid_post", "layers": [1]}
    plain = otl.capture(model, checkpoints.contrast(2), **options)
    edited = otl.capture(model, checkpoints.contrast(2), edits={(1, "mlp_out"): shift}, **options)
    torch.testing.assert_close(edited.harmful(1), plain.harmful(1) + 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_the_single_pass_gives_the_logits_of_hooks_or_a_reason(name, model, tokens):
    if name == "gpt2":
        assert "by position" in (why_not_replayed(model, PROMPTS, tokens=tokens) or "")
        return
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.randn(32, 2, generator=generator) / 4 for _ in range(2))
    edits = {1: AffineMap(U, V, torch.ones(32))}
    swept = next_token_sweep(model, PROMPTS, [edits], lambda rows, _: rows.log_softmax(-1), tokens=tokens)[0]
    with otl.intervene(model, edits, tokens):
        expected = otl.next_token_logprobs(model, PROMPTS)
    torch.testing.assert_close(swept, expected, rtol=1e-3, atol=1e-3)


def test_a_family_is_known_from_the_tables_of_one_module(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(architectures, "FINAL_NORMS", ())
        assert "final norm" in (why_not_replayed(load("llama"), PROMPTS) or "")
        patch.setattr(architectures, "BRANCHES", ())
        with pytest.raises(ModelError, match="LlamaDecoderLayer"):
            load("llama")
        patch.setattr(architectures, "LAYERS", ())
        with pytest.raises(ModelError, match="LlamaForCausalLM"):
            load("llama")
    assert why_not_replayed(load("llama"), PROMPTS) is None


def test_no_other_module_names_the_parts_of_a_family(repository: Path):
    tables = [
        *architectures.LAYERS,
        *architectures.FINAL_NORMS,
        "date_string",
        "strftime_now",
        *architectures.THINKING_SWITCHES,
        *architectures.BRIDGE_ADDENDS.values(),
        *(part for entry in architectures.BRANCHES for part in vars(entry).values() if part),
        "residual_multiplier",
        "logits_scaling",
        "final_logit_softcapping",
    ]
    names = re.compile("|".join(rf"\b{name}\b" for name in tables if "_" in name))
    package = repository / "ot_lens"
    # The embedded model is a Llama that the package itself builds.
    sources = [path for path in package.rglob("*.py") if "organism" not in path.parts]
    aware = [path.relative_to(package) for path in sources if names.search(path.read_text("utf-8"))]
    assert aware == [Path("models/architectures.py")]
