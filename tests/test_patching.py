"""Interchange and knock-out: against plain hooks, TransformerLens, a hand case and planted effects."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.errors import FitError, HookError, PromptError, SinglePassError
from ot_lens.models import backend, encode, post_instruction_tokens
from ot_lens.patching.inference import flip_test
from ot_lens.patching.partners import others, own_class
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass.suffix import SuffixRecord
from tests import checkpoints
from tests.checkpoints import one_batch

PLACES = [-1, -3, -5, "instruction", "template", "suffix"]
EVERYTHING = {
    "modules": ["block", "attention", "mlp"],
    "kinds": ["interchange", "knock_out"],
    "classes": ["harmful"],
    "positions": [-1, -5, "instruction"],
    "batch_size": 4,
}
NUMBERS = ["value", "null_mean", "low", "high", "gap", "kl", "replaced", "n"]


@pytest.fixture(scope="module")
def llama(llama_folder):
    return otl.load_model(llama_folder)


@pytest.fixture(scope="module")
def contrast() -> Contrast:
    return checkpoints.contrast(5)


def lines(table: pd.DataFrame, **chosen) -> pd.DataFrame:
    return table[np.logical_and.reduce([table[name] == value for name, value in chosen.items()])]


def score(logits: torch.Tensor, tokens) -> float:
    p = logits.double().softmax(-1)[..., list(tokens)].sum()
    return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))


@contextmanager
def writing(module, positions: dict[int, torch.Tensor]):
    """A module of Hugging Face whose output at some tokens is given."""

    def write(_module, _args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        for position, value in positions.items():
            hidden[0, position] = value
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


def outputs(model, module, row) -> torch.Tensor:
    """The output of a module for one prompt, [pos, d]."""
    seen = []
    handle = module.register_forward_hook(
        lambda _module, _args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model.hf_model(input_ids=torch.tensor([row]))
    handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("module", ["block", "attention", "mlp"])
@pytest.mark.usefixtures("mixed_lengths")
def test_the_walk_equals_replacing_outputs_of_hugging_face_modules(llama, contrast, module):
    """Prompt by prompt, without padding, through hooks of torch alone."""
    pairs = [2, 0, 1, 4, 3]
    table = otl.interchange(
        llama, contrast, positions=[-1, -3, "instruction"], modules=[module], classes=["harmful"],
        partners=pairs, null_draws=0, engine="single_pass", batch_size=3,
    )  # fmt: skip
    served, tokens = backend(llama), otl.refusal_token_ids(llama)
    rows, given = (encode(served, group) for _, group in contrast)
    after = len(post_instruction_tokens(served))
    before = len(rows[0]) - after - len(contrast.harmful[0].text.split())
    layer = 1
    block = llama.hf_model.model.layers[layer]
    hf_module = {"block": block, "attention": block.self_attn, "mlp": block.mlp}[module]
    effects = {-1: [], -3: [], "instruction": []}
    with torch.no_grad():
        for row, partner in zip(rows, (given[j] for j in pairs), strict=True):
            own = score(llama.hf_model(input_ids=torch.tensor([row])).logits[0, -1], tokens)
            values = outputs(llama, hf_module, partner)
            common = min(len(row), len(partner)) - before - after
            instruction = range(-after - common, -after)
            for name, positions in ((-1, [-1]), (-3, [-3]), ("instruction", instruction)):
                with writing(hf_module, {p: values[p] for p in positions}):
                    logits = llama.hf_model(input_ids=torch.tensor([row])).logits[0, -1]
                effects[name].append(score(logits, tokens) - own)
    for name, found in effects.items():
        (value,) = lines(table, layer=layer, position=str(name))["value"]
        assert value == pytest.approx(np.mean(found), abs=1e-5)


@pytest.mark.parametrize(("family", "leaving"), [("llama", "nothing"), ("qwen2", "mean")])
@pytest.mark.usefixtures("mixed_lengths")
def test_both_engines_measure_the_same(family, leaving, tmp_path, contrast):
    few = Contrast(*(group[:3] for _, group in contrast))
    model = otl.load_model(checkpoints.write(tmp_path, family))
    walked, hooked = (
        otl.interchange(model, few, leaving=leaving, engine=engine, **EVERYTHING)
        for engine in ("single_pass", "hooks")
    )
    assert list(walked["engine"].unique()) == ["single_pass"]
    for name in NUMBERS:
        np.testing.assert_allclose(walked[name], hooked[name], atol=1e-4, err_msg=name)
    assert walked["value"].abs().max() > 1e-2
    for table in (walked, hooked):  # each by its own gap, which is small here and magnifies rounding
        np.testing.assert_allclose(table["share"], table["value"] / table["gap"], rtol=1e-12)


def test_it_agrees_with_the_interchange_of_transformerlens(llama_folder, contrast):
    """On a full bridge, whose interchange of the whole space replaces the activation."""
    theirs = pytest.importorskip(
        "transformer_lens.tools.analysis.interchange", reason="transformer-lens 4.3 has it"
    )
    bridge = otl.load_model(llama_folder, hooks="full")
    same = [Prompt("w1 w2 w3"), Prompt("w4 w5 w6"), Prompt("w7 w8 w9")], [
        Prompt("w21 w22 w23"), Prompt("w24 w25 w26"), Prompt("w27 w28 w29"),
    ]  # fmt: skip
    aligned = Contrast(*map(tuple, same))
    table = otl.interchange(
        bridge, aligned, positions=[-1, -4], partners="paired", classes=["harmful"], null_draws=0
    )
    inputs, sources = (one_batch(bridge, group).tokens for _, group in aligned)
    tokens = otl.refusal_token_ids(bridge)

    @torch.no_grad()
    def task(batch: torch.Tensor) -> torch.Tensor:
        return bridge(batch)[:, -1]

    whole = theirs.SubspaceInterchange(torch.eye(backend(bridge).d_model))
    own = [score(row, tokens) for row in task(inputs)]
    for layer in range(backend(bridge).n_layers):
        for position in (-1, -4):
            columns = torch.full((len(inputs),), inputs.shape[1] + position)
            name = f"blocks.{layer}.hook_resid_post"
            if name not in bridge.hook_dict:
                name = f"blocks.{layer}.hook_out"
            source = theirs.collect_activations(bridge, name, sources, task, positions=columns)
            logits = theirs.run_with_intervention(
                bridge, name, whole, inputs, source, task, positions=columns
            )
            expected = np.mean([score(row, tokens) - base for row, base in zip(logits, own, strict=True)])
            (value,) = lines(table, layer=layer, position=str(position))["value"]
            assert value == pytest.approx(expected, abs=1e-4)


def test_a_prompt_that_receives_its_own_activations_does_not_change(llama, contrast):
    twins = Contrast(contrast.harmful, contrast.harmful)
    table = otl.interchange(llama, twins, positions=PLACES, partners="paired", modules=["block", "mlp"])
    np.testing.assert_allclose(table["value"], 0, atol=1e-5)
    assert table["null_mean"].abs().max() > 1e-2


def test_the_last_token_at_the_top_is_the_partners_answer(llama, contrast):
    """So the share of the gap is one if every prompt has one partner and every partner one prompt."""
    table = otl.interchange(llama, contrast, positions="last", partners="paired", null_draws=0)
    top = lines(table, layer=backend(llama).n_layers - 1)
    np.testing.assert_allclose(top["share"], 1.0, atol=1e-4)
    assert (top["gap"].iloc[0] + top["gap"].iloc[1]) == pytest.approx(0)


def test_above_the_last_block_other_tokens_have_exactly_no_effect(llama, contrast):
    table = otl.interchange(llama, contrast, positions=[-2, "instruction"], engine="single_pass")
    top = lines(table, layer=backend(llama).n_layers - 1)
    assert (top["value"] == 0).all()
    assert (top["p_value"] == 1).all()


def test_tokens_without_a_counterpart_are_left_alone_and_counted(llama):
    short, long = Prompt("w1"), Prompt("w2 w3 w4 w5 w6")
    contrast = Contrast(
        (long, long, short), (Prompt("w21"), Prompt("w22 w23 w24 w25 w26"), Prompt("w27 w28"))
    )
    after = len(post_instruction_tokens(backend(llama)))
    table = otl.interchange(
        llama, contrast, positions=[-after - 1, -after - 4, "instruction"], partners="paired", null_draws=0
    )
    own = lines(table, layer=0, patched="harmful").set_index("position")
    assert own["n"].to_dict() == {str(-after - 1): 3, str(-after - 4): 1, "instruction": 3}
    assert own["n_left_out"].to_dict() == {str(-after - 1): 0, str(-after - 4): 2, "instruction": 0}
    assert own.loc["instruction", "replaced"] == pytest.approx((1 / 5 + 1 + 1) / 3)


def test_numbers_of_positions_count_from_the_end(llama, contrast):
    table = otl.interchange(llama, contrast, positions=2, null_draws=0)
    assert list(dict.fromkeys(table["position"])) == ["-2", "-1"]
    named = otl.interchange(llama, contrast, positions=["last", -2], null_draws=0)
    columns = ["patched", "layer", "position", "value"]
    ordered = [t[columns].sort_values(columns[:3], ignore_index=True) for t in (table, named)]
    pd.testing.assert_frame_equal(*ordered)
    # What all prompts begin with has the same activations everywhere: 12 tokens are more than there are.
    everything = otl.interchange(llama, contrast, null_draws=0)
    longest = max(len(p.text.split()) for _, group in contrast for p in group)
    assert everything["position"].nunique() == min(12, longest + len(post_instruction_tokens(backend(llama))))


def test_draws_are_averaged_and_seeded(llama, contrast):
    same = [otl.interchange(llama, contrast, positions="last", draws=3, null_draws=2, seed=1) for _ in "ab"]
    pd.testing.assert_frame_equal(*same)
    other = otl.interchange(llama, contrast, positions="last", draws=3, null_draws=2, seed=2)
    assert (same[0]["value"] != other["value"]).any()
    assert set(same[0]["draws"]) == {3}


def test_partners():
    rng = np.random.default_rng(0)
    across, back = others("length", ([3, 9, 5], [9, 9, 4, 3]), 2, rng)
    assert across.shape == (2, 3)
    assert back.shape == (2, 4)
    assert across[0].tolist()[0] == 3
    assert {across[0][1], across[1][1]} == {0, 1}
    given, reverse = others([1, 2, 0], ([1] * 3, [1] * 3), 1, rng)
    assert reverse[0][given[0]].tolist() == [0, 1, 2]
    within = own_class(4, 50, rng)
    assert not (within == np.arange(4)).any()
    assert set(within.ravel()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"positions": 0}, HookError, "0"),
        ({"positions": [-99]}, HookError, "-99"),
        ({"positions": "header"}, HookError, "header"),
        ({"positions": []}, HookError, "[]"),
        ({"positions": [-1, "last"]}, HookError, "last"),
        ({"modules": ["heads"]}, PromptError, "heads"),
        ({"kinds": []}, PromptError, "kind"),
        ({"classes": ["neutral"]}, PromptError, "neutral"),
        ({"partners": "best"}, PromptError, "best"),
        ({"partners": [0, 0, 1, 2, 3]}, PromptError, "5"),
        ({"partners": "paired", "draws": 2}, PromptError, "2"),
        ({"draws": 0}, PromptError, "0"),
        ({"null_draws": -1}, PromptError, "-1"),
        ({"leaving": "noise"}, PromptError, "noise"),
        ({"engine": "fast"}, HookError, "fast"),
    ],
)
def test_what_cannot_be_asked_is_named(llama, contrast, options, error, named):
    with pytest.raises(error, match=named.replace("[", r"\[")):
        otl.interchange(llama, contrast, **options)


def test_a_class_of_one_has_no_null(llama, contrast):
    one = Contrast(contrast.harmful[:1], contrast.harmless)
    with pytest.raises(PromptError, match="null_draws"):
        otl.interchange(llama, one, positions="last")
    table = otl.interchange(llama, one, positions="last", null_draws=0, classes=["harmful"])
    assert set(table["n"]) == {1}
    assert table["low"].isna().all()


def test_prompts_with_thoughts_are_refused(llama, contrast):
    thinking = replace(contrast.harmful[0], thought=(5, 6))
    with pytest.raises(PromptError, match="thoughts"):
        otl.interchange(llama, Contrast((thinking, *contrast.harmful), contrast.harmless))


def test_a_model_that_cannot_be_replayed_is_measured_with_hooks(llama, contrast, monkeypatch):
    monkeypatch.setattr(SuffixRecord, "block", lambda _self, _layer, rows: rows)
    table = otl.interchange(llama, contrast, positions="last", null_draws=0)
    assert set(table["engine"]) == {"hooks"}
    with pytest.raises(SinglePassError):
        otl.interchange(llama, contrast, positions="last", engine="single_pass")
    point = llama.hook_dict["blocks.0.hook_resid_pre"]
    point.add_hook(lambda x, hook: x)
    try:
        with pytest.raises(SinglePassError, match="hooks of the user"):
            otl.interchange(llama, contrast, positions="last", engine="single_pass")
    finally:
        point.remove_hooks()


def test_on_a_model_that_refuses_the_answer_follows_the_instruction_below_and_the_last_token_above():
    """The organism refuses by its layers; another partner of the same class changes next to nothing."""
    model, prompts = otl.load_model("organism"), otl.load_prompts("organism", sample=(8, 4, 12))
    table = otl.interchange(model, prompts, positions=["last", "instruction"], partners="length")
    n_layers = backend(model).n_layers
    last, instruction = (lines(table, position=name) for name in ("-1", "instruction"))
    assert (lines(last, layer=n_layers - 1)["share"] > 0.8).all()
    assert (lines(last, layer=0)["share"] < 0.5).all()
    assert (lines(instruction, layer=0)["share"] > 0.5).all()
    assert (lines(instruction, layer=n_layers - 1)["value"] == 0).all()
    found = lines(last, layer=n_layers - 1)
    assert (found["p_adjusted"] < 0.05).all()
    assert (found["null_mean"].abs() < found["value"].abs() / 4).all()


# ------------------------------------------------------------------------------------------------- tests


def test_flips_of_pure_noise_are_significant_as_rarely_as_they_say():
    rng = np.random.default_rng(0)
    least = [flip_test(rng.normal(size=(16, 40)), seed)[1].min() for seed in range(60)]
    assert np.mean(np.array(least) < 0.05) <= 0.15  # 60 maps: at most 9 with a probability of 99.9 %


def test_flips_find_the_cells_with_an_effect():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(24, 40))
    noise[:, 7] += 2.0
    p, adjusted = flip_test(noise, 0)
    assert adjusted.argmin() == 7
    assert adjusted[7] < 0.01
    assert (np.delete(adjusted, 7) > 0.05).all()
    assert (adjusted >= p).all()


def test_flips_by_hand():
    """Two of the eight flips of three equal prompts reach the sum; zeros and missing cells are none."""
    p, adjusted = flip_test(np.array([[1.0, 0.0, np.nan], [1.0, 0.0, np.nan], [1.0, 0.0, np.nan]]), 0)
    assert p[0] == pytest.approx(0.25, abs=0.03)
    assert adjusted[0] == p[0]
    assert p[1] == 1
    assert np.isnan(p[2])


# ------------------------------------------------------------------------------------------ share explained


def test_a_map_to_one_point_explains_what_its_activation_does(llama, monkeypatch):
    """An interchange with one partner for all is a constant map: it explains everything."""
    from ot_lens.patching import explained

    prompts = checkpoints.contrast_set(6)
    single = replace(prompts, test=Contrast(prompts.test.harmful, prompts.test.harmless[:1]))
    acts = otl.capture(llama, single.test, hook="resid_post", positions=[-1])
    d = backend(llama).d_model

    def to_the_partner(_acts, methods, *, layers, **_options):
        constant = {}
        for layer in layers:
            value = acts.harmless(layer, -1)[0].double()
            constant[layer] = otl.AffineMap(torch.zeros(d, 0), torch.zeros(d, 0), value, torch.zeros(d))
        return dict.fromkeys(methods, constant)

    monkeypatch.setattr(explained, "fit_maps", to_the_partner)
    table = otl.share_explained(llama, single, ["mean_shift"], draws=2)
    known = table["value"].notna()
    assert known.any()
    np.testing.assert_allclose(table["value"][known], 1.0, atol=1e-3)
    np.testing.assert_allclose(table["effect"], table["interchange"], atol=1e-4)


def test_share_explained_of_fitted_maps(llama):
    table = otl.share_explained(
        llama, checkpoints.contrast_set(8), ["mean_shift", {"name": "pca_ot", "k": 1}]
    )
    assert table["layer"].nunique() == backend(llama).n_layers
    assert set(table["method"]) == {"mean_shift", "pca_ot (k = 1)"}
    known = table[table["value"].notna()]
    np.testing.assert_allclose(known["value"], known["effect"] / known["interchange"], rtol=1e-9)
    assert (known["low"] <= known["value"]).all()
    holds_zero = table["interchange_low"] * table["interchange_high"] <= 0
    assert (table["value"].isna() == holds_zero).all()
    with pytest.raises(FitError, match="every block"):
        otl.share_explained(llama, checkpoints.contrast_set(4), ["rfa"])


def test_the_method_of_the_sweep_explains_about_everything():
    """It puts in training prompts' activations, the interchange those of test prompts."""
    model, prompts = otl.load_model("organism"), otl.load_prompts("organism", sample=(32, 4, 16))
    table = otl.share_explained(model, prompts, ["interchange", "mean_shift"], layers=[6]).set_index("method")
    assert 0.8 < table.loc["interchange", "value"] < 1.2
    assert table.loc["mean_shift", "value"] < 0.8
