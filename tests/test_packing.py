"""Prompts that begin alike are read as one sequence, with the numbers of reading each by itself."""

import copy

import numpy as np
import pytest
import torch

import ot_lens as otl
from ot_lens.behaviour import next_token, next_token_logprobs
from ot_lens.localizers import Setting
from ot_lens.localizers.profiles import (
    as_in_base,
    edited_instruction,
    interchanged_instruction,
    left_out,
)
from ot_lens.models import HookedCausalLM, backend
from ot_lens.single_pass import engine, next_token_sweep, observed_sweep, packed
from ot_lens.transport import AffineMap
from tests import checkpoints, families

SYSTEM = " ".join(f"w{20 + i}" for i in range(16))
TEMPLATE = f"{{{{ '{SYSTEM} ' + messages[0]['content'] + ' w5' }}}}"
PROMPTS = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w10", "w11 w12 w13", "w10 w2"]
# Windows and recurrent layers see places of the packed sequence, so that models with them are read plainly.
SERVED = {"llama31": True, "gemma3": False, "mistral": False, "qwen25": True, "llama2": True}


@pytest.fixture
def read(monkeypatch):
    """How often each kind of pass was recorded."""
    counts = {"packed": 0, "plain": 0}

    def noted(name, made):
        def record(*args, **options):
            counts[name] += 1
            return made(*args, **options)

        return record

    monkeypatch.setattr(engine, "PackedRecord", noted("packed", packed.PackedRecord))
    monkeypatch.setattr(engine, "run", noted("plain", engine.run))
    return counts


def loaded(folder, name):
    model = otl.load_model(families.write(folder, name))
    model.tokenizer.chat_template = TEMPLATE
    return model


@pytest.fixture
def llama(tmp_path):
    return loaded(tmp_path, "llama31")


def maps(model) -> list[AffineMap]:
    generator, d = torch.Generator().manual_seed(0), backend(model).d_model
    drawn = torch.randn(3, 3, d, 2, generator=generator, dtype=torch.float64) / 4
    return [AffineMap(U, V, b[:, 0]) for U, V, b in drawn]


def candidates(model) -> list[dict]:
    one, two, three = maps(model)
    return [{0: one}, {2: two}, {1: one, 3: three}, {(3, "resid_post"): two}, {}]


def logprobs(rows: torch.Tensor, _own: torch.Tensor) -> torch.Tensor:
    return rows.log_softmax(-1)


@pytest.mark.parametrize("name", SERVED)
def test_equal_to_plain_hooks_and_packed_where_that_is_right(tmp_path, read, name):
    model = loaded(tmp_path, name)
    found = next_token_sweep(model, PROMPTS, candidates(model), logprobs, tokens="all")
    base = next_token_logprobs(model, PROMPTS)
    for edits, row in zip(candidates(model), found, strict=True):
        with otl.intervene(model, edits, "all"):
            torch.testing.assert_close(row, next_token_logprobs(model, PROMPTS), rtol=1e-4, atol=1e-4)
        if edits:
            assert (row - base).abs().max() > 1e-2
    assert (read["packed"] > 0, read["plain"] > 0) == (SERVED[name], not SERVED[name])


def test_a_long_batch_is_packed_in_parts(llama, read, monkeypatch):
    whole = next_token_sweep(llama, PROMPTS, candidates(llama), logprobs, tokens="all")
    before = read["packed"]
    monkeypatch.setitem(packed.MOST_TOKENS, "cpu", 30)
    parts = next_token_sweep(llama, PROMPTS, candidates(llama), logprobs, tokens="all")
    assert read["packed"] - before > before
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_prompts_that_share_little_are_read_plainly(llama, read):
    llama.tokenizer.chat_template = "{{ messages[0]['content'] + ' w5' }}"
    next_token_sweep(llama, PROMPTS, candidates(llama), logprobs, tokens="all")
    next_token_sweep(llama, ["w1 w2"], candidates(llama), logprobs, tokens="all")
    assert read["packed"] == 0 < read["plain"]


def test_hooks_read_packed_prompts_under_edits_of_all_tokens(llama, monkeypatch):
    """Edits inside blocks cannot be walked: each is a pass of its own, of less where prompts begin alike."""
    parts_read = []

    def noted(served, part):
        parts_read.append(len(part.indices))
        return packed.packed_logits(served, part)

    monkeypatch.setattr(next_token, "packed_logits", noted)
    prompts, options = checkpoints.contrast_set(4), {"methods": ["rfa"], "layers": [1, 2], "controls": []}
    options |= {"measures": ["refusal_score", "kl"], "sets": ["single"]}
    found = otl.localize(llama, prompts, **options)
    assert sum(parts_read) == 2 * 4 * (1 + 2), "of both classes, without edits and under each"
    parts_read.clear()
    plain = otl.localize(llama, prompts, engine="hooks", **options)
    otl.localize(llama, prompts, tokens="last", **options)
    llama.hook_dict["blocks.1.hook_resid_pre"].add_hook(lambda x, hook: None)
    otl.localize(llama, prompts, **options)
    llama.reset_hooks()
    assert not parts_read
    np.testing.assert_allclose(found["value"], plain["value"], rtol=1e-3, atol=1e-4)
    kl = found[(found["measure"] == "kl") & (found["set"] == "single")]
    assert (kl["value"] > 1e-2).any()


def test_what_is_observed_is_the_stream_of_each_prompt(llama, read, monkeypatch):
    def observe(batch, streams):
        inside = batch.mask[..., None].to(streams[0])
        return torch.stack([(x * inside).sum(dim=(1, 2)) for x in streams], dim=1).double()

    def observed():
        return observed_sweep(
            llama, PROMPTS, candidates(llama), logprobs, observe, tokens="all", hook="resid_pre"
        )[1]

    found = observed()
    assert (read["packed"] > 0, read["plain"]) == (True, 0)
    monkeypatch.setattr(packed, "LEAST_SAVED", 2.0)
    torch.testing.assert_close(found, observed(), rtol=1e-4, atol=1e-4)
    assert read["plain"] > 0


def test_localizers_see_the_same_effects(llama, read, monkeypatch):
    other = copy.deepcopy(llama.hf_model)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(2.0)
    base = HookedCausalLM(other, llama.tokenizer, "base")
    setting = Setting(llama, checkpoints.contrast_set(4), base)
    monkeypatch.setattr("ot_lens.localizers.profiles.DESTROYED", float("inf"))

    def effects():
        found = [left_out(setting), left_out(setting, "mlp_out"), as_in_base(setting)]
        found += [edited_instruction(setting), interchanged_instruction(setting)]
        return np.stack([each.harmful for each in found])

    own = effects()
    assert (read["packed"] > 0, read["plain"]) == (True, 0)
    monkeypatch.setattr(packed, "LEAST_SAVED", 2.0)
    np.testing.assert_allclose(own, effects(), atol=1e-4)
    assert read["plain"] > 0
    assert np.abs(own).max() > 1e-2
