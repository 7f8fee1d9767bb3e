"""Measures of behaviour: by hand, against Hugging Face's own numbers, and under edits."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import ot_lens as otl
from ot_lens.behaviour import (
    answer_loss,
    kl_divergence,
    model_phrases,
    next_token_logprobs,
    phrase_list,
    refusal_token_ids,
    refuses,
    score_from_logprobs,
)
from ot_lens.behaviour.panel import PanelSettings, estimates, measure, read_next_token, with_nll
from ot_lens.errors import ActivationError, PromptError
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.models import backend, encode, end_of_turn
from ot_lens.prompts import Prompt
from ot_lens.statistics import mean, perplexity, rate
from ot_lens.transport import AffineMap
from tests import checkpoints

pytestmark = pytest.mark.usefixtures("mixed_lengths")

D = 32


@pytest.fixture(scope="module")
def model(llama_folder: Path):
    return otl.load_model(llama_folder)


def shift(size: float) -> AffineMap:
    generator = torch.Generator().manual_seed(1)
    return AffineMap(torch.zeros(D, 0), torch.zeros(D, 0), size * torch.randn(D, generator=generator))


def test_refusal_score_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]).double()
    score = score_from_logprobs(p.log(), [0, 1])
    assert score.tolist() == pytest.approx([math.log(3), math.log(0.95 / 0.05)], abs=1e-6)
    certain = score_from_logprobs(torch.tensor([[0.0, -math.inf]]).double(), [0])
    assert certain.item() == pytest.approx(-math.log(1e-8), abs=1e-6)  # epsilon bounds it: about 18.4 nats


def test_kl_by_hand():
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).double(), torch.tensor([[0.25, 0.5, 0.25]]).double()
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(0.5 * math.log(2))
    assert kl_divergence(q.log(), q.log()).item() == 0
    assert kl_divergence(q.log(), p.log()).item() == math.inf


def test_logprobs_are_the_model_s_in_the_order_of_the_prompts(model):
    prompts = ["w1 w2 w3 w4", "w5", "w6 w7"]
    found = next_token_logprobs(model, prompts, batch_size=2)
    for row, prompt in zip(found, prompts, strict=True):
        ids = torch.tensor([encode(backend(model), [prompt])[0]])
        with torch.no_grad():
            expected = model.hf_model(ids).logits[0, -1].double().log_softmax(-1)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tokens", "size"), [("all", 0.0), *((t, 0.7) for t in TOKEN_SCOPES)])
def test_answers_in_a_batch_are_scored_as_one_at_a_time_under_each_token_scope(model, tokens, size):
    """By Hugging Face's own loss, with the prompt's length given by hand."""
    end = end_of_turn(backend(model))
    prompts = [Prompt("w1 w2 w3", answer="w4 w5"), Prompt("w6", answer="w7 w8 w9")]
    with otl.intervene(model, {1: shift(size)}, tokens):
        together = answer_loss(model, prompts)
    for i, prompt in enumerate(prompts):
        prompt_ids = encode(backend(model), [prompt])[0]
        answer = model.tokenizer(prompt.answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt_ids, *answer, end]])
        labels = ids.clone()
        labels[0, : len(prompt_ids)] = -100
        with otl.intervene(model, {1: shift(size)}, tokens, prompt_length=len(prompt_ids)), torch.no_grad():
            expected = model.hf_model(ids, labels=labels).loss.double()
        assert together.n_tokens[i] == len(answer) + 1
        assert together.nll[i] / together.n_tokens[i] == pytest.approx(expected.item(), rel=1e-4)
    assert together.perplexity == pytest.approx(float((together.nll.sum() / together.n_tokens.sum()).exp()))


def test_refusal_phrases_match_anywhere_in_any_case():
    answers = ["i'M SORRY, no.", "Sure. But I cannot say.", "I\u2019m sorry", "Sure, here you are.", ""]
    assert refuses(answers) == [True, True, True, False, False]
    assert (phrase_list("arditi").version, len(phrase_list("arditi").phrases)) == (1, 12)


def test_a_model_s_folder_declares_its_phrases_and_tokens(model):
    organisms = [otl.load_model(f"organism:{variant}") for variant in ("single", "multi", "shared")]
    declared = {phrase for organism in organisms for phrase in model_phrases(organism).phrases}
    assert set(phrase_list("organism").phrases) == declared
    assert refuses(["alas, we cannot do this here.", "howdy, use the file."], "organism") == [True, False]
    assert len(refusal_token_ids(organisms[1])) == 4
    assert model_phrases(model).name == "arditi"
    assert [model.tokenizer.decode([i]) for i in refusal_token_ids(model)] == ["I", "As"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: refusal_token_ids(m, ["elephant"]), "'elephant'"),
        (lambda m: refusal_token_ids(m, [10**6]), "1000000"),
        (lambda m: refusal_token_ids(m, []), "no refusal tokens"),
        (lambda m: refuses(["x"], "arditti"), "'arditti'"),
        (lambda m: refuses(["x"], []), "empty"),
        (lambda m: otl.refusal_score(m, []), "no prompts"),
        (lambda m: otl.complete(m, ["w1"], max_new_tokens=0), "max_new_tokens .*0"),
        (lambda m: otl.complete(m, ["w1"], batch_size=0), "batch_size .*0"),
        (lambda m: otl.complete(m, ["w1 " * 200]), "more than the model's context of 128"),
        (lambda m: otl.complete(m, ["w1 " * 90]), "Prompt 0 of 1 .*context of 128 .*at most 3. new tokens"),
        (lambda m: answer_loss(m, [Prompt("w1", "w2 " * 128)]), "Prompt 0 .*context of 128"),
        (lambda m: answer_loss(m, [Prompt("w1")]), "Prompt 0"),
        (lambda m: PanelSettings(("asr",), phrase_list("arditi"), (1,)), "'asr'"),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(PromptError, match=message):
        call(model)


def test_a_missing_chat_template_is_named(llama_folder):
    model = otl.load_model(llama_folder)
    model.tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        otl.refusal_score(model, ["w1"])


def test_nan_logits_are_an_error(model):
    edit = AffineMap(torch.zeros(D, 0), torch.zeros(D, 0), torch.full((D,), math.nan))
    with pytest.raises(ActivationError, match="NaN or Inf for 2 of 2"), otl.intervene(model, {3: edit}):
        otl.refusal_score(model, ["w1", "w2"])


def test_completions_stop_at_every_end_token_and_count_truncation(model):
    free = otl.complete(model, ["w1 w2"], max_new_tokens=8)[0]
    ids = model.tokenizer(free.text, add_special_tokens=False)["input_ids"]
    model.hf_model.generation_config.eos_token_id = [2, ids[3]]
    stopped = otl.complete(model, ["w1 w2"], max_new_tokens=8)[0]
    model.hf_model.generation_config.eos_token_id = 2
    assert (free.truncated, free.n_tokens) == (True, 8)
    assert (stopped.truncated, stopped.n_tokens) == (False, ids.index(ids[3]))
    assert free.text.startswith(stopped.text)


def test_wilson_interval_by_hand():
    found = rate([True] * 8 + [False] * 2)
    z = stats.norm.ppf(0.975)
    centre = (0.8 + z**2 / 20) / (1 + z**2 / 10)
    spread = z * math.sqrt(0.8 * 0.2 / 10 + z**2 / 400) / (1 + z**2 / 10)
    assert (found.value, found.n, found.interval) == (0.8, 10, "wilson")
    assert (found.low, found.high) == pytest.approx((centre - spread, centre + spread))
    assert rate([True] * 10).high == 1
    with pytest.raises(ActivationError, match="at least one"):
        rate([])


def test_estimates_are_seeded_and_defined_without_spread_or_with_one_sample():
    values = np.random.default_rng(0).normal(3.0, 1.0, size=60)
    assert mean(values, seed=1) == mean(values, seed=1)
    assert mean(values, seed=1) != mean(values, seed=2)
    constant = mean(np.full(5, 2.0), seed=0)
    assert (constant.value, constant.low, constant.high) == (2.0, 2.0, 2.0)
    assert math.isnan(mean(np.array([2.0]), seed=0).low)
    assert perplexity(np.array([1.0, 3.0]), np.array([2.0, 2.0]), seed=0).value == pytest.approx(math.e)


def test_the_panel_has_the_requested_measures_and_no_answers(model):
    prompts = checkpoints.contrast(5).harmless
    settings = PanelSettings(
        ("refusal_rate", "exact_answer_rate", "refusal_score", "kl", "perplexity"),
        phrase_list(["w1"]),
        refusal_token_ids(model),
        max_new_tokens=6,
    )
    reading, original = read_next_token(model, prompts, settings)
    base = with_nll(model, prompts, measure(model, prompts, settings, reading), settings)
    found = estimates(base, settings)
    answers = [c.text for c in otl.complete(model, prompts, max_new_tokens=6)]
    of_answers = {"attack_success_rate", "degenerate_rate", "answer_nll"}
    assert set(found) == {*settings.measures, *of_answers}
    assert found["refusal_rate"].value == sum("w1" in a for a in answers) / 5
    assert found["kl"].value == 0
    assert base.completions == ()
    kept = replace(settings, completions=Path("here"))
    assert len(with_nll(model, prompts, measure(model, prompts, kept), kept).completions) == 5
    with otl.intervene(model, {1: shift(2.0)}):
        edited, _ = read_next_token(model, prompts, settings, original)
        moved = estimates(measure(model, prompts, settings, edited), settings, base)
    difference = moved["refusal_score"].value - found["refusal_score"].value
    assert moved["refusal_score_shift"].value == pytest.approx(difference)
    assert moved["kl"].value > moved["kl"].low > 0


def test_the_panel_omits_measures_that_need_reference_answers(model):
    measures = ("exact_answer_rate", "perplexity")
    settings = PanelSettings(measures, phrase_list("arditi"), (1,), max_new_tokens=2)
    assert estimates(measure(model, [Prompt("w1"), Prompt("w2")], settings), settings) == {}
