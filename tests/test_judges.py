"""Judges (phrases, classifiers, yes-no models, registered ones) against their models; saved answers."""

import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import ot_lens as otl
from ot_lens.behaviour import (
    ClassifierJudge,
    Judge,
    LazyJudge,
    PhraseJudge,
    Verdict,
    YesNoJudge,
    agreement,
    completion_stats,
    judge_completions,
    judge_names,
    judge_presets,
    judge_registry,
    load_completions,
    phrase_list,
    refuses,
    register_judge,
    save_completions,
)
from ot_lens.errors import JudgeError, ModelError, OtLensError, PromptError, RunFolderError
from ot_lens.generation import Completion
from ot_lens.prompts import Prompt
from tests import checkpoints

PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7"]
ANSWERS = ["w8 w9", "w10 w11 w12 w13", "w14", "w1"]


# ------------------------------------------------------------------------------------------- phrase lists
def test_the_list_of_jailbreakbench_is_case_sensitive():
    found = phrase_list("jailbreakbench")
    assert (found.version, len(found.phrases), found.case_sensitive) == (1, 13, True)
    answers = ["It has an effect.", "As an aide, no.", "sorry", "Sorry, no", "I\u2019m sorry", "Hello! Sure."]
    assert refuses(answers, "jailbreakbench") == [False, True, False, True, True, True]
    assert refuses(["I CANNOT", "sorry"], "arditi") == [True, False]


def test_users_can_give_their_own_phrases(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("Alas\n\n  no can do \r\nI won\u2019t\n", encoding="utf-8")
    found = phrase_list(text)
    assert (found.name, found.phrases) == ("mine", ("Alas", "no can do", "I won\u2019t"))
    assert refuses(["ALAS!", "i won't", "Certainly"], str(text)) == [True, True, False]
    listed = tmp_path / "listed.json"
    listed.write_text('["Alas"]')
    assert phrase_list(listed).phrases == ("Alas",)
    named = tmp_path / "named.json"
    named.write_text('{"name": "ours", "version": 3, "phrases": ["Alas"], "case_sensitive": true}')
    assert (phrase_list(named).name, phrase_list(named).version) == ("ours", 3)
    assert refuses(["alas", "Alas"], named) == [False, True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"\n \n", "empty"),
        ("x.txt", b"\xff\xfe", "not UTF-8"),
        ("x.json", b"[]", "empty"),
        ("x.json", b'["", "no"]', "blank"),
        ("x.json", b"{", "'x'"),
        ("x.json", b'{"words": ["no"]}', "'x'"),
        ("x.txt", None, r"x\.txt'.*arditi, jailbreakbench"),
    ],
)
def test_a_bad_or_missing_list_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message):
        phrase_list(tmp_path / name)


# ------------------------------------------------------------------------------------------- judging
class Fixed:
    """A user's judge, with fixed verdicts."""

    name, version, question = "fixed", "7", "harmful"

    def __init__(self, *verdicts: object, question: str = "harmful") -> None:
        self.verdicts, self.question = list(verdicts), question

    def __call__(self, prompts, completions):
        return self.verdicts


def test_a_user_s_judge_follows_the_protocol():
    judge = Fixed(True, np.bool_(False), None, Verdict(True, "oh", 0.7, "cut"))
    assert isinstance(judge, Judge)
    assert isinstance(PhraseJudge(), Judge)
    assert not isinstance("arditi", Judge)
    found = judge_completions(judge, PROMPTS, ANSWERS)
    assert found.values == [True, False, None, True]
    assert found.n_unanswered == 1
    assert (found.judge, found.version) == ("fixed", "7")
    assert str(found) == "fixed (version 7): 2 of 4 harmful; 1 without an answer"
    table = found.table()
    assert table["value"].isna().tolist() == [False, False, True, False]
    assert table["score"].dropna().tolist() == [0.7]
    assert table["note"].tolist() == ["", "", "", "cut"]


def test_success_is_comparable_between_judges_of_refusal_and_of_harm():
    harm = judge_completions(Fixed(True, False, None, True), PROMPTS, ANSWERS)
    refusal = judge_completions(Fixed(False, True, None, False, question="refused"), PROMPTS, ANSWERS)
    assert harm.succeeded == refusal.succeeded == [True, False, None, True]
    rate = harm.attack_success_rate
    assert (rate.value, rate.n, rate.interval) == (pytest.approx(2 / 3), 3, "wilson")
    assert rate.low < 2 / 3 < rate.high


def test_the_phrase_judge_is_refuses():
    found = judge_completions(PhraseJudge(), ["a", "b"], ["I cannot.", "Sure."])
    assert found.values == refuses(["I cannot.", "Sure."])
    assert (found.judge, found.version, found.question) == ("phrases:arditi", "1", "refused")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: judge_completions(Fixed(True), PROMPTS, ANSWERS), "1 verdicts on 4"),
        (lambda: judge_completions(Fixed(1, 0, 1, 0), PROMPTS, ANSWERS), "gave 1"),
        (lambda: judge_completions(Fixed(question="polite"), PROMPTS, ANSWERS), "'polite'"),
        (lambda: judge_completions(PhraseJudge(), PROMPTS, ANSWERS[:2]), "4 prompts but 2"),
        (
            lambda: judge_completions(Fixed(None, None, None, None), PROMPTS, ANSWERS).attack_success_rate,
            "all 4",
        ),
    ],
)
def test_a_judge_that_misbehaves_is_named(call, message):
    with pytest.raises(JudgeError, match=message):
        call()


# ------------------------------------------------------------------------------------------- agreement
def test_kappa_by_hand():
    """20 and 15 agreements, 5 and 10 disagreements: p_o = 0.7, p_e = 0.5, kappa = 0.4."""
    a = [True] * 25 + [False] * 25
    b = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement(a, b)
    assert (found.both, found.only_first, found.only_second, found.neither) == (20, 5, 10, 15)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.observed.value == pytest.approx(0.7)
    assert found.kappa.low < 0.4 < found.kappa.high
    assert (found.kappa.low, found.kappa.high) == pytest.approx((0.14, 0.65), abs=0.05)  # 0.4 +- 1.96 * 0.13


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=40))
def test_kappa_is_scikit_learn_s(pairs):
    a, b = (list(side) for side in zip(*pairs, strict=True))
    found = agreement(a, b)
    if len(set(a)) == len(set(b)) == 1 and a == b:
        assert math.isnan(found.kappa.value)  # both say the same of all: agreement by chance is certain
        assert math.isnan(found.kappa.low)
    else:
        assert found.kappa.value == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def test_unrelated_judges_do_not_agree():
    generator = np.random.default_rng(0)
    a, b = (list(map(bool, generator.integers(0, 2, 300))) for _ in range(2))
    unrelated, same = agreement(a, b).kappa, agreement(a, a).kappa
    assert unrelated.low < 0 < unrelated.high
    assert (same.value, same.high) == (1, 1)
    assert 0.9 < same.low < 1  # 300 answers do not prove agreement on all others
    assert agreement(a, b, seed=1) == agreement(a, b, seed=1)
    assert agreement(a, [not x for x in a]).kappa.value == pytest.approx(-1, abs=0.03)


def test_unanswered_completions_are_excluded_and_counted():
    harm = judge_completions(Fixed(True, False, None, True), PROMPTS, ANSWERS)
    refusal = judge_completions(Fixed(False, True, True, None, question="refused"), PROMPTS, ANSWERS)
    found = agreement(harm, refusal)
    assert (found.unanswered, found.both, found.neither) == (2, 1, 1)
    with pytest.raises(JudgeError, match="no completion"):
        agreement([None, True], [True, None])
    with pytest.raises(JudgeError, match="3 and 2"):
        agreement([True] * 3, [True] * 2)


# ------------------------------------------------------------------------------------------- classifier
LABELS = {0: "COMPLIED", 1: "REFUSED", 2: "OTHER"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder classifier with three labels, saved as on a hub."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *checkpoints.WORDS])
    )
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=45, **shape, max_position_embeddings=32, num_labels=3, id2label=LABELS,
            initializer_range=0.6,
        )  # fmt: skip
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder classifier with one label, whose configuration has no padding token."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = checkpoints.tokenizer("llama")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, num_labels=1, initializer_range=0.6,
        )  # fmt: skip
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reference(judge: ClassifierJudge, texts: list[str]) -> list[float]:
    """Logits of every label, one text at a time, without padding."""
    rows = []
    for text in texts:
        inputs = judge._tokenizer(text, return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            rows.append(judge._model(**inputs).logits[0])
    return torch.stack(rows)


@pytest.mark.parametrize("label", ["refused", 1])
def test_a_classifier_gives_the_probabilities_of_its_model(bert, label):
    judge = ClassifierJudge(bert, label=label, question="refused", batch_size=3)
    expected = reference(judge, ANSWERS).softmax(-1)[:, 1].tolist()
    found = judge_completions(judge, PROMPTS, ANSWERS)
    assert [v.score for v in found.verdicts] == pytest.approx(expected, abs=1e-5)
    assert found.values == [p >= 0.5 for p in expected]
    assert 0 < sum(found.values) < len(ANSWERS)  # otherwise the test shows nothing
    assert found.judge == str(bert)


def test_threshold_and_template(bert):
    low = ClassifierJudge(bert, label="refused", question="refused", threshold=1e-6)
    assert judge_completions(low, PROMPTS, ANSWERS).values == [True] * 4
    pair = ClassifierJudge(bert, label="refused", question="refused", template="{prompt} w39 {completion}")
    texts = [f"{p} w39 {a}" for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    expected = reference(pair, texts).softmax(-1)[:, 1].tolist()
    assert [v.score for v in pair(PROMPTS, ANSWERS)] == pytest.approx(expected, abs=1e-5)


def test_a_multi_label_model_gives_each_label_its_own_probability(bert):
    judge = ClassifierJudge(bert, label="refused", question="refused")
    judge._model.config.problem_type = "multi_label_classification"
    expected = reference(judge, ANSWERS).sigmoid()[:, 1].tolist()
    assert [v.score for v in judge(PROMPTS, ANSWERS)] == pytest.approx(expected, abs=1e-5)


def test_a_truncated_input_is_noted(bert):
    judge = ClassifierJudge(bert, label="refused", question="refused")
    found = judge(["w1", "w1"], ["w2 " * 30, "w2"])
    assert [v.note for v in found] == ["input cut from 32 to 16 tokens", ""]
    assert found[0].value is not None


def test_a_decoder_with_one_label_and_without_padding_token(decoder):
    judge = ClassifierJudge(decoder, label=0, question="harmful")
    expected = reference(judge, ANSWERS)[:, 0].sigmoid().tolist()
    for pad in (None, 0):
        judge._model.config.pad_token_id = pad
        assert [v.score for v in judge(PROMPTS, ANSWERS)] == pytest.approx(expected, abs=1e-5)


def test_a_loaded_classifier_and_nan(bert):
    model = BertForSequenceClassification.from_pretrained(bert)
    tokenizer = BertTokenizerFast.from_pretrained(bert)
    judge = ClassifierJudge(model, tokenizer=tokenizer, label="refused", question="refused", name="mine")
    assert judge.name == "mine"
    torch.nn.init.constant_(model.classifier.bias, math.nan)
    (verdict,) = judge(["w1"], ["w2"])
    assert verdict == Verdict(None, note="the classifier's logits contain NaN")
    with pytest.raises(JudgeError, match="tokenizer"):
        ClassifierJudge(model, label=0, question="refused")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "DENIED"}, "'DENIED'.*0 'COMPLIED', 1 'REFUSED', 2 'OTHER'"),
        ({"label": 3}, "label 3"),
        ({"question": "rude"}, "'rude'"),
        ({"threshold": 1.5}, "threshold .*1.5"),
        ({"template": "{prompt}"}, "{completion}"),
        ({"template": "{completion} {behavior}"}, "{behavior}"),
        ({"template": "{completion} {"}, "not valid"),
    ],
)
def test_a_classifier_that_cannot_judge_is_named(bert, change, message):
    with pytest.raises(JudgeError, match=message):
        ClassifierJudge(bert, **({"label": 1, "question": "refused"} | change))


def test_a_missing_classifier_is_named(tmp_path):
    with pytest.raises(ModelError, match=str(tmp_path)):
        ClassifierJudge(tmp_path, label=0, question="refused")


# ------------------------------------------------------------------------------------------- yes or no
YES, NO = ([f"w{i}" for i in range(start, start + 16)] for start in (0, 16))  # w32 and beyond: neither


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory):
    return otl.load_model(checkpoints.write(tmp_path_factory.mktemp("llama"), "llama"))


def greedy_answer(model, ids: list[int], budget: int = 3) -> str:
    with torch.no_grad():
        out = model.hf_model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=budget, do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def expected_verdict(text: str) -> bool | None:
    first = next(iter(re.findall(r"\w+", text)), "")
    return True if first in YES else False if first in NO else None


CASES = [
    (f"w{i} w{(7 * i) % 40}", " ".join(f"w{(3 * i + j) % 40}" for j in range(1 + i % 4))) for i in range(24)
]


@pytest.mark.parametrize("form", ["user", "text", "dialogue"])
def test_a_yes_no_judge_reads_the_model_s_greedy_answer(llama, form):
    template = None if form == "dialogue" else "w9 {prompt} w3 {completion}"
    judge = YesNoJudge(
        llama, template, form=form, question="harmful", yes=YES, no=NO, max_new_tokens=3, batch_size=5
    )
    found = judge_completions(judge, *(list(side) for side in zip(*CASES, strict=True)))
    for (prompt, answer), verdict in zip(CASES, found.verdicts, strict=True):
        text = f"w9 {prompt} w3 {answer}"
        turns = [{"role": "user", "content": text}]
        if form == "dialogue":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rendered = llama.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = llama.tokenizer(text if form == "text" else rendered, add_special_tokens=form == "text")
        assert verdict.answer == greedy_answer(llama, ids["input_ids"])
        assert verdict.value == expected_verdict(verdict.answer)
    assert len(set(found.values)) > 1
    assert found.n_unanswered == found.values.count(None)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Yes", True),
        (" yes, it does.", True),
        ("**No**", False),
        ("\n\nno\nS1", False),
        ("Not at all", None),
        ("Nobody", None),
        ("I think yes", None),
        ("", None),
        ("?!", None),
    ],
)
def test_only_the_first_word_counts_and_nothing_is_guessed(llama, answer, value):
    judge = YesNoJudge(llama, "{completion}", question="harmful")
    assert judge.read(answer).value is value
    assert judge.read(answer).answer == answer.strip()


def test_an_input_that_does_not_fit_has_no_verdict(llama):
    judge = YesNoJudge(llama, "{completion}", question="harmful", yes=YES, no=NO, max_new_tokens=3)
    found = judge_completions(judge, ["w1"] * 3, ["w2", "w2 " * 200, "w3"])
    assert found.verdicts[1].value is None
    assert "has room for 125" in found.verdicts[1].note
    assert [v.note for v in found.verdicts[::2]] == ["", ""]
    assert found.verdicts[0] == judge(["w1"], ["w2"])[0]


def test_presets_have_their_models_templates_and_words(llama, monkeypatch):
    assert judge_presets() == ["harmbench", "llama_guard"]
    loaded = []
    monkeypatch.setattr("ot_lens.behaviour.yes_no.load_model", lambda name: loaded.append(name) or llama)
    harmbench, guard = (YesNoJudge.preset(name) for name in judge_presets())
    assert loaded == ["cais/HarmBench-Llama-2-13b-cls", "meta-llama/Llama-Guard-3-8B"]
    assert (harmbench.read("yes").value, harmbench.read("no").value) == (True, False)
    assert [guard.read(text).value for text in ("\n\nunsafe\nS2", "safe", "yes")] == [True, False, None]
    for judge in (harmbench, guard):
        found = judge_completions(judge, ["w1"], ["w2 {brace}"])
        assert found.question == "harmful"
        assert found.n_unanswered == 1  # a random model says neither
    raw = harmbench._encode("w1", "w2")
    assert raw[0] == llama.tokenizer.bos_token_id
    assert raw.count(llama.tokenizer.bos_token_id) == 1
    decoded = guard._encode("w1", "w2")
    rendered = "<s> <user> w1 <eot> <assistant> w2 <eot> <assistant> <nl>"
    assert decoded == llama.tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_a_preset_can_use_another_model(llama):
    assert YesNoJudge.preset("llama_guard", model=llama).name == "llama_guard"
    with pytest.raises(JudgeError, match=r"'gpt'.*harmbench, llama_guard"):
        YesNoJudge.preset("gpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": None}, "'user'.*None"),
        ({"form": "dialogue"}, "'dialogue'"),
        ({"form": "letter"}, "'letter'"),
        ({"yes": []}, "yes = "),
        ({"yes": ["no"]}, "twice"),
        ({"yes": ["oh yes"]}, "'oh yes'"),
        ({"question": "kind"}, "'kind'"),
        ({"template": "{prompt}"}, "{completion}"),
    ],
)
def test_a_yes_no_judge_that_cannot_judge_is_named(llama, change, message):
    arguments = {"template": "{completion}", "question": "harmful"} | change
    with pytest.raises(JudgeError, match=message):
        YesNoJudge(llama, arguments.pop("template"), **arguments)


def test_a_judge_without_chat_template_is_named(tmp_path):
    folder = checkpoints.write(tmp_path / "llama", "llama")
    model = otl.load_model(folder)
    model.tokenizer.chat_template = None
    with pytest.raises(PromptError, match="'user'"):
        YesNoJudge(model, "{completion}", question="harmful")
    YesNoJudge(model, "{completion}", question="harmful", form="text")


# ------------------------------------------------------------------------------------------- by name
@pytest.fixture
def registered():
    register_judge("mine", Fixed)
    yield
    del judge_registry._REGISTERED["mine"]


@pytest.mark.usefixtures("registered")
def test_a_registered_judge_is_made_by_name_once_with_its_options():
    made = []
    register_judge("mine", lambda **options: made.append(options) or Fixed(True, **options))
    lazy = LazyJudge({"preset": "mine", "question": "refused"})
    assert made == []
    assert judge_completions(lazy, ["w1"], ["w2"]).succeeded == [False]
    assert (lazy.name, lazy.model_name, judge_names()[-1]) == ("fixed", None, "mine")
    assert made == [{"question": "refused"}]
    assert judge_completions(LazyJudge("mine"), ["w1"], ["w2"]).succeeded == [True]
    with pytest.raises(JudgeError, match="polite"):
        _ = LazyJudge({"preset": "mine", "polite": True}).loaded
    with pytest.raises(JudgeError, match="Fixed"):
        judge_registry.network(lazy.loaded)


@pytest.mark.usefixtures("registered")
def test_a_registered_judge_goes_to_another_process_unloaded():
    lazy = LazyJudge("mine")
    assert lazy.name == "fixed"
    again = pickle.loads(pickle.dumps(lazy))
    assert again._judge is None
    assert again.name == "fixed"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: register_judge("harmbench", Fixed), "'harmbench'"),
        (lambda: register_judge("", Fixed), "''"),
        (lambda: LazyJudge("nobody"), "'nobody'.*harmbench"),
        (lambda: LazyJudge({"modell": "x"}), "modell"),
        (lambda: LazyJudge({"preset": "harmbench", "yes": "x"}).loaded, "'yes'"),
        (lambda: LazyJudge({"classifier": "a", "labell": 1}).loaded, "labell"),
    ],
)
def test_judges_that_cannot_be_named_or_made_are_errors(call, message):
    with pytest.raises(JudgeError, match=message):
        call()


# ------------------------------------------------------------------------------------------- saved answers
def saved() -> tuple[list[Prompt], list[Completion]]:
    prompts = [Prompt("w1", "a", ("a", "b"), "c"), Prompt("zwei \u2028 Zeilen")]
    return prompts, [Completion("I cannot.\n\u2028\x0b", 5, False), Completion("", 0, True)]


def test_saved_answers_come_back_and_can_be_judged_again(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    prompts, answers = saved()
    save_completions(path, prompts, answers, info={"model": "x", "seed": 3})
    found = load_completions(path)
    assert found.prompts == tuple(prompts)
    assert found.completions == tuple(answers)
    assert found.info == {"model": "x", "seed": 3}
    now = judge_completions(PhraseJudge(), prompts, answers)
    assert judge_completions(PhraseJudge(), found.prompts, found.completions) == now
    assert len(path.read_text().splitlines()) == 3


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_comes_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("text") / "answers.jsonl"
    answers = [Completion(text, len(text), False) for text in texts]
    save_completions(path, ["w1"] * len(texts), answers)
    assert load_completions(path).completions == tuple(answers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "2 completions .* 1"),
        (lambda lines: [*lines, lines[-1]], "2 completions .* 3"),
        (lambda lines: [lines[0], lines[1][:20], lines[2]], "line 2"),
        (lambda lines: lines[1:], "line 1: "),
        (lambda lines: [lines[0].replace('"version": 1', '"version": 2'), *lines[1:]], "line 1: version"),
        (lambda lines: [lines[0], lines[1].replace("n_tokens", "tokens"), lines[2]], "line 2: n_tokens"),
        (lambda _: ["", ""], "line 1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    path = tmp_path / "answers.jsonl"
    save_completions(path, *saved())
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(RunFolderError, match=message):
        load_completions(path)


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(RunFolderError, match=r"absent\.jsonl"):
        load_completions(tmp_path / "absent.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunFolderError, match="not UTF-8"):
        load_completions(tmp_path / "binary")
    with pytest.raises(PromptError, match="1 prompts but 2"):
        save_completions(tmp_path / "x", ["w1"], saved()[1])
    assert not (tmp_path / "x").exists()


def test_stats_of_answers_by_hand():
    answers = [Completion("a b", 2, False), Completion(" ", 1, True), Completion("c", 6, True)]
    found = completion_stats(answers)
    assert (found.n, found.empty, found.truncated) == (3, 1, 2)
    assert (found.shortest, found.median, found.mean, found.longest) == (1, 2, 3, 6)
    assert str(found) == "3 answers of 1-6 tokens (median 2, mean 3.0); 2 cut at the token budget, 1 empty"
    assert json.dumps(found.__dict__)
    with pytest.raises(OtLensError, match="no completions"):
        completion_stats([])
