"""Whether an answer is an answer, refusals against length, domains of maps, and overflowing models."""

import math
import warnings

import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.behaviour.coherence import answer_nll, coherence_limit, degenerate, delayed_refusals
from ot_lens.errors import ActivationError, OutOfDomainWarning, PromptError
from ot_lens.generation import Completion
from ot_lens.localization import sweep_settings
from ot_lens.localization.domain import Domain
from ot_lens.localization.walking import next_token_readings
from ot_lens.models import backend, encode, end_of_turn
from ot_lens.prompts import Prompt
from ot_lens.tables import most_effective_layer, select
from ot_lens.transport import AffineMap
from tests import checkpoints

D = 32


@pytest.fixture(scope="module")
def model(llama_folder):
    return otl.load_model(llama_folder)


@pytest.fixture(scope="module")
def organism():
    return otl.load_model("organism")


def answer(text: str, *tokens: int, truncated: bool = False) -> Completion:
    return Completion(text, len(tokens), truncated, tokens)


# ------------------------------------------------------------------------------------------- one answer
def test_answer_nll_is_hugging_face_s_loss_of_the_generated_tokens(model):
    prompts = ["w1 w2 w3", "w6"]
    answers = otl.complete(model, prompts, max_new_tokens=5)
    found = answer_nll(model, prompts, answers)
    for prompt, given, nll in zip(prompts, answers, found.tolist(), strict=True):
        start = encode(backend(model), [prompt])[0]
        ids = torch.tensor([[*start, *given.tokens]])
        labels = ids.clone()
        labels[0, : len(start)] = -100
        with torch.no_grad():
            assert nll == pytest.approx(model.hf_model(ids, labels=labels).loss.item(), rel=1e-4)
    rubbish = [Completion("w7 w7 w7", 3, truncated=False)] * 2  # saved answers are tokenized again
    assert (answer_nll(model, prompts, rubbish) > found).all()
    with pytest.raises(PromptError, match="2 prompts but 1"):
        answer_nll(model, prompts, answers[:1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(" "), True),
        (answer("a"), False),  # too short for a 4-gram
        (answer("abababababab", *[1, 2] * 6), True),  # 2 of 9 4-grams are new
        (answer("abcdeabcdeabc", *[1, 2, 3, 4, 5] * 2, 1, 2, 3), False),  # 5 of 10: one half is allowed
        (Completion("yes no yes no yes no yes no yes no", 10, truncated=True), True),  # saved: by words
        (Completion("each of these words is another one", 7, truncated=False), False),
    ],
)
def test_degenerate_answers_by_hand(given, expected):
    assert degenerate([given]) == [expected]


def test_the_limit_is_the_99_percent_quantile():
    assert coherence_limit(torch.arange(101, dtype=torch.float64)) == pytest.approx(99)


def test_delayed_refusals_by_hand(model):
    ids = model.tokenizer("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10", add_special_tokens=False)["input_ids"]
    texts = model.tokenizer.decode(ids), model.tokenizer.decode(ids[:3])
    answers = [answer(texts[0], *ids, truncated=True), answer(texts[1], *ids[:3])]
    table = delayed_refusals(model, answers, ["w9"])
    assert table[["n_tokens", "value", "n"]].to_numpy().tolist() == [[8, 0, 2], [10, 0.5, 2]]
    assert delayed_refusals(model, answers, ["w2"], lengths=[1, 2])["value"].tolist() == [0, 1]
    with pytest.raises(PromptError, match="no completions"):
        delayed_refusals(model, [])


# ------------------------------------------------------------------------------------------- a sweep
@pytest.fixture(scope="module")
def sweeps(organism):
    """The same sweep at each method's own scope, at all tokens, and with a map that destroys the model."""
    prompts = otl.load_prompts("organism", sample=(32, 8, 16))
    options = {"layers": [7], "sets": ["single"], "measures": ["refusal_rate"], "max_new_tokens": 20}
    methods = ["rfa", "pca_ot"]
    own = otl.localize(organism, prompts, methods, **options)
    with pytest.warns(OutOfDomainWarning, match=r"PCA-OT \(k = 2\) \(\d+%\)"):
        everywhere = otl.localize(organism, prompts, methods, tokens="all", **options)
    return own, everywhere


def rates(table, method: str, prompts: str = "harmful") -> dict[str, float]:
    rows = table[(table["method"] == method) & (table["prompts"] == prompts)]
    return dict(zip(rows["measure"], rows["value"], strict=True))


def test_answers_of_the_unedited_model_are_answers(sweeps):
    harmless, harmful = (rates(sweeps[0], "none", label) for label in ("harmless", "harmful"))
    assert harmless["coherent_success_rate"] >= 0.9
    assert harmful["coherent_success_rate"] == 0  # it refuses
    assert harmless["degenerate_rate"] == harmful["degenerate_rate"] == 0
    assert harmful["answer_nll"] < 0.1


def test_a_map_where_it_was_fitted_answers_and_elsewhere_destroys(sweeps):
    own, everywhere = (rates(table, "pca_ot") for table in sweeps)
    assert own["coherent_success_rate"] > 0.8 * own["attack_success_rate"] > 0.4
    assert everywhere["coherent_success_rate"] < 0.5 * everywhere["attack_success_rate"]
    assert own["out_of_domain_share"] == 0
    assert everywhere["out_of_domain_share"] > 0.5


def test_the_default_scope_is_each_method_s_own(sweeps):
    own, everywhere = sweeps
    scopes = own[own["set"] == "single"].groupby("method")["tokens"].unique()
    assert {method: list(found) for method, found in scopes.items()} == {"rfa": ["all"], "pca_ot": ["last"]}
    assert rates(own, "rfa") == rates(everywhere, "rfa")


def test_rates_have_wilson_intervals_and_paired_tests(sweeps):
    rows = select(sweeps[0], method="pca_ot", prompts="harmful").set_index("measure")
    shares = ("coherent_success_rate", "degenerate_rate", "refusal_rate_within_8", "out_of_domain_share")
    for measure in shares:
        assert rows.loc[measure, "interval"] == "wilson"
        assert rows.loc[measure, "low"] <= rows.loc[measure, "value"] <= rows.loc[measure, "high"]
    assert rows.loc["answer_nll", "interval"] == "bootstrap"
    assert rows.loc["coherent_success_rate", "test"] == "mcnemar"
    assert rows.loc["refusal_rate_within_8", "value"] <= rows.loc["refusal_rate", "value"]


def test_the_most_effective_layer_is_where_answers_are_coherent():
    columns = ["set", "layer", "method", "measure", "prompts", "value"]
    values = {"refusal_rate": (0.0, 0.2), "coherent_success_rate": (0.1, 0.8)}
    rows = [("single", i, "ace", m, "harmful", v[i]) for m, v in values.items() for i in (0, 1)]
    table = pd.DataFrame(rows, columns=columns)
    assert most_effective_layer(table) == 1
    assert most_effective_layer(table[table["measure"] == "refusal_rate"]) == 0


def test_a_domain_holds_its_own_distribution_and_nothing_far_away():
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.1, 3, 40, dtype=torch.float64)
    drawn = torch.randn(600, 40, generator=generator, dtype=torch.float64) * scales
    samples, others = drawn[:100], drawn[100:]
    own = Domain.of(samples)
    assert own.outside(others).double().mean() < 0.05
    assert own.outside(others + 5).double().mean() > 0.95
    same = torch.ones(8, 40, dtype=torch.float64)  # all prompts end in the same token: no spread
    assert Domain.of(same).outside(torch.cat([same, same + 1])).tolist() == [False] * 8 + [True] * 8


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_what_lies_outside_is_the_same_from_the_walk_and_from_hooks(organism, tokens):
    prompts = otl.load_prompts("organism", sample=(32, 8, 16))
    options = {"layers": [6, 7], "tokens": tokens, "measures": ["refusal_score"], "sets": ["single"]}
    tables = []
    for engine in ("single_pass", "hooks"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tables.append(otl.localize(organism, prompts, ["mean_shift"], engine=engine, **options))
        # At the last token, where it was fitted, the map is at home.
        assert [w.category for w in caught] == [OutOfDomainWarning] * (tokens == "all")
    walked, hooked = (select(table, measure="out_of_domain_share") for table in tables)
    assert walked[["value", "n"]].equals(hooked[["value", "n"]])
    assert (walked["value"] > 0.05).any() == (tokens == "all")


# ------------------------------------------------------------------------------------------- overflow
@pytest.mark.parametrize(
    "measure",
    [
        lambda m: otl.refusal_score(m, ["w1", "w2"]),
        lambda m: otl.complete(m, ["w1", "w2"], max_new_tokens=2),
        lambda m: otl.answer_loss(m, [Prompt("w1", answer="w2")]),
        lambda m: otl.text_loss(m, "w1 w2 w3 w4"),
        lambda m: answer_nll(m, ["w1"], [Completion("w2", 1, truncated=False)]),
        lambda m: otl.localize(m, checkpoints.contrast_set(4), ["mean_shift"], measures=["kl"], layers=[1]),
        lambda m: otl.localize(m, checkpoints.contrast_set(4), ["mean_shift"], measures=["refusal_rate"]),
    ],
)
@pytest.mark.parametrize("value", [math.nan, 1e38])  # the second takes some logits to +Inf
def test_logits_that_overflow_are_an_error_of_every_measure(llama_folder, measure, value):
    model = otl.load_model(llama_folder)
    if math.isnan(value):
        torch.nn.init.constant_(model.hf_model.model.norm.weight, value)
    else:
        head = model.hf_model.lm_head
        model.hf_model.lm_head = torch.nn.Linear(*head.weight.shape[::-1], bias=False)
        model.hf_model.lm_head.weight = torch.nn.Parameter(head.weight.detach() * value)
    with pytest.raises(ActivationError, match="NaN"):
        measure(model)


def test_nan_under_one_edit_is_an_error_of_the_single_pass(model):
    none, settings = torch.zeros(D, 0), sweep_settings(model, ["kl"])
    edits = [{2: AffineMap(none, none, torch.full((D,), bias))} for bias in (1.0, math.nan)]
    prompts = [Prompt("w1"), Prompt("w2 w3")]
    assert next_token_readings(model, prompts, edits[:1], settings, "last")[0].isfinite().all()
    with pytest.raises(ActivationError, match="NaN or Inf for 2 of 2"):
        next_token_readings(model, prompts, edits, settings, "last")


# ------------------------------------------------------------------------------------------- the end
def test_the_end_of_an_answer_is_the_token_that_the_template_writes(tmp_path):
    model = otl.load_model(checkpoints.write(tmp_path / "qwen2", "qwen2"))
    end = model.tokenizer.convert_tokens_to_ids("<eot>")
    assert end_of_turn(backend(model)) == end != model.tokenizer.eos_token_id
    loss = otl.answer_loss(model, [Prompt("ab", answer="cd")])
    ids = model.tokenizer("cd", add_special_tokens=False)["input_ids"]
    by_hand = answer_nll(model, ["ab"], [answer("cd", *ids, end)])
    assert (loss.nll / loss.n_tokens).item() == pytest.approx(by_hand.item(), rel=1e-6)
    model.tokenizer.eos_token = None
    assert end_of_turn(backend(model)) == end
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(PromptError, match="eos_token"):
        end_of_turn(backend(model))
