"""Duplicates and leaks: found exactly, dropped before anything is drawn, and counted."""

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ot_lens as otl
from ot_lens.errors import PromptError
from ot_lens.prompts import SPLITS
from ot_lens.prompts.duplicates import N_GRAM, near_pairs, normalized
from tests.generators.prompt_sets import sentences, write_json


def jaccard(a: str, b: str) -> float:
    """Naive reference: sets of n-grams."""
    x, y = ({f" {t} "[i : i + N_GRAM] for i in range(len(t) + 3 - N_GRAM)} for t in (a, b))
    return len(x & y) / len(x | y) if x | y else 0.0


WORDS = st.sampled_from(["weave", "the", "basket", "baskets", "of", "red", "reed", "again", "a", "again and"])


@given(
    texts=st.lists(st.lists(WORDS, max_size=9).map(" ".join), max_size=25),
    threshold=st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0]),
)
def test_near_pairs_are_those_of_the_naive_comparison(texts, threshold):
    found = {tuple(pair) for block in near_pairs(texts, threshold) for pair in block.tolist()}
    expected = {
        (i, j) for i in range(len(texts)) for j in range(i) if jaccard(texts[i], texts[j]) >= threshold - 1e-9
    }
    assert found == expected


def test_near_pairs_across_blocks_are_found(monkeypatch):
    monkeypatch.setattr("ot_lens.prompts.duplicates._BLOCK", 7)
    monkeypatch.setattr("ot_lens.prompts.duplicates._PAIRS", 3)
    texts = sentences(40)
    texts += [f"{text} x" for text in texts[:20]]
    found = {tuple(pair) for block in near_pairs(texts, 0.8) for pair in block.tolist()}
    assert found == {(40 + i, i) for i in range(20)}


@pytest.mark.parametrize(
    ("one", "other"),
    [("Weave  a\tbasket", "weave a basket "), ("ＷＥＡＶＥ", "weave"), ("Straße", "STRASSE"), ("ﬁt", "fit")],
)
def test_normalization_ignores_form_case_and_space(one, other):
    assert normalized(one) == normalized(other)
    assert normalized("weave a basket") != normalized("weave baskets")


def changed(text: str) -> str:
    """Exactly the same once normalized."""
    return f"  {text.upper()} "


def test_duplicates_and_leaks_are_dropped_from_the_right_split_and_counted(tmp_path):
    harmful, harmless = sentences(60), sentences(30, seed=1)
    train, val, test = harmful[:20], harmful[20:40], harmful[40:]
    leaks = {
        "train": [*train, changed(train[3]), changed(val[0]), test[0], f"{test[1]} x", f"{train[4]} x"],
        "val": [*val, changed(test[2]), f"{test[3]} x"],
        "test": [*test, test[5]],
    }
    other = dict(zip(SPLITS, (harmless[:10], harmless[10:20], harmless[20:]), strict=True))
    splits = {s: {"harmful": leaks[s], "harmless": other[s]} for s in SPLITS}
    path = write_json(tmp_path / "leaky.json", {"splits": splits})
    prompts = otl.load_prompts(path)
    found = {(r["split"], r["reason"]): r["n"] for r in prompts.manifest()["left_out"]}
    assert found == {
        ("train", "duplicate"): 1,
        ("train", "also in val"): 1,
        ("train", "also in test"): 1,
        ("train", "nearly in test"): 1,
        ("val", "also in test"): 1,
        ("val", "nearly in test"): 1,
        ("test", "duplicate"): 1,
    }
    # A near duplicate within a named split is not a leak and stays.
    assert [p.text for p in prompts.train.harmful] == [*train, f"{train[4]} x"]
    assert [p.text for p in prompts.val.harmful] == val
    assert [p.text for p in prompts.test.harmful] == test
    assert {r["class"] for r in prompts.manifest()["left_out"]} == {"harmful"}

    exact = otl.load_prompts(path, near_duplicates=None)
    assert len(exact.train.harmful) == 22
    kept = otl.load_prompts(path, deduplicate=False)
    assert kept.counts()["train"]["harmful"] == 25
    assert (kept.manifest()["left_out"], kept.manifest()["deduplicated"]) == ([], False)


def test_the_check_finds_what_was_not_dropped_and_nothing_in_a_clean_set(tmp_path):
    rows = sentences(40)
    splits = {
        "train": {"harmful": [*rows[:10], rows[20].upper(), f"{rows[21]} x"], "harmless": rows[30:32]},
        "val": {"harmful": [*rows[10:20], rows[10]], "harmless": rows[32:34]},
        "test": {"harmful": rows[20:30], "harmless": [*rows[34:36], f"{rows[0]} x"]},
    }
    path = write_json(tmp_path / "leaky.json", {"splits": splits})
    table = otl.load_prompts(path, deduplicate=False).check()
    assert len(table) == 2 * 6 * 6
    keys = ["kind", "class", "split", "other_class", "other_split"]
    found = {
        tuple(row[k] for k in keys): (row["n"], row["of"]) for _, row in table[table["n"] > 0].iterrows()
    }
    both = {
        ("exact", "harmful", "train", "harmful", "test"): (1, 12),
        ("exact", "harmful", "test", "harmful", "train"): (1, 10),
        ("exact", "harmful", "val", "harmful", "val"): (2, 11),
        ("near", "harmful", "train", "harmful", "test"): (1, 12),
        ("near", "harmful", "test", "harmful", "train"): (1, 10),
        ("near", "harmful", "train", "harmless", "test"): (1, 12),
        ("near", "harmless", "test", "harmful", "train"): (1, 3),
    }
    assert found == both
    clean = otl.load_prompts(path).check()
    within = clean[clean["class"] == clean["other_class"]]
    assert within["n"].sum() == 0
    with pytest.raises(PromptError, match=r"near_duplicates .*1.5"):
        otl.load_prompts(path).check(1.5)


def test_a_pool_is_split_without_near_duplicates_and_the_sample_keeps_its_size(tmp_path):
    pool = sentences(60)
    groups = {"harmful": [*pool, *(f"{t} x" for t in pool[:30])], "harmless": sentences(60, seed=1)}
    prompts = otl.load_prompts(write_json(tmp_path / "pool.json", groups), sample=(30, 10))
    assert prompts.counts()["train"] == {"harmful": 30, "harmless": 30}
    assert prompts.manifest()["left_out"] == [
        {"class": "harmful", "split": None, "reason": "near duplicate", "n": 30}
    ]
    assert prompts.check()["n"].sum() == 0


def test_one_prompt_in_both_classes_is_an_error_that_names_both_locations(tmp_path):
    harmful, harmless = sentences(10), sentences(10, seed=1)
    harmless[7] = changed(harmful[2])
    path = write_json(tmp_path / "both.json", {"harmful": harmful, "harmless": harmless})
    with pytest.raises(
        PromptError, match=r"harmful at .*harmful: row 3, harmless at .*harmless: row 8"
    ) as caught:
        otl.load_prompts(path)
    assert harmful[2] not in str(caught.value)


def test_memory_grows_with_the_prompts_and_not_with_their_pairs():
    texts, peaks = sentences(2_400), []
    for n in (600, 2_400):
        tracemalloc.start()
        for _ in near_pairs(texts[:n], 0.8):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0]  # four times the prompts, sixteen times the pairs


@pytest.mark.trust
def test_twenty_thousand_prompts_are_compared_in_seconds():
    texts = sentences(20_000, words=12)
    texts[-1] = f"{texts[0]} x"
    started = time.process_time()
    found = [pair for block in near_pairs(texts, 0.8) for pair in block.tolist()]
    assert time.process_time() - started < 20
    assert found == [[19_999, 0]]


def test_the_embedded_prompts_have_no_duplicates_across_splits():
    table = otl.load_prompts("organism").check()
    same = table[(table["class"] == table["other_class"]) & (table["split"] != table["other_split"])]
    assert same["n"].sum() == 0
