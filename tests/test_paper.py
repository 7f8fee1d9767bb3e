"""The paper's study: sizes against transformers, the estimate by hand, a complete study on a tiny model."""

import json
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification, Qwen2Config

import ot_lens as otl
from ot_lens.errors import ConfigError, HookError, ModelError
from ot_lens.models.sizes import model_size, published, published_models
from ot_lens.paper_study.depth import depth_band, depth_grid
from ot_lens.paper_study.estimate import Available, Counts, Hardware, estimate, is_local, obstacles
from ot_lens.paper_study.preset import CAPABILITY, paper_study
from ot_lens.paper_study.table import PUBLISHED, paper_table, printable
from ot_lens.study import run_study
from ot_lens.study.weights import judge_model
from ot_lens.tables import select
from tests import checkpoints

TOTALS = {
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-chat-hf": 13_015_864_320,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
}
LLAMA_13B = "meta-llama/Llama-2-13b-chat-hf"


# ------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize("name", TOTALS)
def test_parameters_are_those_that_transformers_builds(name):
    """The package's formula, transformers' own classes without storage, and the published totals agree."""
    shape, size = published(name), model_size(name)
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[shape["type"]](
        vocab_size=shape["d_vocab"],
        hidden_size=shape["d_model"],
        intermediate_size=shape["d_mlp"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert size.n_parameters == sum(p.numel() for p in model.parameters()) == TOTALS[name]
    assert size.n_outside == size.n_parameters - sum(layer.weight.numel() for layer in linear)
    assert (size.n_layers, size.d_head) == (shape["n_layers"], shape["d_model"] // shape["n_heads"])


def test_the_six_models_are_the_paper_s_and_judges_have_a_size():
    assert published_models() == list(TOTALS)
    assert model_size("cais/HarmBench-Llama-2-13b-cls").n_parameters == TOTALS[LLAMA_13B]


def test_any_other_model_is_counted_from_its_configuration(llama_folder):
    for name in (str(llama_folder), "organism:single"):
        model = otl.load_model(name)
        found = model_size(name)
        assert found.n_parameters == sum(p.numel() for p in model.hf_model.parameters())
        assert (found.n_layers, found.d_model) == (model.cfg.n_layers, model.cfg.d_model)
        assert found.dtype == str(model.cfg.dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match="organism:large"):
        model_size("organism:large")
    with pytest.raises(ModelError, match="cannot read the configuration of 'nobody/nothing'"):
        model_size("nobody/nothing")


# ------------------------------------------------------------------------------------------- the study
def test_the_band_is_rounded_outward():
    assert depth_band(32) == list(range(12, 21))
    assert depth_band(40) == list(range(16, 25))
    assert depth_band(4) == [1, 2, 3]
    with pytest.raises(ConfigError, match="of 1 layers"):
        depth_band(1)


@pytest.mark.parametrize("name", TOTALS)
def test_what_is_known_of_the_paper_is_the_default(name):
    config = paper_study(name)
    ranks = [{"name": "pca_ot", "k": k, "mean_shift": "full"} for k in (1, 2)]
    assert config.methods == ["rfa", "linear_act", *ranks]
    assert (config.prompts, config.judge, config.position) == ("paper", "harmbench", -1)
    assert (config.search_size, config.search_each_size, config.answers) == (2, True, "all")
    assert (config.sets, config.fitting) == (["single", "all"], ["independent", "sequential"])
    assert (config.outcomes, config.claims, config.capability) == (True, True, list(CAPABILITY))
    n_layers = published(name)["n_layers"]
    assert config.layers == depth_grid(n_layers)
    cheaper = paper_study(name, layer_rule="validation")
    assert (cheaper.answers, cheaper.sets) == ("chosen", ["single"])
    assert all(0.37 <= layer / n_layers <= 0.63 for layer in cheaper.layers)


def test_what_is_open_is_an_option(llama_folder):
    fixed = paper_study(
        str(llama_folder), layer_rule="fixed", tokens="last", mean_shift="subspace", judge=None
    )
    assert (fixed.layer_sets, fixed.search_size) == ([[2], [1, 3]], 0)
    assert (fixed.tokens, fixed.judge) == ("last", None)
    assert {m["mean_shift"] for m in fixed.methods if isinstance(m, dict)} == {"subspace"}
    every = paper_study(str(llama_folder), layer_rule="every")
    assert every.layer_sets == [[1], [2], [3], [1, 2], [1, 3], [2, 3]]
    assert paper_study(str(llama_folder)).plane_layer == 2
    assert paper_study(str(llama_folder), layers=[1, 3]).plane_layer is None
    assert paper_study(str(llama_folder), seed=3, perplexity_text="x.txt").perplexity_text == "x.txt"
    embedded = paper_study("organism:single")
    assert (embedded.prompts, embedded.judge, embedded.capability) == ("organism", None, [])
    assert paper_study(LLAMA_13B, tokens="last").capability == []
    assert paper_study(LLAMA_13B, claims=False).variants == {}
    mistakes = {"'best'": {"layer_rule": "best"}, "'none'": {"mean_shift": "none"}, "'sede'": {"sede": 3}}
    for named, options in mistakes.items():
        with pytest.raises(ConfigError, match=named):
            paper_study(str(llama_folder), **options)


# ------------------------------------------------------------------------------------------- the estimate
def test_memory_by_hand():
    """Llama-2-13B: 2 bytes a parameter; keys and values of 40 layers x 5120, of 16 rows of 576 tokens."""
    needed = estimate(paper_study(LLAMA_13B))
    assert needed.weights == needed.judge == 2 * TOTALS[LLAMA_13B]
    assert needed.cache == 2 * 40 * 5120 * 2 * 16 * (64 + 512)
    assert needed.logits == 8 * 32000 * (259 + 32)
    assert needed.memory == needed.weights + needed.cache + needed.logits + needed.judge
    assert needed.disk == len(depth_grid(40)) * (256 + 259) * 5120 * 2


def test_work_by_hand():
    """Two methods at one layer each, named; one answer batch; no judge: every term counted by hand."""
    methods = {"methods": ["mean_shift", "linear_act"], "layers": [20], "layer_sets": [[20]]}
    alone = {"judge": None, "search_size": 0, "max_new_tokens": 100, "claims": False}
    config = paper_study(LLAMA_13B, layer_rule="fixed", **alone, **methods)
    counts = Counts(train=10, validation=5, test={"harmful": 16, "harmless": 16})
    found = estimate(config, Hardware("x", 100.0, 1.0, low=0.5, high=1.0), counts)
    read = 10 + 2 * 32 + 2 * 32  # capture; the unedited model; each method alone at layer 20
    answers = 3 * 32
    assert found.tokens == read * 64 + 2 * answers * (64 + 100)  # written, then read for its likelihood
    assert (found.judge, found.judged_tokens) == (0, 0)
    prefill = 2 * TOTALS[LLAMA_13B] * ((read + 2 * answers) * 64 + answers * 100) / 50e12
    cache = 2 * 40 * 5120 * 2 * 16 * 100
    decode = answers / 16 * 100 * (found.weights + cache) / 0.5e12
    assert found.hours[1] == pytest.approx((prefill + decode) / 3600)
    assert found.hours[0] < found.hours[1] / 2


def test_the_work_of_the_claims_by_hand():
    """One method at one layer: validated, varied in two strengths, scored on a task of three items."""
    named = {"methods": [{"name": "pca_ot", "k": 1}], "layers": [20], "layer_sets": [[20]], "search_size": 0}
    settings = {"layer_rule": "fixed", "judge": None, "max_new_tokens": 100, **named}
    counts = Counts(train=10, validation=5, test={"harmful": 16, "harmless": 16})
    bare = estimate(paper_study(LLAMA_13B, claims=False, **settings), counts=counts)
    tested = {
        "variants": {"strength": [0.3, 0.6], "k": [4]},
        "capability": ["arc_easy"],
        "capability_limit": 3,
    }
    whole = estimate(paper_study(LLAMA_13B, **settings, **tested), counts=counts)
    answers = 2 * (2 * 5) + 3 * 32  # both edits on validation prompts, three variants on test prompts
    scored = 2 * 3 * 600  # without an edit and under one
    assert whole.tokens - bare.tokens == 3 * 32 * 64 + 2 * answers * (64 + 100) + scored
    assert whole.hours[0] > bare.hours[0]


def test_quantisation_swapping_and_leaving_the_judge_out_need_less():
    name = "Qwen/Qwen2.5-32B-Instruct"
    whole = estimate(paper_study(name))
    int8, nf4 = (estimate(paper_study(name, quantization=q)) for q in ("int8", "nf4"))
    outside = model_size(name).n_outside
    assert int8.weights == TOTALS[name] + outside
    assert 0.25 * whole.weights < nf4.weights < 0.55 * int8.weights + outside
    assert estimate(paper_study(name, judge=None)).memory == whole.memory - whole.judge
    assert estimate(paper_study(name, judge_memory="swap")).memory == whole.memory - whole.judge
    with pytest.raises(ConfigError, match="no quantization 'int3'"):
        estimate(paper_study(name, quantization="int3"))


def test_a_study_that_does_not_fit_says_so(llama_folder):
    config = paper_study("Qwen/Qwen2.5-7B-Instruct")
    needed = estimate(config)
    memory, model, judge = obstacles(needed, Available(10**10, "cuda:0", 10**12), config)
    for fact in ("42.1 GB", "cuda:0 has 10.0 GB", "quantization=nf4", "device_map=auto"):
        assert fact in memory
    assert "Qwen/Qwen2.5-7B-Instruct is not on this machine: about 15.2 GB" in model
    assert "cais/HarmBench-Llama-2-13b-cls is not on this machine: about 26.0 GB" in judge
    assert judge_model({"preset": "harmbench", "model": "folder"}) == "folder"
    assert judge_model({"classifier": "a/b", "label": 1, "question": "harmful"}) == "a/b"
    assert "of disk are needed" in obstacles(needed, Available(10**11, "cuda:0", 10), config)[0]
    small = paper_study(str(llama_folder), judge=None)
    assert obstacles(estimate(small), Available(10**9, "main memory", 10**9), small) == []
    assert is_local(str(llama_folder))
    assert is_local("organism:multi")
    assert not is_local("nobody/nothing")


# ------------------------------------------------------------------------------------ a complete study
def words(count: int, length: int, seed: int) -> list[str]:
    """Different harmless texts of the tiny models' words."""
    generator = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(generator.choices(checkpoints.WORDS, k=length))] = None
    return list(texts)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's sources as their authors publish them, with synthetic words in them."""
    folder, harmful = tmp_path_factory.mktemp("sources"), words(260, 12, 1)
    columns = {"FunctionalCategory": "standard", "SemanticCategory": "x", "Tags": ""}
    behaviors = pd.DataFrame({"Behavior": harmful[180:]}).assign(**columns)
    alpaca = [{"instruction": text, "input": "", "output": "w1"} for text in words(300, 12, 2)]
    goals = pd.DataFrame({"goal": harmful[:90], "target": "Sure"})
    files = {
        "data/advbench/harmful_behaviors.csv": goals.to_csv(index=False),
        "data/MaliciousInstruct.txt": "\n".join(harmful[90:130]),
        "red_teaming/data/dev/behaviors.json": json.dumps(harmful[130:155]),
        "red_teaming/data/test/behaviors.json": json.dumps(harmful[155:180]),
        "data/behavior_datasets/harmbench_behaviors_text_val.csv": behaviors[:40].to_csv(index=False),
        "data/behavior_datasets/harmbench_behaviors_text_test.csv": behaviors[40:].to_csv(index=False),
        "alpaca_data.json": json.dumps(alpaca),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that was never trained."""
    folder = tmp_path_factory.mktemp("judge") / "classifier"
    tokenizer = checkpoints.tokenizer("llama")
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32}
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    labels = {"id2label": {0: "safe", 1: "harmful"}, "label2id": {"safe": 0, "harmful": 1}}
    config = LlamaConfig(**size, **shape, **labels, initializer_range=0.5)
    checkpoints.random_weights(LlamaForSequenceClassification, config, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(
    llama_folder: Path,
    root: Path,
    classifier: Path,
    tmp_path_factory: pytest.TempPathFactory,
    without_figures,
) -> Path:
    """The study on a tiny checkpoint with the paper's sources, a judge, a text and kept answers."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(" ".join(words(6, 20, 3)))
    config = paper_study(
        str(llama_folder),
        judge={"classifier": str(classifier), "label": "harmful", "question": "harmful"},
        perplexity_text=str(folder / "text.txt"),
        prompts_root=str(root),
        keep_completions=True,
        layer_rule="validation",
        variants={"strength": [0.5], "lift": ["discard"], "tokens": ["last"], "k": [1, 99]},
        max_new_tokens=4,
        batch_size=64,
        permutations=39,
        bootstrap=39,
    )
    with without_figures():
        run_study(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def table(finished: Path) -> pd.DataFrame:
    return pd.read_parquet(finished / "tables" / "localization.parquet")


def test_the_splits_are_the_paper_s(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    counts = {split: tuple(part.values()) for split, part in manifest["prompts"]["counts"].items()}
    assert counts == {"train": (128, 128), "val": (32, 32), "test": (40, 100)}
    assert manifest["finished"]


def test_one_and_two_layers_of_every_method_are_chosen_and_answered(table):
    chosen = table[(table["set"] == "search") & (table["measure"] == "refusal_rate")].fillna({"k": 0})
    sizes = chosen.assign(size=chosen["layers"].str.count(",") + 1).groupby(["method", "k"])["size"]
    assert {edit: sorted(set(part)) for edit, part in sizes} == {
        ("rfa", 0): [1],
        ("linear_act", 0): [1, 2],
        ("pca_ot", 1): [1, 2],
        ("pca_ot", 2): [1, 2],
    }
    single = table[table["set"] == "single"]
    assert set(single["measure"]) == {"refusal_score", "refusal_score_shift", "kl", "out_of_domain_share"}


def test_the_judge_is_in_the_table_and_said_what_the_table_says(finished, table, classifier):
    """The kept answers are judged again outside the study."""
    judged = table[table["measure"] == "judged_success_rate"]
    same = judged[["prompts", "interval", "n"]].drop_duplicates()
    assert same.to_numpy().tolist() == [["harmful", "wilson", 40]]
    assert set(judged["set"]) == {"none", "search"}
    assert judged["value"].between(judged["low"], judged["high"]).all()
    assert judged["note"].str.startswith("judge ").all()
    assert set(judged.loc[judged["set"] == "search", "test"]) == {"mcnemar"}
    judge = otl.ClassifierJudge(classifier, label="harmful", question="harmful")
    rates = []
    for path in sorted((finished / "completions").glob("*harmful.jsonl")):
        kept = otl.load_completions(path)
        rates.append(otl.judge_completions(judge, kept.prompts, kept.completions).attack_success_rate.value)
    variants = pd.read_parquet(finished / "tables" / "variants.parquet").drop_duplicates(["key", "measure"])
    varied = select(variants[~variants["key"].isin(table["key"])], measure="judged_success_rate")
    assert sorted(rates) == pytest.approx(sorted([*judged["value"], *varied["value"]]))
    assert len(set(rates)) > 1


def test_the_claims_are_tested_on_what_was_measured(finished, table):
    """Within the band: no full network and no other depth, but the judge, the text and variants."""
    tables = {p.stem: pd.read_parquet(p) for p in (finished / "tables").glob("*.parquet")}
    claims, outcomes, variants = (tables[name] for name in ("claims", "outcomes", "variants"))
    assert set(claims["claim"]) == {"gain", "sensitivity", "success", "agreement"}
    assert claims["value"].between(claims["low"], claims["high"])[claims["value"].notna()].all()
    assert set(claims.loc[claims["claim"] == "gain", "quantity"]) == {"coherent success", "judged success"}
    assert set(claims["verdict"]) <= {"supported", "not supported", "cannot tell"}
    assert set(variants["axis"]) == {"strength", "lift", "tokens", "k"}
    assert set(variants.loc[variants["axis"] == "k", "level"]) == {"1"}, "99 components are too many"
    harmful = outcomes[outcomes["prompts"] == "harmful"]
    assert set(outcomes["prompts"]) == {"harmful", "harmless", "text"}
    assert {*outcomes["key"]} == {*table["key"], *variants["key"]}
    rates = table[(table["measure"] == "judged_success_rate")].set_index("key")["value"]
    assert harmful.groupby("key")["judged"].mean()[rates.index].to_numpy(float) == pytest.approx(
        rates.to_numpy()
    )
    assert not outcomes.select_dtypes("string").isin(["w1"]).any().any()
    for name in ("claims.md", "claims.tex"):
        assert "supported" in (finished / "tables" / name).read_text()
    pd.testing.assert_frame_equal(otl.paper_claims(finished), claims)


def test_the_text_s_perplexity_is_the_model_s(finished, table, llama_folder):
    rows = table[(table["measure"] == "perplexity") & (table["prompts"] == "text")]
    assert set(rows["set"]) == {"none", "search"}
    unedited = rows[rows["set"] == "none"].iloc[0]
    loss = otl.text_loss(otl.load_model(llama_folder), finished.parent / "text.txt")
    assert unedited["value"] == pytest.approx(loss.perplexity)
    assert unedited["n"] == len(loss.nll)
    assert (rows.loc[rows["set"] == "search", "value"] != unedited["value"]).all()


def test_our_numbers_are_next_to_the_paper_s(finished):
    rows = pd.read_parquet(finished / "tables" / "paper.parquet")
    name = json.loads((finished / "manifest.json").read_text())["model"]["name"]
    mine, others = rows[rows["model"] == name], rows[rows["model"] != name]
    assert len(mine) == 1 + 1 + 3 * 2
    assert mine["asr"].between(0, 100).all()
    assert set(mine["perplexity_of"]) == {"text"}
    assert mine["paper_asr"].isna().all()
    assert set(others["model"]) == set(TOTALS)
    assert others["asr"].isna().all()
    known = others[others["paper_asr"].notna()].set_index(["model", "method"])
    assert known[["paper_asr", "paper_perplexity"]].apply(tuple, axis=1).to_dict() == PUBLISHED
    for name in ("paper.tex", "paper.md"):
        text = (finished / "tables" / name).read_text()
        assert "79.25" in text
        assert "nan" not in text


def test_the_table_of_the_paper_s_own_model_has_both():
    row = {"set": "search", "layers": "18", "method": "rfa", "k": None, "strength": 1.0, "control": ""}
    row |= {"prompts": "harmful", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "note": ""}
    rows = pd.DataFrame([row, row]).assign(measure=["attack_success_rate", "refusal_score"])
    table = paper_table(rows.assign(set=["search", "single"]), LLAMA_13B, "arditi")
    mine = table[table["model"] == LLAMA_13B].set_index("method")
    assert list(mine.index) == ["rfa", "linear_act", "pca_ot"]
    assert mine.loc["rfa", ["asr", "paper_asr", "judge"]].to_list() == [50.0, 46.49, "arditi"]
    assert mine.loc[["linear_act", "pca_ot"], "asr"].isna().all()
    shown = printable(table)
    assert shown.loc[0, "ASR %"] == "50.0 (40.0 to 60.0)"
    assert not shown.isin(["nan", "<NA>", "None"]).any().any()


# ------------------------------------------------------------------------------------------- named sets
@pytest.fixture(scope="module")
def small(llama_folder: Path):
    return otl.load_model(llama_folder), checkpoints.contrast_set(8)


def test_named_pairs_are_measured_with_answers(small):
    model, prompts = small
    tried = {"layers": [1, 2, 3], "sets": ["pair"], "layer_sets": [[2], [3, 1]], "max_new_tokens": 3}
    measures = ["refusal_rate", "refusal_score"]
    found = otl.localize(model, prompts, ["mean_shift", "rfa"], measures=measures, **tried)
    rates = select(found, measure="refusal_rate", prompts="harmful")
    named = select(rates, set="listed")
    edits = {("mean_shift", "2"), ("mean_shift", "1,3"), ("rfa", "2")}
    assert set(zip(named["method"], named["layers"], strict=True)) == edits
    assert "pair" not in set(rates["set"])
    scores = select(found, measure="refusal_score", prompts="harmful", layers="1,3", method="mean_shift")
    both = scores.set_index("set")["value"]
    assert both["listed"] == pytest.approx(both["pair"], abs=1e-5)


@pytest.mark.parametrize(
    ("layer_sets", "message"),
    [([[0]], "Layer 0"), ([[]], "at least one layer"), ([[1, 1]], "none twice")],
)
def test_named_sets_that_cannot_be_measured(small, layer_sets, message):
    model, prompts = small
    with pytest.raises(HookError, match=message):
        otl.localize(model, prompts, ["mean_shift"], layers=[1, 2], layer_sets=layer_sets)


# ------------------------------------------------------------------------------ the paper's own six models
@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the kind of HarmBench's classifier, with random weights."""
    return checkpoints.write(tmp_path_factory.mktemp("harmbench"), "llama", seed=3)


@pytest.fixture(scope="module")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {f: checkpoints.write(tmp_path_factory.mktemp(f), f) for f in ("llama", "qwen2")}


@pytest.mark.campaign
@pytest.mark.parametrize("name", TOTALS)
def test_the_study_of_each_model_runs_at_the_size_of_a_toy(
    name, root, judge_folder, tiny_folders, tmp_path, without_figures
):
    """Its own configuration, of a random model of its family and a random judge: every table."""
    small = {
        "model": str(tiny_folders["qwen2" if "Qwen" in name else "llama"]),
        "judge": {"preset": "harmbench", "model": str(judge_folder)},
        "prompts_root": str(root),
        "sample": [10, 8, 8],
        "layers": [1, 3],
        "plane_layer": 1,
        "variants": {"strength": [0.5], "k": [2]},
        "max_new_tokens": 2,
        "batch_size": 32,
        "permutations": 39,
        "bootstrap": 39,
        "capability": [],
        **dict.fromkeys(("localizers", "contributions", "interchange", "readout"), 0),
    }
    config = paper_study(name).model_copy(update=small)
    with without_figures():
        result = run_study(config, tmp_path / "run")
    claims = result.tables["claims"]
    assert {"layers", "gain", "sensitivity", "success"} <= set(claims["claim"])
    assert set(result.tables["outcomes"]["judged"].dropna()) <= {True, False}
