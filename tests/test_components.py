"""Contributions of components add up and are those of an outside tool; heads are ablated as said."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ot_lens as otl
from ot_lens.components import Component, Reading, ablation, read_contributions
from ot_lens.components import reading as reading_module
from ot_lens.errors import ActivationError, HookError, SinglePassError
from ot_lens.models import backend, encode
from ot_lens.models.architectures import heads_of
from ot_lens.prompts import Contrast
from ot_lens.transport import AffineMap
from tests import checkpoints, decoders, families

PROMPTS = checkpoints.contrast_set(6)


def unit(d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0)


@pytest.fixture(scope="module")
def llama():
    return otl.load_model(checkpoints.model("llama"), tokenizer=checkpoints.tokenizer("llama"))


@pytest.fixture(scope="module")
def organism():
    return otl.load_model("organism"), otl.load_prompts("organism", sample=(32, 1, 32))


@pytest.fixture(scope="module")
def refusal(organism):
    """The difference of class means that enters the last layer, of training prompts."""
    model, prompts = organism
    train = otl.capture(model, prompts.train, layers=[7])
    return train.harmful(7).mean(dim=0) - train.harmless(7).mean(dim=0)


def of_kinds(found, *kinds):
    return torch.stack([values for component, values in found.items() if component.kind in kinds])


# ------------------------------------------------------------------------------------------ contributions


def test_a_head_that_writes_the_direction_has_all_of_its_contribution():
    """A token w1 is e_0, attention is uniform, and head 1 of layer 0 carries e_0 to e_7.

    The norm multiplies a unit vector of 8 coordinates by sqrt(8): the head writes that times the share of w1.
    """
    tokenizer = checkpoints.tokenizer("llama")
    shape = {"hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), rms_norm_eps=0.0, **shape)).double()
    w1 = tokenizer.convert_tokens_to_ids("w1")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        network.model.embed_tokens.weight[:, 1] = 1.0
        network.model.embed_tokens.weight[w1] = torch.eye(8)[0].double()
        attention = network.model.layers[0].self_attn
        attention.v_proj.weight[4, 0] = attention.o_proj.weight[7, 4] = 1.0
    model = otl.load_model(network, tokenizer=tokenizer)
    texts = ("w1 w2", "w1 w1 w3"), ("w2", "w3 w4")
    prompts = Contrast(*(tuple(map(otl.Prompt, group)) for group in texts))
    table = otl.contributions(model, prompts, 5 * torch.eye(8)[7], permutations=99, bootstrap=99)
    written = [8**0.5 * ids.count(w1) / len(ids) for ids in encode(backend(model), prompts.harmful)]
    rows = table[table["prompts"] == "harmful"].set_index(["component", "layer", "head"])["value"]
    assert rows.loc[("head", 0, 1)].item() == pytest.approx(np.mean(written))
    for component in ("attention", "stream"):
        assert rows.loc[component].max() == pytest.approx(np.mean(written))
    others = table[
        ~table["component"].isin(["attention", "stream"]) & ~((table["layer"] == 0) & (table["head"] == 1))
    ]
    assert (others["value"].abs() < 1e-12).all()
    assert (table[table["prompts"] == "harmless"]["value"].abs() < 1e-12).all()


@pytest.mark.parametrize("tokens", ["last", "all"])
@pytest.mark.parametrize("name", ["llama31", "gemma2"])
def test_components_are_the_captured_addends(name, tokens, tmp_path):
    model = otl.load_model(families.write(tmp_path, name))
    served, prompts = backend(model), checkpoints.contrast(2)
    direction = unit(served.d_model)
    found = read_contributions(served, prompts.harmful, Reading(direction, 3, True, tokens), 16)
    for row, prompt in enumerate(prompts.harmful):
        length = len(encode(served, [prompt])[0])
        few, positions = Contrast((prompt,), (prompt,)), range(-length, 0) if tokens == "all" else [-1]
        for component, values in found.items():
            hook = {"attention": "attn_out", "mlp": "mlp_out"}.get(component.kind, "resid_pre")
            if component.kind in ("head", "bias"):
                continue
            layer = {"embedding": 0, "stream": 3}.get(component.kind, component.layer)
            acts = otl.capture(model, few, layers=[layer], hook=hook, positions=list(positions))
            expected = (acts.data["harmful"].double() @ direction).sum()
            torch.testing.assert_close(values[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hooks", ["residual", "full"])
def test_heads_are_those_of_transformer_lens(hooks, tmp_path):
    """`stack_head_results` of a TransformerBridge: the heads' addends in full width."""
    folder = families.write(tmp_path, "llama31")
    bridge, model = otl.load_model(folder, hooks="full"), otl.load_model(folder, hooks=hooks)
    prompt = "w1 w2 w3"
    direction = unit(backend(model).d_model)
    found = read_contributions(backend(model), [prompt], Reading(direction, 3), 16)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(checkpoints.one_batch(bridge, [prompt]).tokens)
        heads, labels = cache.stack_head_results(layer=3, pos_slice=-1, return_labels=True)
        parts = cache.decompose_resid(layer=3, pos_slice=-1)
    assert labels == [f"L{c.layer}H{c.head}" for c in found if c.kind == "head"]
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(of_kinds(found, "head"), heads.double() @ direction, **close)
    parts_found = of_kinds(found, "embedding", "attention", "mlp")
    torch.testing.assert_close(parts_found, parts.double() @ direction, **close)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gpt2", {"embedding", "attention", "head", "bias", "mlp", "stream"}),
        ("cohere", {"embedding", "attention", "head", "mlp", "stream"}),
        ("granite", {"embedding", "attention", "head", "mlp", "stream"}),
        ("mamba2", {"embedding", "attention", "stream"}),
        ("diffllama", {"embedding", "attention", "mlp", "stream"}),
        ("opt", {"embedding", "block", "stream"}),
    ],
)
def test_a_model_is_taken_apart_as_far_as_it_is_known(family, kinds, tmp_path):
    model = decoders.load(family, tmp_path)
    found = read_contributions(backend(model), PROMPTS.test.harmful, Reading(unit(32), 2), 16)
    assert {component.kind for component in found} == kinds


def test_sums_that_do_not_hold_are_refused(llama, monkeypatch):
    def wrong(layer):
        return replace(heads_of(layer), scale=2.0)

    monkeypatch.setattr(reading_module, "heads_of", wrong)
    with pytest.raises(HookError, match="heads of layer 0"):
        otl.contributions(llama, PROMPTS.test, unit(32))
    otl.contributions(llama, PROMPTS.test, unit(32), heads=False, permutations=9, bootstrap=9)
    monkeypatch.setattr(reading_module, "addends", lambda *_: ("mlp_out",))
    with pytest.raises(HookError, match="all components"):
        otl.contributions(llama, PROMPTS.test, unit(32), heads=False)


def test_rows_are_means_and_their_difference_with_intervals(llama):
    table = otl.contributions(llama, PROMPTS.test, unit(32), 2, bootstrap=199)
    assert set(table["at_layer"]) == {2}
    assert set(table["tokens"]) == {"last"}
    by = {name: rows.reset_index(drop=True) for name, rows in table.groupby("prompts")}
    np.testing.assert_allclose(by["harmful"]["value"] - by["harmless"]["value"], by["difference"]["value"])
    embedding = by["difference"].set_index("component").loc["embedding"]
    assert abs(embedding["value"]) < 1e-6  # all prompts end in the same token
    assert embedding["p_value"] == 1.0
    rest = by["difference"][by["difference"]["component"] != "embedding"]
    assert (rest["low"] < rest["value"]).all()
    assert (rest["value"] < rest["high"]).all()
    assert (rest["null_low"] < rest["null_high"]).all()
    assert (rest["p_holm"].dropna() >= rest["p_value"][rest["p_holm"].notna()]).all()
    assert rest.loc[rest["component"] == "stream", "p_holm"].isna().all()
    assert by["harmful"]["p_value"].isna().all()
    assert table.equals(otl.contributions(llama, PROMPTS.test, unit(32), 2, bootstrap=199))


def test_classes_that_do_not_differ_have_no_writer(organism, refusal):
    """The negative control beside the positive one: labels permuted, and as they are."""
    model, prompts = organism
    H, S = prompts.test.harmful, prompts.test.harmless
    mixed = Contrast((*H[::2], *S[::2]), (*H[1::2], *S[1::2]))
    for contrast, some in ((mixed, False), (prompts.test, True)):
        table = otl.contributions(model, contrast, refusal, 7)
        assert bool((table["p_holm"] < 0.05).any()) == some
    first = table[(table["prompts"] == "difference") & (table["p_holm"] < 0.05)].sort_values("value").iloc[-1]
    assert (first["component"], first["layer"]) == ("mlp", 6)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"direction": torch.ones(7)}, ActivationError, r"\[7\]"),
        ({"direction": torch.zeros(32)}, ActivationError, "norm 0.0"),
        ({"direction": torch.full((32,), torch.nan)}, ActivationError, "norm nan"),
        ({"layer": 9}, HookError, "9"),
        ({"tokens": "first"}, HookError, "first"),
        ({"permutations": 0}, otl.OtLensError, "permutations"),
        ({"bootstrap": 0}, otl.OtLensError, "bootstrap"),
    ],
)
def test_what_cannot_be_taken_apart_is_named(change, error, named, llama):
    with pytest.raises(error, match=named):
        otl.contributions(llama, PROMPTS.test, **{"direction": unit(32), **change})


def test_contributions_of_nan_are_refused(monkeypatch):
    network = checkpoints.model("llama")
    network.model.layers[1].mlp.down_proj.weight.data[:] = torch.nan
    model = otl.load_model(network, tokenizer=checkpoints.tokenizer("llama"))
    with pytest.raises(ActivationError, match="12 of 12 prompts"):
        otl.contributions(model, PROMPTS.test, unit(32))


# --------------------------------------------------------------------------------------- heads left out


def changes(table, kind="chosen"):
    return table[table["set"] == kind].set_index(["measure", "prompts"])["change"]


def test_all_heads_at_their_mean_are_the_attention_at_its_mean(llama):
    """The output of an attention without bias is the sum of its heads: an edit at attn_out does the same."""
    layer = 2
    table = otl.ablate_heads(llama, PROMPTS, [(layer, head) for head in range(4)], random_sets=5)
    means = otl.capture(llama, PROMPTS.train, layers=[layer], hook="attn_out").harmless(layer).mean(dim=0)
    nothing = torch.zeros(32, 0)
    constant = AffineMap(nothing, nothing, means.float(), torch.zeros(32))
    for label, group in PROMPTS.test:
        before = otl.refusal_score(llama, group).mean()
        with otl.intervene(llama, {(layer, "attn_out"): constant}, "last"):
            after = otl.refusal_score(llama, group).mean()
        assert changes(table)["refusal_score", label] == pytest.approx(float(after - before), abs=1e-4)


@pytest.mark.parametrize("mode", ["mean", "resample"])
def test_the_single_pass_ablates_heads_as_hooks_do(mode, llama, monkeypatch, mixed_lengths):
    run = partial(otl.ablate_heads, llama, PROMPTS, [(1, 0), (3, 2)], mode=mode, random_sets=40)
    single = run()

    def fails(*_args, **_options):
        raise SinglePassError("A block cannot be run again.")

    monkeypatch.setattr(ablation, "recorded_rows", fails)
    hooks = run()
    assert set(single["engine"]) == {"single_pass"}
    assert set(hooks["engine"]) == {"hooks"}
    numbers = single.select_dtypes("number").columns
    np.testing.assert_allclose(single[numbers], hooks[numbers], rtol=1e-3, atol=1e-4)
    assert abs(changes(single)["refusal_score", "harmful"]) > 1e-3


def test_a_set_of_heads_that_is_drawn_again_is_read_once_and_ties(llama, monkeypatch):
    """One head of 16 in 60 draws: each is read once, and the chosen one ties with itself alone."""
    read = []

    def lowest_without_the_chosen(_served, group, own, *_options):
        read.append(own.sets)
        values = torch.zeros(len(own.sets) + 1, len(group), 2, dtype=torch.double)
        values[0] = -1.0
        return values, "single_pass"

    monkeypatch.setattr(ablation, "_measured", lowest_without_the_chosen)
    table = otl.ablate_heads(llama, PROMPTS, [(1, 2)], random_sets=60, seed=4)
    rng = np.random.default_rng(4)
    again = sum(int(rng.choice(16, 1, replace=False)[0]) == 6 for _ in range(60))
    assert again > 1
    assert table["p_value"].dropna().tolist() == [(1 + again) / 61]
    assert [len(set(sets)) == len(sets) <= 16 for sets in read] == [True, True]


def test_resampling_one_prompt_is_its_mean(llama):
    one = replace(PROMPTS, train=Contrast(PROMPTS.train.harmful, PROMPTS.train.harmless[:1]))
    tables = [
        otl.ablate_heads(llama, one, [(1, 0)], mode=mode, random_sets=3) for mode in ("mean", "resample")
    ]
    np.testing.assert_allclose(changes(tables[0]), changes(tables[1]), atol=1e-6)


def test_necessity_is_against_random_heads(organism, refusal):
    """Of all heads, random sets are no other; the heads that write refusal are not necessary by chance."""
    model, prompts = organism
    every = [(layer, head) for layer in range(8) for head in range(4)]
    whole = otl.ablate_heads(model, prompts, every, random_sets=3)
    assert whole["p_value"].dropna().tolist() == [1.0]
    heads = otl.top_heads(otl.contributions(model, prompts.train, refusal, 7), 4)
    table = otl.ablate_heads(model, prompts, heads, random_sets=39)
    assert table.loc[table["set"] == "chosen", "heads"].iloc[0] == ", ".join(f"{a}.{b}" for a, b in heads)
    row = table[(table["set"] == "chosen") & (table["measure"] == "refusal_score")].iloc[0]
    assert row["change_high"] < 0
    assert row["null_low"] <= row["null_mean"] <= row["null_high"]
    assert (changes(table, "unedited") == 0).all()
    assert (table.loc[table["measure"] == "kl", "low"] >= 0).all()


def test_heads_that_cannot_be_ablated_are_named(llama, tmp_path):
    for heads, named in (([(1, 4)], r"\(1, 4\)"), ([(0, 1), (0, 1)], "different"), ([], "16")):
        with pytest.raises(HookError, match=named):
            otl.ablate_heads(llama, PROMPTS, heads)
    for wrong in ({"mode": "zero"}, {"random_sets": 0}):
        with pytest.raises(otl.OtLensError, match=str(*wrong.values())):
            otl.ablate_heads(llama, PROMPTS, [(0, 0)], **wrong)
    table = otl.contributions(llama, PROMPTS.test, unit(32), permutations=9, bootstrap=9)
    with pytest.raises(otl.OtLensError, match="k = 17"):
        otl.top_heads(table, 17)
    with pytest.raises(HookError, match="has heads that are known"):
        otl.ablate_heads(decoders.load("mamba2", tmp_path), PROMPTS, [(0, 0)])


def test_a_recurrence_between_attentions_is_ablated_by_hooks(tmp_path):
    table = otl.ablate_heads(decoders.load("qwen3_next", tmp_path), PROMPTS, [(1, 0)], random_sets=2)
    assert set(table["engine"]) == {"hooks"}
    assert Component("head", 1, 0).order < Component("mlp", 1).order
