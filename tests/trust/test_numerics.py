"""The same conclusions from every dtype, batch size, padding side and library, within stated tolerances.

The tolerances are at most ten times the largest measured deviation; `record_property` keeps the current ones.
The reference is float64 at 16 prompts per batch, stored in tests/data/numbers.json by
tests/trust/reference_numbers.py; tests/tl3/test_conclusions.py compares a HookedTransformer with it.
"""

import json
from functools import cache

import pytest
import torch

import ot_lens as otl
from ot_lens.models import TokenBatch, backend, encode, token_batch
from tests.trust.model_numbers import LAYERS, deviations, few, numbers_of
from tests.trust.reference_numbers import FILE, PROMPTS

# Relative to the layer's root mean square: activations, mapped, w2. Absolute: scores (nats), cosines.
TOLERANCES = {
    "activations": 1e-5,
    "scores": 5e-5,
    "mapped": 1e-5,
    "w2": 8e-7,
    "cosines": 1e-7,
    "table": 1e-4,
}
FULL = [
    (variant, dtype, hooks, size)
    for variant in ("multi", "single")
    for dtype, hooks in (("float64", "residual"), ("float32", "residual"), ("float32", "full"))
    for size in (1, 2, 3, 7, 16, 32, 64)
]
QUICK = [("multi", "float32", "residual", 7), ("multi", "float32", "full", 64)]


@cache
def reference():
    return json.loads(FILE.read_text())


def pytest_generate_tests(metafunc):
    if "setting" in metafunc.fixturenames:
        cases = FULL if metafunc.config.getoption("--full") else QUICK
        metafunc.parametrize("setting", cases, ids=lambda case: "-".join(map(str, case)))


def test_numbers_and_conclusions_are_those_of_float64(setting, record_property):
    variant, dtype, hooks, size = setting
    model = otl.load_model(f"organism:{variant}", dtype=dtype, hooks=hooks)
    found, expected = numbers_of(model, few(n=PROMPTS), batch_size=size), reference()[variant]
    apart = deviations(found.summary(), expected["numbers"])
    for name, value in apart.items():
        record_property(f"numerics_{variant}_{dtype}_{hooks}_{size}_{name}", f"{value:.2e}")
    assert {name: value for name, value in apart.items() if value > TOLERANCES[name]} == {}
    assert found.conclusions == expected["conclusions"]
    assert found.localized


def test_the_comparison_detects_perturbed_weights(record_property):
    """Weights that are 1 % off exceed every tolerance."""
    model = otl.load_model("organism:multi", dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 1e-2 * torch.randn(weight.shape, generator=generator))
    found, expected = numbers_of(model, few(n=PROMPTS)), reference()["multi"]
    apart = deviations(found.summary(), expected["numbers"])
    for name, value in apart.items():
        record_property(f"numerics_perturbed_{name}", f"{value:.2e}")
        assert value > TOLERANCES[name], name


def test_bfloat16_is_measured(record_property, full_size):
    """Only finite numbers are guaranteed; the deviations are recorded."""
    if not full_size:
        pytest.skip("measured at full size")
    model = otl.load_model("organism:multi", dtype="bfloat16")
    found, expected = numbers_of(model, few(n=PROMPTS)), reference()["multi"]
    for name, value in deviations(found.summary(), expected["numbers"]).items():
        record_property(f"numerics_bfloat16_{name}", f"{value:.2e}")
        assert value < float("inf")
    same = {name: found.conclusions[name] == value for name, value in expected["conclusions"].items()}
    changed = sum(
        a != b
        for a, b in zip(found.conclusions["intervals"], expected["conclusions"]["intervals"], strict=True)
    )
    record_property("numerics_bfloat16_same_conclusions", str(same))
    record_property("numerics_bfloat16_intervals_changed", changed)


def padded(model, prompts, side: str) -> TokenBatch:
    """One batch of all prompts, padded on one side."""
    served = backend(model)
    batch = token_batch(served, encode(served, prompts))
    tokens, mask = batch.tokens, batch.mask
    if side == "right":
        shifts = (1 - mask).sum(1).tolist()
        tokens, mask = (
            torch.stack([row.roll(-by) for row, by in zip(part, shifts, strict=True)])
            for part in (tokens, mask)
        )
    return TokenBatch(batch.indices, tokens, mask)


def test_padding_sides_give_the_same_activations(record_property):
    """`run_with_cache` on batches padded on either side agrees with capturing prompt by prompt."""
    model = otl.load_model("organism:multi", dtype="float32", hooks="full")
    contrast = few(n=PROMPTS).train
    alone = otl.capture(model, contrast, layers=list(LAYERS), batch_size=1)
    for side in ("left", "right"):
        caches, masks = {}, {}
        for label in ("harmful", "harmless"):
            batch = padded(model, getattr(contrast, label), side)
            assert batch.mask.sum() < batch.mask.numel()  # there is padding
            with torch.no_grad():
                _, caches[label] = model.run_with_cache(batch.tokens, attention_mask=batch.mask)
            masks[f"{label}_mask"] = batch.mask
        acts = otl.Activations.from_caches(**caches, **masks)
        for layer in LAYERS:
            for label in ("harmful", "harmless"):
                ours, theirs = getattr(acts, label)(layer), getattr(alone, label)(layer)
                apart = float((ours - theirs).abs().max() / theirs.square().mean().sqrt())
                record_property(f"numerics_padding_{side}_{label}_{layer}", f"{apart:.2e}")
                assert apart < TOLERANCES["activations"]
    unmasked = otl.Activations.from_caches(**caches)  # right-padded, without its mask
    assert (unmasked.harmful(LAYERS[0]) - alone.harmful(LAYERS[0])).abs().max() > 0.1


def test_the_padding_side_of_the_tokenizer_changes_nothing():
    model = otl.load_model("organism:multi")
    prompts = [p.text for p in few(n=PROMPTS).test.harmful]
    before = otl.next_token_logprobs(model, prompts)
    backend(model).tokenizer.padding_side = "right"
    assert torch.equal(otl.next_token_logprobs(model, prompts), before)
