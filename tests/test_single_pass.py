"""The single-pass engine gives the logits of plain hooks, for every family, scope and set of layers."""

from pathlib import Path

import pytest
import torch

import ot_lens as otl
from ot_lens.behaviour import next_token_logprobs
from ot_lens.errors import SinglePassError
from ot_lens.models import backend
from ot_lens.single_pass import next_token_sweep, why_not
from ot_lens.transport import AffineMap
from tests import families

pytestmark = pytest.mark.usefixtures("mixed_lengths")

PROMPTS = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w10", "w11 w12 w13"]


# The table of docs/models.md has all families; here are different kinds of attention, with each set of hooks.
KINDS = [
    ("llama31", "residual"),
    ("mistral", "residual"),
    ("gemma3", "residual"),
    ("qwen25", "full"),
    ("gemma2", "full"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: families.write(tmp_path_factory.mktemp(name), name) for name in families.FAMILIES}


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]):
    name, hooks = request.param
    return otl.load_model(folders[name], hooks=hooks)


@pytest.fixture
def llama(folders: dict[str, Path]):
    return otl.load_model(folders["llama2"])


def random_map(model, seed: int) -> AffineMap:
    generator, d = torch.Generator().manual_seed(seed), backend(model).d_model
    U, V = (torch.randn(d, 2, generator=generator, dtype=torch.float64) / 4 for _ in range(2))
    return AffineMap(U, V, torch.randn(d, generator=generator, dtype=torch.float64) / 2)


def candidates(model) -> list[dict]:
    """Singles, pairs, all layers together, layers out of order, both hook points, and no edit at all."""
    maps = [random_map(model, seed) for seed in range(4)]
    singles = [{layer: maps[layer]} for layer in range(4)] + [{1: maps[0]}]
    pairs = [{i: maps[i], j: maps[j]} for i in range(4) for j in range(i)]
    post = [{(3, "resid_post"): maps[3]}, {(0, "resid_post"): maps[0], 2: maps[2]}]
    return [*singles, *pairs, dict(enumerate(maps)), *post, {}]


def logits(rows: torch.Tensor, _own: torch.Tensor) -> torch.Tensor:
    return rows.log_softmax(-1)


def by_hooks(model, edits, tokens) -> torch.Tensor:
    with otl.intervene(model, edits, tokens):
        return next_token_logprobs(model, PROMPTS)


@pytest.mark.parametrize("tokens", ["last", "all", "prompt", "generated"])
def test_equal_to_plain_hooks(model, tokens):
    found = next_token_sweep(model, PROMPTS, candidates(model), logits, tokens=tokens, batch_size=2)
    base = next_token_logprobs(model, PROMPTS)
    for edits, row in zip(candidates(model), found, strict=True):
        torch.testing.assert_close(row, by_hooks(model, edits, tokens), rtol=1e-4, atol=1e-4)
        if edits and tokens != "generated":
            assert (row - base).abs().max() > 1e-2  # the edit has an effect, so agreement means something


@pytest.mark.parametrize("budget", [1, 20_000])
def test_the_memory_budget_does_not_change_values(llama, budget):
    for tokens in ("last", "all"):
        options = {"tokens": tokens, "batch_size": 3}
        whole = next_token_sweep(llama, PROMPTS, candidates(llama), logits, **options)
        cut = next_token_sweep(llama, PROMPTS, candidates(llama), logits, memory_budget=budget, **options)
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(model):
    before = next_token_logprobs(model, PROMPTS)
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    next_token_sweep(model, PROMPTS, candidates(model), logits)
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()} == hooks
    assert torch.equal(next_token_logprobs(model, PROMPTS), before)


def test_unsupported_edits_are_explained(llama):
    assert why_not(llama, {1: random_map(llama, 0)}) is None
    assert "inside a block" in (why_not(llama, {(1, "attn_out"): random_map(llama, 0)}) or "")
    llama.hook_dict["blocks.1.hook_resid_pre"].add_hook(lambda x, hook: None)
    assert "hooks of the user" in (why_not(llama, {1: random_map(llama, 0)}) or "")


def test_a_model_that_cannot_be_replayed_fails_loudly(llama):
    """A layer that counts its calls: its block depends on more than its input."""
    layer, calls = llama.hf_model.model.layers[1], []

    def drift(_module, _args, output):
        calls.append(1)
        return output + len(calls)

    layer.register_forward_hook(drift)
    with pytest.raises(SinglePassError, match="Replayed logits differ"):
        next_token_sweep(llama, PROMPTS, [{1: random_map(llama, 0)}], logits)


@pytest.mark.parametrize("name", ["llama31", "gemma3"])
def test_half_precision_agrees_with_hooks(folders, name):
    model = otl.load_model(folders[name], dtype="bfloat16")
    found = next_token_sweep(model, PROMPTS, [{1: random_map(model, 1)}], logits, tokens="last")[0]
    expected = by_hooks(model, {1: random_map(model, 1)}, "last")
    assert (found - expected).abs().median() < 0.05


def test_a_prompt_of_one_token_has_no_prefix(llama):
    """As where a base model's template is the text alone."""
    llama.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    prompts, edits = ["w10", "w3"], {1: random_map(llama, 0)}
    found = next_token_sweep(llama, prompts, [edits], logits, tokens="last")[0]
    with otl.intervene(llama, edits, "last"):
        torch.testing.assert_close(found, next_token_logprobs(llama, prompts), rtol=1e-4, atol=1e-4)
