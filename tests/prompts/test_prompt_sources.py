"""A set of prompts is the same in every format and however it is named."""

import hashlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import ot_lens as otl
from ot_lens.errors import PromptError
from ot_lens.prompts import CLASSES, SPLITS, Contrast, ContrastSet, Prompt
from ot_lens.prompts.duplicates import normalized
from ot_lens.prompts.sources import commit_of
from tests.generators.prompt_sets import sentences, write_csv, write_json, write_jsonl, write_lines

TEXT = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from('\t\r\n",#:'), min_size=1, max_size=30
).filter(lambda text: bool(text.strip()))


DRAWN = st.lists(
    st.tuples(TEXT, st.none() | TEXT, st.none() | TEXT),
    min_size=6,
    max_size=12,
    unique_by=lambda row: normalized(row[0]),
)


def a_set(drawn: list[tuple]) -> ContrastSet:
    """Six groups of prompts that are all different."""
    prompts = [Prompt(text, answer, (), category) for text, answer, category in drawn]
    groups = [tuple(prompts[i::6]) for i in range(6)]
    return ContrastSet("drawn", *(Contrast(*groups[2 * i : 2 * i + 2]) for i in range(3)))


def records(prompts: ContrastSet) -> list[dict]:
    return [
        {"text": p.text, "label": label, "split": split, "answer": p.answer, "category": p.category}
        for split, contrast in prompts.splits
        for label, group in contrast
        for p in group
    ]


def written(prompts: ContrastSet, path: Path, extension: str) -> Path:
    if extension == "splits":
        content = {s: {c: [vars(p) for p in g] for c, g in contrast} for s, contrast in prompts.splits}
        return write_json(path.with_suffix(".json"), {"splits": content})
    path = path.with_suffix(f".{extension}")
    if extension == "parquet":
        pd.DataFrame(records(prompts)).to_parquet(path)
        return path
    return {"json": write_json, "jsonl": write_jsonl, "csv": write_csv}[extension](path, records(prompts))


def texts(prompts: ContrastSet, split: str, label: str) -> list[str]:
    return [p.text for p in getattr(getattr(prompts, split), label)]


@pytest.mark.parametrize("extension", ["json", "jsonl", "csv", "parquet", "splits"])
@given(drawn=DRAWN)
def test_a_set_written_in_any_format_is_read_back_equal(tmp_path_factory, extension, drawn):
    prompts = a_set(drawn)
    path = written(prompts, tmp_path_factory.mktemp("set") / "drawn", extension)
    found = otl.load_prompts(path, near_duplicates=None)
    assert [getattr(found, s) for s in SPLITS] == [getattr(prompts, s) for s in SPLITS]
    assert found.hashes() == prompts.hashes()


def test_sampling_draws_that_many_by_its_seed_and_leaves_the_rest_to_test(tmp_path):
    groups = {label: sentences(300, seed=i) for i, label in enumerate(CLASSES)}
    path = write_json(tmp_path / "both.json", groups)
    one, again, other = (otl.load_prompts(path, sample=(128, 32), seed=s) for s in (0, 0, 1))
    assert one == again
    assert one != other
    assert one.counts()["train"] == {"harmful": 128, "harmless": 128}
    assert one.counts()["val"] == {"harmful": 32, "harmless": 32}
    for label in CLASSES:
        assert sorted(t for s in SPLITS for t in texts(one, s, label)) == sorted(groups[label])
    small = otl.load_prompts(path, sample={"harmful": (10, 5), "harmless": (10, 5, 7)})
    assert small.counts()["test"] == {"harmful": 285, "harmless": 7}
    with pytest.raises(PromptError, match="too few to draw"):
        otl.load_prompts(path, sample=(290, 10))


def test_a_named_test_source_stays_complete_and_the_sample_comes_from_the_others(tmp_path):
    pool, held_out, plain = (write_lines(tmp_path / f"{i}.txt", 40, seed=i) for i in range(3))
    sources = {"harmful": {"train": pool, "test": held_out}, "harmless": plain}
    prompts = otl.load_prompts(sources, sample=(20, 10), seed=5)
    assert texts(prompts, "test", "harmful") == sentences(40, seed=1)
    drawn = texts(prompts, "train", "harmful") + texts(prompts, "val", "harmful")
    assert len(set(drawn)) == 30
    assert set(drawn) <= set(sentences(40, seed=0))
    with pytest.raises(PromptError, match="'val'"):
        otl.load_prompts(sources)


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_description_file_equals_the_call(tmp_path, ending):
    for i, name in enumerate(("a", "b", "c")):
        rows = [{"goal": text, "target": "x"} for text in sentences(30, seed=i)]
        write_csv(tmp_path / "data" / f"{name}.csv", rows)
    described = {
        "name": "mine",
        "licence": "CC0",
        "seed": 4,
        "sample": [16, 8],
        "sources": {"harmful": ["data/a.csv#goal", "data/b.csv"], "harmless": {"source": "data/c.csv"}},
    }
    path = tmp_path / f"set.{ending}"
    path.write_text(yaml.safe_dump(described) if ending == "yaml" else json.dumps(described))
    found = otl.load_prompts(path)
    a, b, c = (tmp_path / "data" / f"{name}.csv" for name in "abc")
    called = otl.load_prompts({"harmful": [a, b], "harmless": c}, sample=(16, 8), seed=4)
    assert found.hashes() == called.hashes()
    assert (found.name, found.licence) == ("mine", "CC0")
    assert found.counts()["test"] == {"harmful": 36, "harmless": 6}
    json.dumps(found.manifest())


def test_columns_and_labels_that_are_not_recognized_must_be_named(tmp_path):
    rows = [{"ask": text, "bad": i % 2, "other": "x"} for i, text in enumerate(sentences(24))]
    path = write_csv(tmp_path / "odd.csv", rows)
    with pytest.raises(PromptError, match=r"ask, bad, other"):
        otl.load_prompts(path)
    with pytest.raises(PromptError, match=r"harmful.*ask, bad, other"):
        otl.load_prompts(path, columns={"text": "ask"})
    with pytest.raises(PromptError, match="row 1: label '0'"):
        otl.load_prompts(path, columns={"text": "ask", "label": "bad"})
    found = otl.load_prompts(
        path, columns={"text": "ask", "label": "bad"}, labels={"1": "harmful", "0": "harmless"}
    )
    drawn = {t for s in SPLITS for t in texts(found, s, "harmful")}
    assert drawn == {row["ask"] for row in rows if row["bad"]}
    with pytest.raises(PromptError, match=r"'goal'.*ask, bad, other"):
        otl.load_prompts(path, columns={"text": "goal"})
    with pytest.raises(PromptError, match="'txt'"):
        otl.load_prompts(path, columns={"txt": "ask"})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_datasets_are_read_through_the_datasets_library(tmp_path):
    dataset_folder = tmp_path / "data"
    for i, split in enumerate(("train", "test")):
        write_csv(dataset_folder / f"{split}.csv", [{"goal": t, "n": 1} for t in sentences(30, seed=i)])
    plain = write_lines(tmp_path / "plain.txt", seed=9)
    sources = {"harmful": f"hf:{dataset_folder}:train#goal", "harmless": plain}
    found = otl.load_prompts(sources, sample=(10, 5))
    assert {t for s in SPLITS for t in texts(found, s, "harmful")} == set(sentences(30, seed=0))
    assert found.manifest()["sources"][0]["rows"] == 30
    for name, message in (
        (f"hf:{dataset_folder}", "train, test"),
        (f"hf:{dataset_folder}:dev", "'dev'.*train, test"),
        (f"hf:{dataset_folder}:other:train", "other.*not found"),
        (f"hf:{dataset_folder}:train#aim", "'aim'.*goal, n"),
        (f"hf:{tmp_path / 'absent'}", "cannot be read"),
        ("hf:", "hf:NAME"),
        ("hf:a:b:c:d", "hf:NAME"),
    ):
        with pytest.raises(PromptError, match=message):
            otl.load_prompts({**sources, "harmful": name})


@pytest.mark.usefixtures("cache")
def test_a_dataset_of_both_classes_is_read_by_its_label_column(tmp_path):
    rows = [{"prompt": t, "label": ("safe", "unsafe")[i % 2], "x": i} for i, t in enumerate(sentences(24))]
    (tmp_path / "data").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "data" / "train.parquet")
    found = otl.load_prompts(f"hf:{tmp_path / 'data'}")
    drawn = {t for s in SPLITS for t in texts(found, s, "harmful")}
    assert drawn == {row["prompt"] for row in rows if row["label"] == "unsafe"}


def test_the_commit_of_a_dataset_is_read_from_its_cache():
    commit = "dce01c9b08f87459cf36a430d809084718273017"
    assert commit_of([f"/cache/tatsu-lab___alpaca/default/0.0.0/{commit}/alpaca-train.arrow"]) == commit
    assert commit_of(["/cache/csv/default-1/0.0.0/77aaa4936e77045c/csv-train.arrow"]) is None
    assert commit_of([]) is None


@pytest.mark.parametrize(
    ("harmful", "message"),
    [
        ("hf:nobody/nothing:train", r"hf:nobody/nothing:train .*root=FOLDER"),
        ("advbench", r"raw\.githubusercontent\.com.* cannot be read .*root=FOLDER"),
    ],
)
def test_an_unreachable_source_is_one_line_that_suggests_a_local_copy(harmful, message, monkeypatch):
    with pytest.raises(PromptError, match=message) as caught:
        otl.load_prompts({"harmful": harmful, "harmless": "alpaca"})
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match=r"ot-lens\[hub\]"):
        otl.load_prompts({"harmful": harmful, "harmless": "alpaca"})


def test_table_and_page_show_counts_and_no_text(tmp_path):
    rows = [{"text": t, "category": "<b>odd</b>"} for t in sentences(20)]
    content = {"harmful": rows, "harmless": sentences(12, seed=1), "name": "<i>"}
    prompts = otl.load_prompts(write_json(tmp_path / "s.json", content))
    table = prompts.table(lambda texts, add_special_tokens: {"input_ids": [t.split() for t in texts]})
    every = table[(table["category"] == "all") & (table["unit"] == "tokens")]
    assert every.groupby("split", sort=False)["n"].sum().tolist() == [16, 5, 11]
    assert (every["mean"] == 8).all()
    assert set(table["category"]) == {"all", "none", "<b>odd</b>"}
    characters = table[(table["unit"] == "characters") & (table["class"] == "harmful")]
    lengths = [len(p.text) for p in prompts.train.harmful]
    row = characters[(characters["split"] == "train") & (characters["category"] == "all")].iloc[0]
    assert (row["shortest"], row["longest"]) == (min(lengths), max(lengths))
    assert row["mean"] == pytest.approx(sum(lengths) / len(lengths))
    page = prompts._repr_html_()
    assert ("&lt;i&gt;" in page, "<i>" in page) == (True, False)
    assert not any(p.text in page for _, c in prompts.splits for _, group in c for p in group)


def test_the_manifest_records_the_origin_of_every_file(tmp_path):
    files = [write_lines(tmp_path / f"{label}.txt", seed=i) for i, label in enumerate(CLASSES)]
    sources = {"harmful": {"source": files[0], "licence": "CC0"}, "harmless": files[1]}
    found = otl.load_prompts(sources, sample=(8, 4), seed=7).manifest()
    assert json.loads(json.dumps(found)) == found
    assert [r["sha256"] for r in found["sources"]] == [
        hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files
    ]
    assert (found["seed"], found["sample"]["harmful"], found["licence"]) == (7, [8, 4], "CC0; unknown")
    assert sentences(1)[0] not in json.dumps(found)
