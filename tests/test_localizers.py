"""Localizers: the band of a profile, what each localizer measures, and a model changed in known blocks."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.behaviour.next_token import score_from_logprobs
from ot_lens.errors import ActivationError, HookError, ModelError
from ot_lens.localizers import Effects, Setting, benchmark_localizers, find_band
from ot_lens.localizers.profiles import (
    as_in_base,
    edited,
    edited_instruction,
    heads_at_mean,
    interchanged,
    interchanged_instruction,
    left_out,
    probed,
    written,
    written_by_attention,
)
from ot_lens.localizers.truth import Truth
from ot_lens.models import (
    HookedCausalLM,
    backend,
    batches,
    common_prefix,
    encode,
    post_instruction_tokens,
    token_batch,
)
from ot_lens.single_pass.walk import run
from ot_lens.transport import AffineMap
from tests import checkpoints

LAYERS = 30


def effects(profile, n: int = 40, noise: float = 0.5, seed: int = 0) -> Effects:
    """Effects of harmful prompts around a profile, of harmless ones around zero."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(scale=noise, size=(2, len(profile), n))
    return Effects(drawn[0] + np.asarray(profile)[:, None], drawn[1])


def bump(first: int, last: int, height: float = 3.0) -> np.ndarray:
    profile = np.random.default_rng(1).normal(scale=0.3, size=LAYERS)
    profile[first : last + 1] += height
    return profile


# ------------------------------------------------------------------------------------------------ bands


@pytest.mark.parametrize(("first", "last"), [(0, 2), (13, 15), (22, 22), (27, 29)])
def test_a_planted_band_is_found(first, last):
    band = find_band(effects(bump(first, last)))
    assert (band.verdict, band.first, band.last) == ("band", first, last)
    assert band.low <= first <= last <= band.high
    assert band.spread <= 0.01


def test_layers_that_differ_by_chance_are_no_band():
    verdicts = [
        find_band(effects(np.random.default_rng(s).normal(1, 0.4, LAYERS))).verdict for s in range(60)
    ]
    assert set(verdicts) <= {"spread", "band"}
    assert verdicts.count("band") <= 9  # 5 % of 60 are 3; 99.9 % of such counts are at most 9


def test_a_band_of_less_than_half_of_the_whole_is_spread():
    """One layer stands out from others that all take part; where nothing else does, it is a band."""
    profile = np.full(LAYERS, 1.0) + bump(23, 23, 3.0)
    drawn = effects(profile, noise=0.1)
    assert find_band(drawn).verdict == "band"
    whole = find_band(replace(drawn, parts=True))
    assert (whole.verdict, whole.first) == ("spread", None)
    assert whole.share < 0.2
    alone = np.zeros(LAYERS)
    alone[5:8] = 2.0, 3.0, 1.5
    found = find_band(replace(effects(alone, noise=0.0), parts=True))
    assert (found.verdict, found.first, found.last, found.share) == ("band", 5, 7, 1.0)


def test_where_labels_say_nothing_nothing_is_localized():
    own = effects(bump(13, 15))
    mixed = Effects(own.harmful[:, ::2], own.harmful[:, 1::2])
    assert find_band(mixed).verdict == "nothing"
    assert find_band(own).verdict == "band"


def test_the_interval_holds_the_ends_of_the_band_as_often_as_it_says():
    found = [find_band(effects(bump(10, 13, 1.5), n=20, noise=1.0, seed=s), seed=s) for s in range(40)]
    bands = [band for band in found if band.verdict == "band"]
    assert len(bands) > 30
    assert np.mean([band.low <= 10 and band.high >= 13 for band in bands]) >= 0.85


def test_blocks_that_do_exactly_nothing_leave_those_that_do():
    profile = np.zeros(LAYERS)
    profile[5:8] = 2.0, 2.2, 1.8
    harmful = np.tile(profile[:, None], 10)
    assert find_band(Effects(harmful, np.zeros((LAYERS, 10)))).verdict == "band"
    none = find_band(Effects(np.zeros((LAYERS, 10)), np.zeros((LAYERS, 10))))
    assert (none.verdict, none.first) == ("nothing", None)


# --------------------------------------------------------------------------------- what they measure


@pytest.fixture(scope="module")
def organism():
    return otl.load_model("organism")


@pytest.fixture
def setting(llama_folder):
    model = otl.load_model(llama_folder)
    return Setting(model, checkpoints.contrast_set(4))


def score(setting, label: str = "harmful") -> torch.Tensor:
    group = dict(setting.prompts.test)[label]
    return otl.refusal_score(setting.model, group)


def test_a_block_left_out_is_one_that_adds_nothing(setting, monkeypatch):
    monkeypatch.setattr("ot_lens.localizers.profiles.DESTROYED", float("inf"))
    own, found = score(setting), left_out(setting)
    for layer, block in enumerate(setting.model.hf_model.model.layers):
        with monkeypatch.context() as patch:
            patch.setattr(block, "forward", lambda hidden, **_: hidden)
            np.testing.assert_allclose(found.harmful[layer], own - score(setting), atol=1e-4)


@pytest.mark.parametrize("part", ["attn_out", "mlp_out"])
def test_a_part_left_out_is_an_edit_that_writes_zeros(setting, part, monkeypatch):
    monkeypatch.setattr("ot_lens.localizers.profiles.DESTROYED", float("inf"))
    own, found = score(setting), left_out(setting, part)
    d = backend(setting.model).d_model
    zeros = AffineMap(torch.zeros(d, 0), torch.zeros(d, 0), torch.zeros(d), torch.zeros(d))
    with otl.intervene(setting.model, {(1, part): zeros}):
        np.testing.assert_allclose(found.harmful[1], own - score(setting), atol=1e-4)


def test_heads_at_their_mean_are_an_attention_at_its_mean(setting):
    """The output of an attention without bias is the sum of its heads."""
    effects = heads_at_mean(setting)
    means = otl.capture(setting.model, setting.prompts.train, hook="attn_out").data["harmless"][:, :, 0]
    nothing = torch.zeros(means.shape[-1], 0)
    for layer, mean in enumerate(means.mean(dim=1)):
        constant = AffineMap(nothing, nothing, mean, torch.zeros_like(mean))
        for label, found in (("harmful", effects.harmful), ("harmless", effects.harmless)):
            with otl.intervene(setting.model, {(layer, "attn_out"): constant}, "last"):
                without = score(setting, label)
            expected = score(setting, label) - without
            np.testing.assert_allclose(found[layer], expected, atol=1e-3)


def test_what_attentions_write_is_what_they_add_along_the_direction(setting):
    effects = written_by_attention(setting)
    direction = setting.train.harmful[-1].mean(dim=0) - setting.train.harmless[-1].mean(dim=0)
    added = otl.capture(setting.model, setting.prompts.test, hook="attn_out").data["harmful"][:, :, 0]
    expected = added.double() @ torch.nn.functional.normalize(direction, dim=0)
    np.testing.assert_allclose(effects.harmful, expected, atol=1e-4)


def test_a_block_that_destroys_the_model_says_nothing(setting, monkeypatch):
    monkeypatch.setattr("ot_lens.localizers.profiles.DESTROYED", -1.0)
    with pytest.raises(otl.OtLensError, match="knock-outs"):
        left_out(setting)


def changed(model: HookedCausalLM, layer: int, factor: float = 3.0) -> HookedCausalLM:
    """The model before one of its blocks learnt something."""
    other = copy.deepcopy(model.hf_model)
    with torch.no_grad():
        other.model.layers[layer].mlp.down_proj.weight.mul_(factor)
    return HookedCausalLM(other, model.tokenizer, "base")


def test_only_the_block_that_differs_from_the_base_has_an_effect(setting):
    base = changed(setting.model, 2)
    found = as_in_base(Setting(setting.model, setting.prompts, base))
    others = [layer for layer in range(len(found.harmful)) if layer != 2]
    assert np.abs(found.harmful[others]).max() < 1e-4
    assert np.abs(found.harmful[2]).min() > 1e-3
    assert np.abs(as_in_base(Setting(setting.model, setting.prompts, setting.model)).harmful).max() < 1e-4


def test_a_block_that_overflows_is_an_error_and_no_band(setting):
    base = changed(setting.model, 2, float("nan"))
    with pytest.raises(ActivationError, match="NaN"):
        as_in_base(Setting(setting.model, setting.prompts, base))


def test_a_base_of_another_architecture_is_refused(setting, organism):
    with pytest.raises(HookError, match="same architecture"):
        otl.locate(setting.model, setting.prompts, organism)


def test_what_blocks_write_adds_up_to_what_the_top_shows(setting):
    acts = otl.capture(setting.model, setting.prompts.train, hook="resid_post", positions=[-1])
    top, below = (
        otl.capture(setting.model, setting.prompts.test, layers=[layer], hook=hook, positions=[-1])
        for layer, hook in ((acts.layers[-1], "resid_post"), (0, "resid_pre"))
    )
    H, S = acts.harmful(acts.layers[-1]), acts.harmless(acts.layers[-1])
    r = torch.nn.functional.normalize(H.double().mean(0) - S.double().mean(0), dim=0)
    whole = (top.harmful(acts.layers[-1]).double() - below.harmful(0).double()) @ r
    np.testing.assert_allclose(written(setting).harmful.sum(axis=0), whole, atol=1e-4)


def test_edits_and_interchange_add_up_to_what_the_last_site_does(setting):
    """Steps from site to site: their sum is the effect at the top, less that at the embedding."""
    for found in (edited(setting, "last"), interchanged(setting)):
        assert found.harmless is None
        assert found.harmful.shape == (backend(setting.model).n_layers, len(setting.prompts.test.harmful))
    top = interchanged(setting).harmful.sum(axis=0)
    assert np.abs(top).max() > 0  # at the top the partner's score is taken over whole


def test_the_instructions_interchange_is_that_of_the_map(setting):
    """Block by block the difference of `interchange` with the same partner for all."""
    test = setting.prompts.test
    one = replace(setting, prompts=replace(setting.prompts, test=replace(test, harmless=test.harmless[:1])))
    found = interchanged_instruction(one).profile
    table = otl.interchange(
        setting.model, one.prompts, positions="instruction", classes=["harmful"], null_draws=0
    )
    assert set(table["n_left_out"]) == {0}
    np.testing.assert_allclose(found[1:], np.diff(table["value"]), atol=1e-4)
    # Below all blocks all of the instruction's effect is still to come.
    assert found.sum() == pytest.approx(-_first_effect(one), abs=1e-4)


@torch.no_grad()
def _first_effect(setting) -> float:
    """The mean change of the score with the embeddings of the partner's last words in the instruction."""
    served = backend(setting.model)
    (partner,), rows = (
        encode(served, group) for group in (setting.prompts.test.harmless, setting.prompts.test.harmful)
    )
    after, before = len(post_instruction_tokens(served)), setting._before
    changes = []
    for row in rows:
        common = min(len(row), len(partner)) - before - after
        mixed = [*row[: len(row) - after - common], *partner[len(partner) - after - common :]]
        scores = [
            score_from_logprobs(
                served.logits(*batch_of(served, tokens), keep=1)[:, -1].double().log_softmax(-1),
                otl.refusal_token_ids(setting.model),
            )
            for tokens in (mixed, row)
        ]
        changes.append(float(scores[0] - scores[1]))
    return float(np.mean(changes))


def batch_of(served, row):
    batch = token_batch(served, [row])
    return batch.tokens, batch.mask


def test_the_instruction_is_what_the_template_leaves(setting):
    """Between what all prompts begin with and the template's end, whatever a batch is padded with."""
    served = backend(setting.model)
    prompts = setting.prompts.test.harmful
    rows = encode(served, prompts)
    begins = common_prefix(
        [row for _, c in setting.prompts.splits for _, g in c for row in encode(served, g)]
    )
    ends = len(post_instruction_tokens(served))
    batch = token_batch(served, rows)  # padded
    inside = setting.instruction(batch)
    assert not batch.mask.all()
    for row, tokens, kept in zip(rows, batch.tokens, inside, strict=True):
        assert tokens[kept].tolist() == row[len(begins) : len(row) - ends]
        assert kept.any()


def test_a_shift_of_the_instruction_is_a_hook_at_its_tokens(setting):
    """At every site, on logits: before a block, and at the top, where the last token alone is read."""
    found = edited_instruction(setting)
    served, layers = backend(setting.model), setting.model.hf_model.model.layers
    own, lowered = score(setting), []
    for site, layer in enumerate(layers):
        means = []
        for _, group in setting.prompts.train:
            sums = []
            for prompt in group:
                [batch] = batches(served, [prompt], 1)
                stream = run(served, batch, last=False).streams[site][0].double()
                sums.append(stream[setting.instruction(batch)[0]].mean(dim=0))
            means.append(torch.stack(sums).mean(dim=0))
        scores = []
        for prompt in setting.prompts.test.harmful:
            [batch] = batches(served, [prompt], 1)
            change = setting.instruction(batch)[0][:, None] * (means[1] - means[0]).float()
            with layer_input(layer, change):
                scores.append(otl.refusal_score(setting.model, [prompt])[0])
        lowered.append(own - torch.stack(scores))
    steps = np.diff(torch.stack([*lowered, torch.zeros_like(own)]).numpy(), axis=0)
    np.testing.assert_allclose(found.harmful, steps, atol=1e-4)
    assert np.abs(steps).max() > 1e-2


@contextmanager
def layer_input(layer, change):
    """Add something to what enters a layer."""

    def hook(_module, args, kwargs):
        if args:
            return (args[0] + change, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + change}

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_probes_of_the_embedded_model_see_refusal(organism):
    prompts = otl.load_prompts("organism", sample=(48, 4, 24))
    found = probed(Setting(organism, prompts))
    assert 0.5 + found.profile.sum() == pytest.approx(1.0, abs=0.1)  # the AUC at the top
    by_layer = otl.locate_by_layer(organism, prompts)
    table = by_layer.drop_duplicates("localizer").rename(columns={"band_first": "first"})
    probe = by_layer[by_layer["localizer"] == "probe"]
    np.testing.assert_allclose(probe["value"], found.profile)
    assert (by_layer.groupby("localizer").size() == 8).all()
    assert set(by_layer["n"]) == {24, 48}  # edits are measured on harmful prompts alone
    assert list(table["recommended"]) == [True] + [False] * (len(table) - 1)
    assert set(table["says"]) == {"makes it", "can be changed", "can be seen"}
    assert (table["verdict"] != "nothing").any()
    assert (table["first"].notna() == (table["verdict"] == "band")).all()


def test_by_layer_intervals_hold_the_profile_and_nulls_hold_nothing():
    """On average over the layers, as 95 % intervals should; the block that matters is outside of its null."""
    true = bump(13, 15)
    tables = [effects(true, seed=seed).by_layer(seed) for seed in range(20)]
    covered = np.mean([(t["low"] <= true) & (true <= t["high"]) for t in tables])
    assert 0.9 < covered < 0.98
    for table in tables:
        assert (table["value"] > table["null_high"])[13:16].all()
        assert (table["null_mean"].abs() < 0.2).all()
    nothing = [effects(np.zeros(LAYERS), seed=seed).by_layer(seed) for seed in range(20)]
    inside = np.mean([(t["null_low"] <= t["value"]) & (t["value"] <= t["null_high"]) for t in nothing])
    assert 0.9 < inside < 0.98
    assert set(tables[0]["n"]) == {80}


# ------------------------------------------------------------------------------------- against a truth


def test_a_truth_is_what_the_adapter_declares(setting, monkeypatch):
    own = setting.model
    assert Truth.of(own) is None

    def declared(**planted):
        monkeypatch.setitem(own.tokenizer.init_kwargs, "ot_lens", {"planted": planted})
        return Truth.of(own)

    depth = own.cfg.n_layers
    assert declared(first=1, last=2, shuffled=False) == Truth("band", 1, 2)
    assert declared(first=0, last=depth - 1, shuffled=False, drop=0.5).kind == "spread"
    assert declared(first=0, last=depth - 1, shuffled=False) is None  # training chose among them
    assert declared(first=1, last=2, shuffled=True).kind == "nothing"
    with pytest.raises(ModelError, match="'soon'"):
        declared(first="soon", last=2)


def test_a_localizer_is_right_if_its_band_meets_the_planted_one():
    def row(verdict, first=None, last=None):
        return pd.Series({"verdict": verdict, "first": first, "last": last})

    planted = Truth("band", 5, 7)
    assert planted.judge(row("band", 7, 9)) == (True, 0)
    assert planted.judge(row("band", 10, 11)) == (False, 3)
    assert planted.judge(row("spread"))[0] is False
    assert Truth("spread", 0, 29).judge(row("spread"))[0]
    assert Truth("nothing", 5, 7).judge(row("nothing"))[0]
    assert not Truth("nothing", 5, 7).judge(row("band", 5, 7))[0]


def test_a_wrong_name_in_the_benchmark_is_told_before_a_model_is_read(monkeypatch):
    monkeypatch.setattr("ot_lens.localizers.benchmark.load_model", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(ModelError, match="'nowhere'"):
        benchmark_localizers(["nowhere"])
