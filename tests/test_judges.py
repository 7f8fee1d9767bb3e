"""Judges (phrases, classifiers, yes-no models, registered ones) against their models; saved answers."""

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
    load_completions,
    phrase_list,
    refuses,
    register_judge,
    save_completions,
)
from ot_lens.behaviour.judge_registry import network
from ot_lens.errors import JudgeError, ModelError, OtLensError, PromptError, RunFolderError
from ot_lens.generation import Completion
from ot_lens.prompts import Prompt
from ot_lens.statistics import rate
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


def test_a_bad_or_missing_list_is_named(tmp_path):
    bad = {"x.txt": (b"\n \n", b"\xff\xfe"), "y.json": (b"[]", b'["", "no"]', b"{", b'{"words": ["no"]}')}
    for name, contents in bad.items():
        for content in contents:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(PromptError, match=r"empty|not UTF-8|'y'"):
                phrase_list(tmp_path / name)
    with pytest.raises(PromptError, match=r"absent\.txt'.*arditi, jailbreakbench"):
        phrase_list(tmp_path / "absent.txt")


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
    assert harm.attack_success_rate == rate([True, False, True])


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (Fixed(True), "1 verdicts on 4"),
        (Fixed(1, 0, 1, 0), "gave 1"),
        (Fixed(question="polite"), "'polite'"),
        (Fixed(None, None, None, None), "all 4"),
    ],
)
def test_a_judge_that_misbehaves_is_named(judge, message):
    with pytest.raises(JudgeError, match=message):
        _ = judge_completions(judge, PROMPTS, ANSWERS).attack_success_rate
    with pytest.raises(JudgeError, match="4 prompts but 2"):
        judge_completions(judge if judge.question == "harmful" else Fixed(), PROMPTS, ANSWERS[:2])


# ------------------------------------------------------------------------------------------- agreement
def test_kappa_by_hand():
    """20 and 15 agreements, 5 and 10 disagreements: p_o = 0.7, p_e = 0.5, kappa = 0.4."""
    a = [True] * 25 + [False] * 25
    b = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement(a, b)
    assert (found.both, found.only_first, found.only_second, found.neither) == (20, 5, 10, 15)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.observed.value == pytest.approx(0.7)
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
    assert 0.9 < same.low < same.value == same.high == 1  # 300 answers do not prove agreement on all others
    assert agreement(a, b, seed=1) == agreement(a, b, seed=1)


def test_unanswered_completions_are_excluded_and_counted():
    refusal = judge_completions(Fixed(False, True, True, None, question="refused"), PROMPTS, ANSWERS)
    found = agreement([True, False, None, True], refusal)
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


def reference(judge: ClassifierJudge, texts: list[str]) -> list[float]:
    """Logits of every label, one text at a time, without padding."""
    rows = []
    for text in texts:
        inputs = judge._tokenizer(text, return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            rows.append(judge._model(**inputs).logits[0])
    return torch.stack(rows)


@pytest.mark.parametrize(("label", "several"), [("refused", False), (1, False), (1, True)])
def test_a_classifier_gives_the_probabilities_of_its_model(bert, label, several):
    judge = ClassifierJudge(bert, label=label, question="refused", batch_size=3)
    judge.network.config.problem_type = "multi_label_classification" if several else None
    logits = reference(judge, ANSWERS)
    expected = (logits.sigmoid() if several else logits.softmax(-1))[:, 1].tolist()
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

    cut = low(["w1", "w1"], ["w2 " * 30, "w2"])
    assert [(v.value, v.note) for v in cut] == [(True, "input cut from 32 to 16 tokens"), (True, "")]


def test_a_decoder_with_one_label_and_without_padding_token():
    tokenizer = checkpoints.tokenizer("llama")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, num_labels=1, initializer_range=0.6)
    decoder = checkpoints.random_weights(LlamaForSequenceClassification, config, seed=1)
    judge = ClassifierJudge(decoder, tokenizer=tokenizer, label=0, question="harmful")
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
    assert (verdict.value, "NaN" in verdict.note) == (None, True)
    with pytest.raises(JudgeError, match="tokenizer"):
        ClassifierJudge(model, label=0, question="refused")
    with pytest.raises(ModelError, match="absent"):
        ClassifierJudge("absent", label=0, question="refused")


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


# ------------------------------------------------------------------------------------------- yes or no
YES, NO = ([f"w{i}" for i in range(start, start + 16)] for start in (0, 16))  # w32 and beyond: neither


@pytest.fixture(scope="module")
def llama(llama_folder: Path):
    return otl.load_model(llama_folder)


def greedy_answer(model, ids: list[int]) -> str:
    with torch.no_grad():
        out = model.hf_model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    return model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def expected_verdict(text: str) -> bool | None:
    first = next(iter(re.findall(r"\w+", text)), "")
    return True if first in YES else False if first in NO else None


CASES = [
    (f"w{i} w{(7 * i) % 40}", " ".join(f"w{(3 * i + j) % 40}" for j in range(1 + i % 4))) for i in range(24)
]


@pytest.mark.parametrize("form", ["user", "text", "dialogue"])
def test_a_yes_no_judge_reads_the_model_s_greedy_answer(llama, form, monkeypatch):
    if form == "text":  # as the HarmBench classifier's tokenizer
        monkeypatch.setattr(llama.tokenizer, "chat_template", None)
    template = None if form == "dialogue" else "w9 {prompt} w3 {completion}"
    words = {"yes": YES, "no": NO, "max_new_tokens": 3}
    judge = YesNoJudge(llama, template, form=form, question="harmful", **words, batch_size=5)
    found = judge_completions(judge, *zip(*CASES, strict=True))
    for (prompt, answer), verdict in zip(CASES, found.verdicts, strict=True):
        text = f"w9 {prompt} w3 {answer}"
        turns = [{"role": "user", "content": text}]
        if form == "dialogue":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        if form != "text":
            text = llama.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = llama.tokenizer(text, add_special_tokens=form == "text")
        assert verdict.answer == greedy_answer(llama, ids["input_ids"])
        assert verdict.value == expected_verdict(verdict.answer)
    assert len(set(found.values)) > 1


def test_only_the_first_word_counts_and_nothing_is_guessed(llama):
    judge = YesNoJudge(llama, "{completion}", question="harmful")
    none = ["Not at all", "Nobody", "I think yes", "", "?!"]
    read = {True: ["Yes", " yes, it does."], False: ["**No**", "\n\nno\nS1"], None: none}
    for value, answers in read.items():
        assert [judge.read(answer) for answer in answers] == [Verdict(value, a.strip()) for a in answers]


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
    assert YesNoJudge.preset("llama_guard", model=llama).name == "llama_guard"
    with pytest.raises(JudgeError, match=r"'gpt'.*harmbench, llama_guard"):
        YesNoJudge.preset("gpt")
    decoded = guard._encode("w1", "w2")
    rendered = "<s> <user> w1 <eot> <assistant> w2 <eot> <assistant> <nl>"
    assert decoded == llama.tokenizer(rendered, add_special_tokens=False)["input_ids"]


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


# ------------------------------------------------------------------------------------------- by name
@pytest.mark.usefixtures("registries")
def test_a_registered_judge_is_made_by_name_once_with_its_options():
    made = []
    register_judge("mine", lambda **options: made.append(options) or Fixed(True, **options))
    lazy = LazyJudge({"preset": "mine", "question": "refused"})
    assert made == []
    assert judge_completions(lazy.loaded, ["w1"], ["w2"]).succeeded == [False]
    assert (lazy.loaded.name, lazy.model_name, judge_names()[-1]) == ("fixed", None, "mine")
    assert made == [{"question": "refused"}]
    assert judge_completions(LazyJudge("mine").loaded, ["w1"], ["w2"]).succeeded == [True]
    with pytest.raises(JudgeError, match="polite"):
        _ = LazyJudge({"preset": "mine", "polite": True}).loaded
    with pytest.raises(JudgeError, match="Fixed"):
        network(lazy.loaded)


@pytest.mark.usefixtures("registries")
def test_a_registered_judge_goes_to_another_process_unloaded():
    register_judge("mine", Fixed)
    lazy = LazyJudge("mine")
    assert lazy.loaded.name == "fixed"
    again = pickle.loads(pickle.dumps(lazy))
    assert again._judge is None
    assert again.loaded.name == "fixed"


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("nobody", "'nobody'.*harmbench"),
        ({"modell": "x"}, "modell"),
        ({"preset": ["harmbench"]}, r"preset is a name or a folder, not \['harmbench'\]"),
        ({"classifier": 3}, "classifier is a name or a folder, not 3"),
        ({"preset": "harmbench", "yes": "x"}, "'yes'"),
        ({"classifier": "a", "labell": 1}, "labell"),
    ],
)
def test_judges_that_cannot_be_named_or_made_are_errors(description, message):
    with pytest.raises(JudgeError, match=message):
        _ = LazyJudge(description).loaded
    for name in ("harmbench", ""):
        with pytest.raises(JudgeError, match=repr(name)):
            register_judge(name, Fixed)


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
    assert (now.judge, now.version, now.question) == ("phrases:arditi", "1", "refused")
    assert now.values == refuses(answers) == [True, False]
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
        (lambda a, b, c: (a, b), "2 completions .* 1"),
        (lambda a, b, c: (a, b, c, c), "2 completions .* 3"),
        (lambda a, b, c: (a, b[:20], c), "line 2"),
        (lambda a, b, c: (b, c), "line 1: "),
        (lambda a, b, c: (a.replace('"version": 1', '"version": 2'), b, c), "line 1: version"),
        (lambda a, b, c: (a, b.replace("n_tokens", "tokens"), c), "line 2: n_tokens"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    path = tmp_path / "answers.jsonl"
    save_completions(path, *saved())
    path.write_text("\n".join(change(*path.read_text().splitlines())) + "\n")
    with pytest.raises(RunFolderError, match=message):
        load_completions(path)


def test_a_missing_file_is_named_and_wrong_answers_write_none(tmp_path):
    with pytest.raises(RunFolderError, match=r"absent\.jsonl"):
        load_completions(tmp_path / "absent.jsonl")
    with pytest.raises(PromptError, match="1 prompts but 2"):
        save_completions(tmp_path / "x", ["w1"], saved()[1])
    assert not (tmp_path / "x").exists()


def test_stats_of_answers_by_hand():
    answers = [Completion("a b", 2, False), Completion(" ", 1, True), Completion("c", 6, True)]
    found = completion_stats(answers)
    assert (found.n, found.empty, found.truncated) == (3, 1, 2)
    assert (found.shortest, found.median, found.mean, found.longest) == (1, 2, 3, 6)
    assert "2 cut" in str(found)
    with pytest.raises(OtLensError, match="no completions"):
        completion_stats([])
