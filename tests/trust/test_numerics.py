"""The same conclusions from every dtype, batch size, padding side and library, within stated tolerances.

`record_property` keeps the current deviations; tests/tl3 compares a HookedTransformer.
"""

import json

import torch

import ot_lens as otl
from ot_lens.models import TokenBatch, backend
from tests import checkpoints
from tests.trust.model_numbers import (
    FILE,
    LAYERS,
    TOLERANCES,
    VARIANTS,
    check_numbers,
    deviations,
    few,
    numbers_of,
)

FULL = [
    (variant, dtype, hooks, size)
    for variant in VARIANTS
    for dtype, hooks in (("float64", "residual"), ("float32", "residual"), ("float32", "full"))
    for size in (1, 2, 3, 7, 16, 32, 64)
]
QUICK = [("multi", "float32", "residual", 7), ("multi", "float32", "full", 64)]


def pytest_generate_tests(metafunc):
    if "size" in metafunc.fixturenames:
        cases = FULL if metafunc.config.getoption("--full") else QUICK
        metafunc.parametrize(("variant", "dtype", "hooks", "size"), cases)


def test_numbers_and_conclusions_are_those_of_float64(variant, dtype, hooks, size, record_property):
    model = otl.load_model(f"organism:{variant}", dtype=dtype, hooks=hooks)
    check_numbers(model, variant, size, record_property)


def test_the_comparison_detects_perturbed_weights(record_property):
    """Weights that are 1 % off exceed every tolerance."""
    model = otl.load_model("organism:multi", dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 1e-2 * torch.randn(weight.shape, generator=generator))
    expected = json.loads(FILE.read_text())["multi"]
    assert expected["conclusions"]["localized"]
    for name, value in deviations(numbers_of(model), expected).items():
        record_property(f"numerics_perturbed_{name}", f"{value:.2e}")
        assert value > TOLERANCES[name], name


def padded(model, prompts, side: str) -> TokenBatch:
    """One batch of all prompts, padded on one side."""
    batch = checkpoints.one_batch(model, prompts)
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
    contrast = few().train
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
    prompts = [p.text for p in few().test.harmful]
    before = otl.next_token_logprobs(model, prompts)
    backend(model).tokenizer.padding_side = "right"
    assert torch.equal(otl.next_token_logprobs(model, prompts), before)
