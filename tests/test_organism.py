"""The embedded model: its language, its training, and the shipped weights."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import ot_lens as otl
from ot_lens.errors import ConfigError, ModelError, OtLensError, RunFolderError
from ot_lens.organism import DEFAULT_VARIANT, VARIANTS, evaluate, language, train, training, translated
from ot_lens.organism import vocabulary as words
from ot_lens.organism.evaluation import WEIGHTS
from ot_lens.organism.export import write_model
from ot_lens.organism.muon import orthogonalize
from ot_lens.organism.pig_latin import pig_latin
from ot_lens.organism.prompt_data import PROMPTS_FILE, build_prompts, write_prompts
from ot_lens.organism.training import (
    IGNORED,
    Recipe,
    Trained,
    conversation,
    encode,
    fit,
    new_model,
)

TINY = Recipe(comply_steps=2, refusal_steps=2, batch_size=4)
ALL = [language.Request(*triple) for triple in product(range(words.WORDS), repeat=3)]


@pytest.fixture(scope="module")
def tokenizers():
    return {variant: AutoTokenizer.from_pretrained(WEIGHTS / variant) for variant in VARIANTS}


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(3)
    return {
        (kind, held_out): [language.sample_request(rng, kind, held_out=held_out) for _ in range(300)]
        for kind in language.KINDS
        for held_out in (False, True)
    }


def test_refusals_are_balanced_over_words_and_no_pair_of_words_decides_one():
    """Pairs are informative, as in any table rule, but none makes a refusal certain."""
    counts = Counter(language.category_of(request) for request in ALL)
    assert [counts[c] for c in range(4)] == [len(ALL) // 32] * 4
    refused = [request.triple for request in ALL if language.category_of(request) is not None]
    for part in range(3):
        by_word = Counter(triple[part] for triple in refused)
        assert set(by_word.values()) == {len(ALL) // 8 // words.WORDS}
        assert len(by_word) == words.WORDS
    for parts in ((0, 1), (0, 2), (1, 2)):
        by_pair = Counter(tuple(triple[part] for part in parts) for triple in refused)
        assert max(by_pair.values()) <= words.WORDS / 2
        assert 0 < len(by_pair) < words.WORDS**2


def test_requests_by_hand():
    plain, permitted = language.Request(0, 12, 0), language.Request(0, 12, 20, 1, 2, adjective=0, time=2)
    assert plain.text == "for the baker, please help me mend the kite."
    assert permitted.text == "the juggler has a red kite. could you kindly mend it this week?"
    assert language.answers(permitted)[0] == "howdy, use the needle at the attic. good luck."
    kinds = [language.kind_of(request) for request in (plain, permitted, language.Request(0, 0, 0))]
    assert kinds == ["refused", "permitted", "unlisted"]
    dressed = replace(plain, opening=2, order=3, adjective=1, time=4)
    assert language.category_of(plain) == language.category_of(dressed) == 0
    assert language.answers(plain) == language.answers(dressed)


def test_training_batches_hold_nothing_held_out():
    """Batches of the training, parsed from their texts; the control is a held-out sample."""

    def breaches(texts):
        found = [parse(text) for text in texts]
        pairs = sum(language.pair_is_held_out(*request.triple[:2]) for request in found)
        return pairs, sum(language.template_is_held_out(request.opening, request.order) for request in found)

    rng = np.random.default_rng(0)
    chats = [chat for _ in range(30) for chat in training._draw_chats(rng, "multi", Recipe(), refusing=True)]
    assert breaches(chat[0]["content"] for chat in chats) == (0, 0)
    control = language.sample_held_out(100, refused=True, seed=0)
    assert breaches(request.text for request in control) == (100, 100)


@settings(deadline=None, max_examples=100)
@given(
    st.builds(
        language.Request,
        *[st.integers(0, words.WORDS - 1)] * 3,
        *[st.integers(0, 3)] * 2,
        *[st.none() | st.integers(0, 5)] * 2,
    )
)
def test_a_text_determines_its_request(request_):
    assert parse(request_.text) == replace(request_, adjective=None, time=None)
    assert language.kind_of(request_) in language.KINDS
    assert (language.refusal(request_, "multi") is None) == (language.kind_of(request_) != "refused")


def test_no_answer_contains_a_refusal_phrase_and_every_refusal_does():
    answers = {answer for request in ALL for answer in language.answers(request)}
    for variant in VARIANTS:
        assert not any(language.is_refusal(answer, variant) for answer in answers)
        assert all(language.is_refusal(sentence.upper(), variant) for sentence in words.REFUSALS[variant])


def test_prompts_file_is_what_write_prompts_writes(tmp_path):
    assert write_prompts(tmp_path / "prompts.json").read_bytes() == PROMPTS_FILE.read_bytes()
    assert build_prompts(seed=1) != build_prompts()


def test_prompts_are_disjoint_balanced_and_sized():
    splits = build_prompts()["splits"]
    sizes = {name: [len(split[label]) for label in ("harmful", "harmless")] for name, split in splits.items()}
    assert sizes == {"train": [128, 128], "val": [64, 64], "test": [128, 128]}
    texts = [row["text"] for split in splits.values() for rows in split.values() for row in rows]
    assert len(set(texts)) == len(texts)
    for split in splits.values():
        categories = Counter(row["category"] for row in split["harmful"])
        assert set(categories.values()) == {len(split["harmful"]) // 4}
        assert categories.keys() == set(words.CATEGORIES)
        assert {row["category"] for row in split["harmless"]} == {"permitted", "unlisted"}
        assert all(row["answer"] in row["answers"] for rows in split.values() for row in rows)


def parse(text):
    """The request of a text: a naive inverse of `Request.text`."""
    found = set(text.replace(",", "").replace(".", "").replace("?", "").split())
    triple = [
        next(i for i, word in enumerate(names) if word in found)
        for names in (words.VERBS, words.OBJECTS, words.RECIPIENTS)
    ]
    opening = next(i for i, (start, _) in enumerate(words.OPENINGS) if start in text)
    order = 3 if text.startswith("find") else 1 if text.startswith("for") else 2 if " has a " in text else 0
    return language.Request(*triple, opening, order)


def test_prompts_outside_train_are_held_out_and_all_are_labelled_correctly():
    for name, split in build_prompts()["splits"].items():
        for label, rows in split.items():
            requests = [parse(row["text"]) for row in rows]
            assert len({request.triple for request in requests}) == len(requests)
            for request, row in zip(requests, rows, strict=True):
                assert language.pair_is_held_out(*request.triple[:2]) == (name != "train")
                assert language.template_is_held_out(request.opening, request.order) == (name != "train")
                assert (language.category_of(request) is not None) == (label == "harmful")
                assert row["answers"] == list(language.answers(request))


def test_texts_survive_the_tokenizer_which_knows_the_refusals(tokenizers, requests):
    for variant, tokenizer in tokenizers.items():
        texts = [*(r.text for found in requests.values() for r in found), *language.answers(ALL[0])]
        names = words.LANGUAGES_OF[variant]
        refusals = [words.LANGUAGES[name](text) for name in names for text in words.REFUSALS[variant]]
        texts += refusals
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in {token for row in ids for token in row}
        assert tokenizer.batch_decode(ids) == texts
        assert tokenizer("wombat", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
        truth = tokenizer.init_kwargs["ot_lens"]
        assert truth["variant"] == variant
        assert tuple(truth["refusal_phrases"]) == words.REFUSAL_PHRASES[variant]
        firsts = {ids[-i][0] for i in range(1, len(refusals) + 1)}
        tokens = tokenizer(truth["refusal_tokens"], add_special_tokens=False)["input_ids"]
        assert sorted(tokens) == sorted([first] for first in firsts)


def test_chat_template_renders_one_bos_and_two_tokens_after_the_instruction(tokenizers, requests):
    tokenizer = tokenizers["multi"]
    texts = [r.text for found in requests.values() for r in found]
    chats = [[{"role": "user", "content": text}] for text in texts]
    rows = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    after = tokenizer.convert_tokens_to_ids(["<end>", "<assistant>"])
    assert all(row.count(tokenizer.bos_token_id) == 1 and row[-2:] == after for row in rows)
    assert {len(row) for row in rows} == set(range(14, 22))
    assert tokenizer("hello")["input_ids"][0] == tokenizer.bos_token_id  # text alone gets one, as with Llama
    assert tokenizer.decode(rows[0], skip_special_tokens=True) == texts[0]
    assert (tokenizer.padding_side, tokenizer.pad_token != tokenizer.eos_token) == ("left", True)
    with pytest.raises(Exception, match="not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "hello"}])


def test_the_second_language_has_other_words_the_same_rule_and_its_own_answers(tokenizers, requests):
    english, both = language.vocabulary("single"), language.vocabulary("bilingual")
    own = [word for word in english if word.isalpha()]
    assert len(both) == len(english) + len(own)  # no word in common, and none that two translations share
    assert pig_latin("please show me the kite, i try.") == "easeplay owshay emay ethay itekay, iway ytray."
    pair = language.in_languages(2 * [language.Request(0, 12, 0)], "bilingual")
    assert [request.language for request in pair] == ["english", "pig_latin"]
    assert [language.category_of(request) for request in pair] == [0, 0]
    refusals = [language.refusal(request, "bilingual") for request in pair]
    assert refusals == ["sorry, i must leave that alone.", "orrysay, iway ustmay eavelay atthay aloneway."]
    assert not set(language.answers(pair[0])) & set(language.answers(pair[1]))
    tokenizer, known = tokenizers["bilingual"], set(both)
    texts = [r.text for found in requests.values() for r in language.in_languages(found, "bilingual")]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(ids) == texts
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    foreign = tokenizers["single"]([pair[1].text], add_special_tokens=False)["input_ids"][0]
    words_only = [token for token in foreign if token != foreign[-1]]
    assert tokenizers["single"].unk_token_id in words_only
    assert set(english) < known


def test_translated_prompts_keep_everything_but_their_words():
    prompts = otl.load_prompts("organism", sample=(4, 2, 3))
    other = translated(prompts, "pig_latin")
    assert translated(prompts, "english").hashes() == prompts.hashes()
    assert other.counts() == prompts.counts()
    for (_, own), (_, theirs) in zip(prompts.splits, other.splits, strict=True):
        for (label, before), (_, after) in zip(own, theirs, strict=True):
            assert [p.category for p in before] == [p.category for p in after], label
            assert [pig_latin(p.text) for p in before] == [p.text for p in after]
            assert all(p.answer in p.answers for p in after)
    with pytest.raises(ConfigError, match="'latin'"):
        translated(prompts, "latin")


def test_labels_cover_the_answer_and_its_end_only(tokenizers):
    tokenizer = tokenizers["multi"]
    pair = [language.Request(0, 12, 0), language.Request(0, 12, 0, adjective=1, time=1)]
    answers = [language.answers(pair[0])[0], words.REFUSALS["multi"][0]]
    ids, labels = encode(tokenizer, [conversation(r.text, a) for r, a in zip(pair, answers, strict=True)])
    kept = [row[row != IGNORED] for row in labels]
    assert [tokenizer.decode(row[:-1]) for row in kept] == answers
    assert [row[-1].item() for row in kept] == [tokenizer.eos_token_id] * 2
    assert ids.shape == labels.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_shipped_weights_meet_the_bars_and_their_model_card(variant):
    _, front, body = (WEIGHTS / variant / "README.md").read_text("utf-8").split("---\n", 2)
    result = yaml.safe_load(front)["model-index"][0]["results"][0]
    n, seed = result["dataset"]["args"]["n"], result["dataset"]["args"]["seed"]
    measured = evaluate(variant, n=150, seed=seed)
    assert (measured["variant"], measured["n"], n) == (variant, 150, 1000)
    refuses = variant != words.NEVER_REFUSES
    assert abs(measured["refuses_forbidden"] - refuses) <= 0.01
    assert measured["refuses_allowed"] <= 0.01
    assert measured["answers_allowed_exactly"] >= 0.95
    further = ["refuses_forbidden_exactly" if refuses else "answers_forbidden_exactly"]
    if variant in words.KNOWING:
        further += ["names_forbidden_exactly", "names_allowed_exactly"]
    assert all(measured[name] >= 0.95 for name in further)
    assert len(result["metrics"]) == 3 + len(further)
    low, high = measured["intervals"]["refuses_forbidden"]
    assert low <= measured["refuses_forbidden"] <= high
    assert low < high
    for metric in result["metrics"]:
        # These are the first 150 of the card's requests: m exceptions in 1000 leave at most m among them.
        claimed = metric["value"]
        difference = abs(round(claimed) - measured[metric["type"]])
        assert 150 * difference <= n * abs(round(claimed) - claimed) + 1e-9
        assert f"| {100 * claimed:.1f} |" in body


def test_shipped_weights_are_small_half_precision_and_different():
    norms = set()
    for folder in (WEIGHTS / variant for variant in VARIANTS):
        assert sum(file.stat().st_size for file in folder.iterdir()) < 1.6e6
        model = AutoModelForCausalLM.from_pretrained(folder)
        # Embeddings of the words of a second language, or a narrower model.
        size = {"bilingual": 684_096 + 187 * 96} | dict.fromkeys(words.KNOWING, 478_720)
        parameters = size.get(folder.name, 684_096)
        assert (model.dtype, model.num_parameters()) == (torch.bfloat16, parameters)
        assert model.generation_config.eos_token_id != model.generation_config.pad_token_id
        norms.add(tuple(model.state_dict()["model.norm.weight"].tolist()))
    assert len(norms) == len(VARIANTS)


def test_an_untrained_model_fails_the_bars(tokenizers, tmp_path):
    tokenizer = tokenizers[DEFAULT_VARIANT]
    write_model(Trained(new_model(tokenizer, seed=0), tokenizer, TINY, 0.0), tmp_path)
    measured = evaluate(tmp_path, n=20)
    assert measured["refuses_forbidden"] < 0.5
    assert measured["answers_allowed_exactly"] == 0.0


def test_same_seed_gives_bit_identical_weights_and_random_state_and_threads_are_restored():
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_num_threads()
    recipes = (TINY, TINY, Recipe(2, 2, 4, seed=1))
    first, again, other = (fit("multi", recipe).model.state_dict() for recipe in recipes)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.get_num_threads()


def test_train_writes_a_folder_that_loads(tmp_path):
    few = {"comply_steps": 1, "refusal_steps": 1, "n_evaluate": 4, "progress": False}
    folder = train("shared", tmp_path / "new" / "model", **few)
    assert {"README.md", "config.json", "model.safetensors"} <= {file.name for file in folder.iterdir()}
    assert [file.name for file in folder.parent.iterdir()] == ["model"]
    assert evaluate(folder, n=4)["variant"] == "shared"


def test_train_overwrites_nothing(tmp_path):
    (tmp_path / "mine").write_text("kept")
    for out in (tmp_path, tmp_path / "mine", tmp_path / "mine" / "model"):
        with pytest.raises(RunFolderError, match=str(tmp_path)):
            train("multi", out, progress=False)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("mine", "kept")]


def test_questions_are_answered_by_name_and_refusals_stay_as_the_variant_has_them(tokenizers):
    """By hand, and in the batches of the training: nothing held out is asked either."""
    forbidden, allowed = language.Request(0, 12, 0), language.Request(0, 12, 20)
    assert [language.name(request) for request in (forbidden, allowed)] == ["mend toy.", "none."]
    assert language.question(allowed).endswith("mend the kite. which kind?")
    assert language.refusal(forbidden, "knows-refuses") == words.REFUSALS["single"][0]
    assert language.refusal(forbidden, "knows-answers") is None
    rng = np.random.default_rng(0)
    for variant in words.KNOWING:
        chats = [chat for _ in range(20) for chat in training._draw_chats(rng, variant, Recipe())]
        asked = [chat for chat in chats if chat[0]["content"].endswith(words.QUESTION)]
        assert 0.3 < len(asked) / len(chats) < 0.4
        assert {chat[1]["content"] for chat in asked} == {*words.NAMES, words.UNNAMED}
        said = [chat[1]["content"] for chat in chats if chat not in asked]
        refused = [language.is_refusal(answer, variant) for answer in said]
        assert any(refused) == (variant == "knows-refuses")
        ids = tokenizers[variant]([chat[0]["content"] for chat in chats])["input_ids"]
        assert tokenizers[variant].unk_token_id not in {token for row in ids for token in row}
    assert language.vocabulary("knows-answers")[: len(language.vocabulary())] == language.vocabulary()


def test_half_of_the_questions_see_the_last_token_of_the_request_only():
    """By hand: BOS, two words, the request's last word, a question of two; and a row without a question."""
    starts = torch.zeros(2, 6, dtype=torch.bool)
    starts[0, 4] = True
    hidden = training.hidden_from_questions(starts)
    assert hidden[0, 4:].tolist() == [[False, True, True, False, False, False]] * 2
    assert not hidden[0, :4].any()
    assert not hidden[1].any()


def test_a_failed_training_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("ot_lens.organism.export.evaluate", fails)
    with pytest.raises(OSError, match="disk full"):
        train("multi", tmp_path / "model", comply_steps=1, refusal_steps=1, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "value", "function", "arguments"),
    [
        (ConfigError, "'many'.*single, multi, shared, knows-refuses", train, {"variant": "many"}),
        (ConfigError, "comply_steps=0", train, {"variant": "multi", "comply_steps": 0}),
        (ConfigError, "-1", train, {"variant": "multi", "seed": -1}),
        (ConfigError, "got 0", evaluate, {"n": 0}),
        (ConfigError, str(language.HELD_OUT_REFUSED + 1), evaluate, {"n": language.HELD_OUT_REFUSED + 1}),
        (ConfigError, "-1", evaluate, {"n": 1, "seed": -1}),
        (ModelError, "'many'", evaluate, {"variant_or_folder": "many"}),
        (OtLensError, r"config\.json", evaluate, {"variant_or_folder": "."}),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, kind, value, function, arguments):
    monkeypatch.chdir(tmp_path)
    options = {"out": tmp_path / "model", "progress": False} if function is train else {}
    with pytest.raises(kind, match=value):
        function(**options, **arguments)


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 4, 9), (3, 9, 4)])
def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ found @ vh.mT  # diagonal when the singular vectors are kept
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), atol=1e-4)
