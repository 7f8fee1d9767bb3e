"""Presets are read from local files in the public layouts; published splits are drawn as published."""

import random
from pathlib import Path

import pytest

import ot_lens as otl
from ot_lens.errors import PromptError
from ot_lens.prompts import CLASSES, SPLITS
from ot_lens.prompts.loading import SHIPPED
from ot_lens.prompts.presets import PRESETS, REFUSAL_DIRECTION_REVISION, SETS
from ot_lens.study.config import from_folder
from tests.generators.prompt_sets import (
    refusal_direction_clone,
    sentences,
    write_csv,
    write_json,
    write_jsonl,
    write_lines,
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    root = tmp_path_factory.mktemp("refusal_direction")
    return root, refusal_direction_clone(root)


def harmful(prompts) -> set[str]:
    return {p.text for _, contrast in prompts.splits for p in contrast.harmful}


def test_the_table_names_class_licence_and_source_of_every_preset():
    table = otl.preset_table().set_index("name")
    assert {*PRESETS, *SETS} == set(table.index)
    assert table.index.is_unique
    assert table.loc["alpaca", "licence"] == "CC BY-NC 4.0"
    assert table.loc["jailbreakbench", "licence"] == "MIT"
    assert table.loc["malicious_instruct", "licence"] == "none at its source"
    assert table.loc["tdc2023", "licence"] == "unknown"
    assert (table[["class", "licence", "source", "note"]] != "").all(axis=None)
    assert set(table["class"]) == {"both", *CLASSES}


@pytest.mark.parametrize("name", [*SHIPPED, "polyrefuse:de", "refusal_direction"])
def test_a_configuration_names_a_set_of_the_package_and_not_a_file(name, tmp_path):
    assert from_folder(tmp_path, {"prompts": name}) == {"prompts": name}
    assert from_folder(tmp_path, {"prompts": "mine.json"}) == {"prompts": str(tmp_path / "mine.json")}


def test_the_published_splits_are_drawn_as_the_repository_draws_them(clone):
    """Written from its run_pipeline.py: one global seed, then these draws in this order."""
    root, splits = clone
    prompts = otl.load_prompts("refusal_direction", root=root)
    state = random.getstate()
    random.seed(42)
    sizes = {"harmful_train": 128, "harmless_train": 128, "harmful_val": 32, "harmless_val": 32}
    drawn = {key: random.sample(splits[key], n) for key, n in {**sizes, "harmless_test": 100}.items()}
    random.setstate(state)
    drawn["harmful_test"] = splits["harmful_test"]
    found = {f"{c}_{s}": [p.text for p in group] for s, contrast in prompts.splits for c, group in contrast}
    assert found == drawn
    manifest = prompts.manifest()
    assert (manifest["seed"], manifest["deduplicated"]) == (42, False)
    assert {r["source"] for r in manifest["sources"]} == {
        str(root / "dataset" / "splits" / f"{name}.json") for name in splits
    }
    assert otl.load_prompts("refusal_direction", root=root, seed=9) == prompts  # seed 42 always
    with pytest.raises(PromptError, match="sample"):
        otl.load_prompts("refusal_direction", root=root, sample=(8, 4))


def test_too_small_or_missing_published_splits_are_named(tmp_path):
    with pytest.raises(PromptError, match=r"harmful_train\.json"):
        otl.load_prompts("refusal_direction", root=tmp_path)
    refusal_direction_clone(tmp_path, size=20)
    with pytest.raises(PromptError, match=r"harmful_train\.json .*20 .*128"):
        otl.load_prompts("refusal_direction", root=tmp_path)


def test_the_paper_s_data_has_its_sizes_and_sources(clone):
    root, _ = clone
    prompts = otl.load_prompts("paper", root=root, seed=3)
    assert prompts.counts() == {
        "train": {"harmful": 128, "harmless": 128},
        "val": {"harmful": 32, "harmless": 32},
        "test": {"harmful": 200, "harmless": 100},
    }
    pools = [set(sentences(200, seed=seed)) for seed in (10, 11, 12)]
    train = {p.text for p in prompts.train.harmful}
    assert train <= set().union(*pools)
    assert all(train & pool for pool in pools)
    assert {p.text for p in prompts.val.harmful} <= set(sentences(200, seed=13))
    assert [p.text for p in prompts.test.harmful] == sentences(200, seed=14)
    licences = {r["preset"]: r["licence"] for r in prompts.manifest()["sources"]}
    assert licences == {
        name: PRESETS[name].licence
        for name in ("advbench", "malicious_instruct", "tdc2023", "harmbench_val", "harmbench_test", "alpaca")
    }


def test_harmbench_s_own_file_is_read_without_copyright_and_context(tmp_path):
    texts, kinds = sentences(30), ["standard", "Copyright", "contextual"]
    rows = [
        {
            "Behavior": text,
            "FunctionalCategory": kinds[i % 3],
            "SemanticCategory": f"kind {i % 2}",
            "Tags": "context, x" if i % 3 == 2 else "",
        }
        for i, text in enumerate(texts)
    ]
    write_csv(tmp_path / PRESETS["harmbench_test"].files[0], rows)
    sources = {"harmful": "harmbench_test", "harmless": write_lines(tmp_path / "plain.txt", seed=1)}
    prompts = otl.load_prompts(sources, root=tmp_path)
    assert harmful(prompts) == set(texts[::3])
    assert {p.category for p in prompts.train.harmful} <= {"kind 0", "kind 1"}
    record = prompts.manifest()["sources"][0]
    assert (record["rows"], record["left_out"], record["licence"]) == (10, 20, "MIT")


def test_alpaca_keeps_instructions_without_an_input(tmp_path):
    texts = sentences(20)
    rows = [{"instruction": f"{t}\n", "input": " " if i % 2 else "x"} for i, t in enumerate(texts)]
    write_json(tmp_path / "alpaca_data.json", rows)
    sources = {"harmful": write_lines(tmp_path / "h.txt", seed=1), "harmless": "alpaca"}
    prompts = otl.load_prompts(sources, root=tmp_path)
    assert {p.text for _, c in prompts.splits for p in c.harmless} == set(texts[1::2])


def test_the_published_splits_are_read_at_the_published_revision_or_the_requested_one(clone, monkeypatch):
    root, addresses = clone[0], []

    def fetched(address: str) -> Path:
        addresses.append(address)
        return root / "dataset" / "splits" / address.rpartition("/")[2]

    monkeypatch.setattr("ot_lens.prompts.sources.fetch", fetched)
    local = otl.load_prompts("refusal_direction", root=root)
    for name, revision in (("refusal_direction", REFUSAL_DIRECTION_REVISION), ("refusal_direction@v2", "v2")):
        found = otl.load_prompts(name)
        assert found == local
        assert {r["revision"] for r in found.manifest()["sources"]} == {revision}
        assert all(f"/{revision}/" in address for address in addresses[-6:])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_read_from_its_own_layout(tmp_path, name):
    """From the bare files of its own repository; a folder without them is an error."""
    preset, texts = PRESETS[name], sentences(24)
    language = f":{preset.languages[0]}" if preset.languages else ""
    paths = preset.in_language(language[1:]).files or preset.local[:1]
    for part, path in enumerate(paths):
        target, mine = tmp_path / Path(path), texts[part :: len(paths)]
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = "contrast_x" if preset.label == "harmful" else "homonyms"
        column = "instruction" if target.name == "alpaca_data.json" else preset.text[0]
        if target.suffix == ".csv":
            write_csv(target, [{column: t, "target": "Sure", "type": kind} for t in mine])
        elif target.suffix == ".jsonl":
            write_jsonl(target, [{column: [t], "prompt_style": "base"} for t in mine])
        elif target.suffix == ".txt":
            target.write_text("\n".join(mine))
        else:
            write_json(target, mine if name == "tdc2023" else [{column: t, "input": ""} for t in mine])
    other = next(label for label in CLASSES if label != preset.label)
    sources = {preset.label: f"{name}{language}", other: write_lines(tmp_path / "other.txt", 24, seed=5)}
    prompts = otl.load_prompts(sources, root=tmp_path)
    found = [p.text for _, c in prompts.splits for p in getattr(c, preset.label)]
    assert sorted(found) == sorted(texts)
    with pytest.raises(PromptError, match=f"{name}.* under .*empty"):
        otl.load_prompts(sources, root=tmp_path / "empty")


def test_a_download_is_read_by_the_extension_of_its_address(tmp_path, monkeypatch):
    addresses = []

    def fetched(address: str) -> Path:
        addresses.append(address)
        (tmp_path / "0123abcd").write_text("goal,target\n" + "".join(f"{t},Sure\n" for t in sentences(20)))
        return tmp_path / "0123abcd"

    monkeypatch.setattr("ot_lens.prompts.sources.fetch", fetched)
    sources = {"harmful": "advbench@abc123", "harmless": write_lines(tmp_path / "plain.txt", seed=1)}
    record = otl.load_prompts(sources).manifest()["sources"][0]
    assert addresses == [
        "https://raw.githubusercontent.com/llm-attacks/llm-attacks/abc123/data/advbench/harmful_behaviors.csv"
    ]
    assert (record["revision"], record["rows"], record["source"]) == ("abc123", 20, addresses[0])


def test_the_package_ships_no_public_prompts():
    """The package's only prompts are those of the embedded language."""
    package = Path(otl.__file__).parent / "prompts"
    assert {path.suffix for path in package.rglob("*") if path.is_file()} <= {".py", ".pyc", ".json"}


def test_xstest_and_sorry_bench_keep_the_rows_of_their_class(tmp_path):
    texts = sentences(40)
    write_csv(
        tmp_path / "xstest_prompts.csv",
        [
            {"prompt": t, "type": ("homonyms", "contrast_homonyms")[i % 2], "label": "safe"}
            for i, t in enumerate(texts[:24])
        ],
    )
    prompts = otl.load_prompts({"harmful": "xstest_unsafe", "harmless": "xstest_safe"}, root=tmp_path)
    assert harmful(prompts) == set(texts[1:24:2])
    styles = ("base", "slang")
    rows = [{"turns": [t, "x"], "prompt_style": styles[i % 2], "category": "1"} for i, t in enumerate(texts)]
    write_jsonl(tmp_path / "question.jsonl", rows)
    prompts = otl.load_prompts(
        {"harmful": "sorry_bench", "harmless": write_lines(tmp_path / "h.txt", seed=1)}, root=tmp_path
    )
    assert harmful(prompts) == set(texts[::2])


def test_polyrefuse_is_read_in_one_language_and_names_those_it_has(tmp_path):
    groups = [(label, split) for label in CLASSES for split in SPLITS]
    for i, (label, split) in enumerate(groups):
        rows = [{"instruction": t} for t in sentences(8, seed=i)]
        if split == "test":
            rows = [{"instruction": "the original", "instruction_translated": r["instruction"]} for r in rows]
        write_json(tmp_path / f"PolyRefuse/{label}_{split}_translated_de.json", rows)
    prompts = otl.load_prompts("polyrefuse:de", root=tmp_path)
    assert {p.text for p in prompts.test.harmful} == set(sentences(8, seed=2))
    for name in ("polyrefuse", "polyrefuse:xx"):
        with pytest.raises(PromptError, match=r"choose .*:ar.*:de"):
            otl.load_prompts(name, root=tmp_path)
