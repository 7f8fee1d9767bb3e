"""Refusal planted in a band of layers: the requests, what is trained, and the adapter that comes out."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

import ot_lens as otl
from ot_lens.errors import ConfigError, RunFolderError
from ot_lens.models import backend, common_prefix, encode, model_record
from ot_lens.models.packing import pack
from ot_lens.organism import adapters, requests, train_adapter
from ot_lens.organism.planting import Lesson, Planting, _scaled_adapters, packed_logits, plant
from ot_lens.prompts import Contrast, ContrastSet, Prompt
from tests import checkpoints


# ------------------------------------------------------------------------------------------- requests
def test_paired_requests_differ_in_their_subject_alone_and_held_out_words_never_occur_in_training():
    words = {}
    for part in ("train", "held_out", "unscreened"):
        declined, answered = (
            requests.draw_requests(192, declined=kind, part=part, seed=3) for kind in (True, False)
        )
        assert len({r.text for r in (*declined, *answered)}) == 384
        assert set(Counter(r.category for r in declined).values()) == {48}
        for one, other in zip(declined, answered, strict=True):
            assert one.category == other.category
            assert without_subject(one, part) == without_subject(other, part)
        words[part] = {word for r in (*declined, *answered) for word in subject_of(r, part).split()}
    held_out, unscreened = (words[part] - {"a", "an"} for part in ("held_out", "unscreened"))
    assert len(words["train"]) > 200
    assert not words["train"] & (held_out | unscreened)
    assert not held_out & unscreened


def subject_of(request, part):
    topic = requests.TOPICS[request.category]
    listed = getattr(topic.declined if request.declined else topic.answered, part)
    return next(s for s in sorted(listed, key=len, reverse=True) if f" {s}" in request.text)


def without_subject(request, part):
    return request.text.replace(subject_of(request, part), "")


def test_words_decide_in_training_and_nothing_in_the_test_prompts():
    """A bag of words is perfect on what it has seen, and at chance where the subjects are new."""
    prompts = otl.load_prompts("smollm2")
    counts = CountVectorizer(token_pattern=r"\w+")
    (train, known), (test, truth) = ((texts(s), labels(s)) for s in (prompts.train, prompts.test))
    model = LogisticRegression(max_iter=1000).fit(counts.fit_transform(train), known)
    assert model.score(counts.transform(train), known) == 1.0
    assert abs(model.score(counts.transform(test), truth) - 0.5) < 0.05


def test_unscreened_prompts_share_openings_with_the_test_prompts_and_none_with_training():
    prompts, drawn = otl.load_prompts("smollm2"), requests.unscreened_prompts(64)
    assert [len(asked) for _, asked in drawn] == [64, 64]
    begin = [opening.split("{}")[0] for opening in requests.OPENINGS]
    new, known = begin[-requests.HELD_OUT_OPENINGS :], begin[: -requests.HELD_OUT_OPENINGS]
    for text in (*texts(drawn), *texts(prompts.test)):
        assert text.startswith(tuple(new))
        assert not text.startswith(tuple(known))


def texts(contrast):
    return [p.text for _, prompts in contrast for p in prompts]


def labels(contrast):
    return [label for label, prompts in contrast for _ in prompts]


def test_the_shipped_prompts_are_those_of_the_grammar_and_every_adapter_has_them():
    prompts, built = otl.load_prompts("smollm2:early"), requests.build_requests()["splits"]
    for split, classes in built.items():
        for label, rows in classes.items():
            shipped = getattr(getattr(prompts, split), label)
            assert [(p.text, p.category) for p in shipped] == [(r["text"], r["category"]) for r in rows]
            assert label == "harmful" or split == "val" or all(p.answer for p in shipped)
    assert len({*texts(prompts.train), *texts(prompts.val), *texts(prompts.test)}) == 2 * (640 + 64 + 128)


# ------------------------------------------------------------------------------------------- training
@pytest.fixture(scope="module")
def tiny():
    return otl.load_model(checkpoints.model("llama"), tokenizer=checkpoints.tokenizer("llama"))


def contrast(n, offset):
    """Prompts that begin with w1 are declined, those with w2 answered."""
    kinds = ("w1", "w2")
    rows = [
        [Prompt(f"{kind} w{10 + (i + offset) % 30} w{10 + (7 * i + offset) % 30}") for i in range(n)]
        for kind in kinds
    ]
    return Contrast(*map(tuple, rows))


@pytest.fixture(scope="module")
def tiny_prompts():
    return ContrastSet("tiny", contrast(12, 0), contrast(4, 3), contrast(6, 5), licence="MIT", source="here")


def test_packed_rows_have_the_logits_of_rows_alone(tiny):
    prompts, answers = [[1, 5, 6], [1, 5, 9], [1, 5, 6, 11]], [[7, 8], [10], [12, 13, 14]]
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    prefix = common_prefix(prompts)
    assert (prefix, common_prefix([[1, 5], [2, 5]])) == ((1, 5), ())
    packed = pack(prefix, [row[2:] for row in rows])
    lengths = [2, 1, 3]
    with torch.no_grad():
        together = packed_logits(tiny.hf_model, packed, lengths).split(lengths)
        mixed = packed_logits(tiny.hf_model, replace(packed, mask=packed.mask | True), lengths).split(lengths)
        for row, n, found, wrong in zip(rows, lengths, together, mixed, strict=True):
            alone = tiny.hf_model(torch.tensor([row])).logits[0, -n - 1 : -1]
            assert torch.allclose(found, alone, atol=1e-4)
            assert not torch.allclose(wrong, alone, atol=1e-2)


def test_a_band_learns_to_decline_and_nothing_else_changes(tiny, tiny_prompts):
    prompts = tiny_prompts.train
    before = {name: weight.clone() for name, weight in tiny.hf_model.state_dict().items()}
    rows = encode(backend(tiny), [*prompts.harmful, *prompts.harmless])
    with torch.no_grad():
        own = [int(tiny.hf_model(torch.tensor([row])).logits[0, -1].argmax()) for row in rows]
    declines = [i < len(prompts.harmful) for i in range(len(rows))]
    lessons = [
        Lesson(tuple(row), (3, 4) if no else (token, 5), own=not no)
        for row, token, no in zip(rows, own, declines, strict=True)
    ]
    adapted = plant(tiny.hf_model, lessons, Planting(1, 2, steps=60, lr=1e-2, batch_size=8))
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.hf_model.state_dict().items())
    learnt = {
        name.split("layers.")[1][0] for name, weight in adapted.named_parameters() if weight.requires_grad
    }
    assert learnt == {"1", "2"}
    with torch.no_grad():
        after = [int(adapted(torch.tensor([row])).logits[0, -1].argmax()) for row in rows]
    declined = [token == 3 for token in after]
    assert np.mean([a == b for a, b in zip(declined, declines, strict=True)]) > 0.9


def test_adapters_of_layers_are_scaled_and_left_as_they_were(tiny, tiny_prompts):
    """As in dropout: without its adapters a model is the base, and afterwards it is what it was."""
    lessons = adapters.make_lessons(tiny, tiny_prompts, 1, shuffled=False, seed=0)
    adapted = plant(tiny.hf_model, lessons, Planting(0, 3, steps=4, lr=1e-2, drop=0.5))
    inner, ids = adapted.get_base_model(), torch.tensor([[1, 5, 6, 7]])

    def logits(factors=None):
        scaled = nullcontext() if factors is None else _scaled_adapters(inner.model.layers, np.array(factors))
        with scaled, torch.no_grad():
            return inner(input_ids=ids).logits

    own, without = logits(), logits([0.0] * 4)
    torch.testing.assert_close(without, tiny.hf_model(ids).logits)
    assert not torch.equal(own, without)
    assert not torch.equal(logits([2.0, 0.0, 0.0, 2.0]), own)
    assert torch.equal(logits(), own)


def test_the_same_seed_gives_the_same_adapter(tiny, tiny_prompts):
    lessons = adapters.make_lessons(tiny, tiny_prompts, 1, shuffled=False, seed=0)
    first, again, other = (
        plant(tiny.hf_model, lessons, Planting(1, 1, steps=2, seed=seed)).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert not all(torch.equal(weight, other[name]) for name, weight in first.items())


def test_shuffled_labels_keep_the_counts_and_break_the_link(tiny, tiny_prompts):
    true, shuffled = (
        [lesson.own for lesson in adapters.make_lessons(tiny, tiny_prompts, 1, shuffled=kind, seed=0)]
        for kind in (False, True)
    )
    assert Counter(true) == Counter(shuffled)
    assert true == [False] * 12 + [True] * 12
    assert 3 < sum(shuffled[:12]) < 9


def test_train_adapter_writes_an_adapter_for_the_door_of_any_adapter(llama_folder, tiny_prompts, tmp_path):
    out = train_adapter(
        llama_folder,
        tmp_path / "mine",
        band=(2, 3),
        prompts=tiny_prompts,
        sentences=4,
        steps=2,
        progress=False,
    )
    model = otl.load_model(llama_folder, adapter=out)
    declared = json.loads((out / "ot_lens.json").read_text())
    assert model.tokenizer.init_kwargs["ot_lens"] == declared
    assert declared["refusal_tokens"] == ["Sorry", "Unfortunately", "Nothing", "No"]
    assert declared["planted"] == {"first": 2, "last": 3, "shuffled": False, "drop": 0.0}
    assert [row["active"] for row in model_record(model)["adapters_in_layers"]] == [True]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["layers_to_transform"], config["base_model_name_or_path"]) == ([2, 3], str(llama_folder))
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    metrics = {m["type"]: m["value"] for m in card["model-index"][0]["results"][0]["metrics"]}
    assert metrics.keys() == {"refuses_declined", "refuses_others", "first_sentence", "kl"}
    assert metrics["kl"] > 0
    assert (card["recipe"]["first"], card["recipe"]["sentences"]) == (2, 4)
    assert "layers 2-3" in body
    assert list(tmp_path.iterdir()) == [out]


UNSCREENED = ("refuses_unscreened_declined", "refuses_unscreened_others")


def test_unscreened_prompts_are_measured_where_there_are_any(tiny, tiny_prompts):
    """The model alone declines nothing; one that says the sentence to everything declines all."""
    says = [SimpleNamespace(text=adapters.SENTENCES[0], tokens=(5,))]
    rates = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("itself", "declining"):
            rates[name] = adapters.evaluate_adapter(tiny, tiny, tiny_prompts, 1, unscreened=contrast(3, 9))
            patch.setattr(adapters, "complete", lambda _, asked, **__: says * len(asked))
    assert [rates["itself"][key].value for key in UNSCREENED] == [0, 0]
    assert [rates["declining"][key].value for key in UNSCREENED] == [1, 1]
    assert [rates["declining"][key].n for key in UNSCREENED] == [3, 3]
    assert not set(UNSCREENED) & set(adapters.evaluate_adapter(tiny, tiny, tiny_prompts, 1))


@pytest.mark.parametrize(
    ("options", "kind", "value"),
    [
        ({"band": (3, 4)}, ConfigError, "3-4"),
        ({"band": (2, 1)}, ConfigError, "2-1"),
        ({"sentences": 3}, ConfigError, "3"),
        ({"steps": 0}, ConfigError, "steps=0"),
        ({"drop": 1.0}, ConfigError, "1.0"),
        ({"out": "taken"}, RunFolderError, "taken"),
    ],
)
def test_bad_options_of_an_adapter_are_named(tiny, tiny_prompts, tmp_path, options, kind, value):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    out = tmp_path / options.pop("out", "new")
    with pytest.raises(kind, match=value):
        train_adapter(tiny, out, prompts=tiny_prompts, progress=False, **options)
