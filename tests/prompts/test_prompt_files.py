"""Files of prompts: what they give, and one-line errors that name file and location for everything wrong."""

import codecs
import json
import os
import pickle
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import ot_lens as otl
from ot_lens.errors import PromptError
from ot_lens.prompts.rows import MAX_CHARACTERS
from ot_lens.study.config import read_config
from tests.generators.prompt_sets import sentences, write_json, write_jsonl, write_lines

HARMFUL = sentences(8, seed=2)
ROWS = "".join(f"{text},x\n" for text in HARMFUL[:3])


def load(folder, name: str, content: bytes, **options):
    """Load `content` as the harmful source, with good harmless prompts."""
    (folder / name).write_bytes(content)
    good = write_lines(folder / "good.txt", 8, seed=1)
    return otl.load_prompts({"harmful": str(folder / name), "harmless": good}, **options)


def test_the_embedded_prompts_are_answered():
    prompts = otl.load_prompts("organism")
    assert all(p.answer in p.answers for _, group in prompts.test for p in group)
    assert prompts.licence == "MIT"
    assert "128+128" in repr(prompts)


def test_plain_lists_are_split_by_seed_without_loss(tmp_path):
    content = {
        "harmful": [f"bad {i}" for i in range(20)],
        "harmless": [{"text": f"good {i}"} for i in range(12)],
    }
    path = write_json(tmp_path / "mine.json", content)
    one, again, other = (otl.load_prompts(path, seed=s) for s in (0, 0, 1))
    assert one == again
    assert one.hashes() != other.hashes()
    assert one.name == "mine"
    assert sorted(p.text for _, s in one.splits for p in s.harmful) == sorted(content["harmful"])
    assert [len(s.harmless) for _, s in one.splits] == [6, 2, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Invalid JSON"),
        ("[]", "harmful and harmless"),
        ("{}", "harmful: 0 prompts"),
        (json.dumps({"harmful": sentences(9), "harmless": []}), "harmless: 0 prompts"),
        (json.dumps({"harmful": ["a"] * 9, "harmless": sentences(9)}), "after dropping 8 duplicates"),
        (json.dumps({"harmful": [{"txt": "a"}], "harmless": ["b"]}), "harmful: .*'text'.* txt"),
        (json.dumps({"splits": {"tset": {"harmful": ["a"], "harmless": ["b"]}}}), "tset"),
        (json.dumps({"splits": {"train": {"harmful": ["a"], "harmless": ["b"]}}}), "'val'"),
        (json.dumps({"splits": {"train": {"harmful": ["a"]}}}), r"splits\.train\.harmless"),
    ],
)
def test_bad_documents_are_named_with_the_field(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(PromptError, match=message) as caught:
        otl.load_prompts(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "empty"),
        ("a.csv", b"", "empty"),
        ("a.csv", b"text,x\n", "empty"),
        ("a.json", b"[]", "empty"),
        ("a.doc", b"x", r"\.doc.*\.csv"),
        ("a.txt", "één\ntwo\n".encode() + b"caf\xe9 noir\n", r"line 3, byte 13.*0xE9.*'é'"),
        ("a.csv", codecs.BOM_UTF8 + b"text\nok\n\xff\n", "line 3, byte 11"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\x00b", "UTF-16"),
        ("a.csv", f"text,x\n{ROWS}one,two,three\n".encode(), "row 4 .*3.*2"),
        ("a.csv", f"text,x\n{ROWS}alone\n".encode(), "row 4 .*1.*2"),
        ("a.csv", b'text,x\nab,"open\nnext,2\n', "row 1 .*quote"),
        ("a.csv", b"text,text\na,b\n", "'text'"),
        ("a.csv", b"instruction,text,output\na,b,c\n", "instruction, text, output"),
        ("a.csv", b"text,class\na,harmful\nb,harmless\n", "row 2: column 'class' .*'harmless'"),
        ("a.csv", b"text,x\nok,1\n,2\n", "row 2: column 'text' is blank"),
        ("a.json", b'[{"text": NaN}]', "Invalid JSON: .*line 1 column 11"),
        ("a.json", b'["a", ["b"]]', "row 2 is a list"),
        ("a.json", b'[{"text": "b"}, {"text": 3}]', "row 2: column 'text' holds a number"),
        ("a.json", b'[{"text": "b"}, {"text": null}]', "row 2: column 'text' holds null"),
        ("a.json", b'[{"text": "b"}, {"goal": "c"}]', "text, goal"),
        ("a.csv", b"prompt;category\nbreak the door;theft\n", "'prompt;category' .*delimiter=';'"),
        ("a.csv", b"prompt\tnote\nbreak, the door\tx\n", "row 1 has 2 cells"),
        ("a.tsv", b"prompt,category\nbreak the door,theft\n", "delimiter=','"),
        ("a.csv", b"break the door\nforce the lock\n", "break the door.*first row .*header"),
        ("a.csv", b"break the door,theft\nforce the lock,theft\n", "first row .*header"),
        ("a.txt", b"prompt,category\nbreak the door,theft\n", r"line 1.*header.*\.csv"),
        ("a.txt", b'{"prompt": "break the door"}\n', r"line 1 is JSON.*\.jsonl"),
        ("a.json", b'[{"instruction": "sum up", "input": "x"}]', "instruction goes on in .*input"),
        ("a.json", b"[\"[{'role': 'user', 'content': 'x'}]\"]", "row 1: .*written as text.*JSONL"),
        ("a.json", b'[{"messages": [{"role": "system", "content": "x"}]}]', "row 1: .*no turn of a user"),
        ("a.json", b'[{"prompt": "sum up", "context": ["x"]}]', "prompt goes on in .*context"),
        ("a.json", b'[{"prompt": "\\n\\nHuman: hi\\n\\nAssistant: no"}]', "row 1: .*template already"),
        ("a.json", b'["<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n"]', "template already"),
        (
            "a.json",
            b'[{"messages": [{"role": "user", "content": [{"type": "image"}]}]}]',
            "row 1: .*'image'.* remove",
        ),
        ("a.csv", b"text,x\nok,1\ntext,x\nfine,2\n", "row 2 repeats the header"),
        ("a.txt", b"id,prompt\n1,break the door\n", r"line 1.*header.*\.csv"),
        ("a.txt", b"break the door\ttheft\nforce the lock\ttheft\n", r"tab.*\.tsv"),
        ("a.json", b'"text"', "holds text"),
        ("a.json", b"[" * 100_000, "Invalid JSON: recursion limit"),
        ("a.json", b'["\\ud800"]', "Invalid JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "line 3: Invalid JSON"),
        ("a.txt", b"fine\nnul \x00 here\n", r"line 2: .*U\+0000 at character 5"),
        ("a.csv", b"text\n" + b"x" * (MAX_CHARACTERS + 1) + b"\n", "row 1: .* 1000001 characters.*1000000"),
        ("a.parquet", b"PAR1 but no more", "not a parquet file"),
    ],
)
def test_bad_content_is_one_line_with_file_and_location(tmp_path, name, content, message):
    with pytest.raises(PromptError, match=message) as caught:
        load(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


class Explosive:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_parquet_of_pickled_objects_or_numbers_is_refused_without_unpickling(tmp_path):
    path = tmp_path / "a.parquet"
    pickles = [pickle.dumps(Explosive())] * 3
    parquet.write_table(pa.table({"text": pa.array(pickles, pa.binary()), "n": [1, 2, 3]}), path)
    with pytest.raises(PromptError, match="row 1: column 'text' holds binary data"):
        load(tmp_path, "a.parquet", path.read_bytes())
    for texts, message in (([1.5, None, 2], "row 1: .* a number"), (["a", None], "row 2: .* null")):
        pd.DataFrame({"text": texts}).to_parquet(path)
        with pytest.raises(PromptError, match=message):
            load(tmp_path, "a.parquet", path.read_bytes())


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (-(2**31), pa.date32()),
        (2**50, pa.timestamp("ms")),
        (0, pa.timestamp("s", tz="../../etc/passwd")),
        ([2**50], pa.list_(pa.timestamp("ms"))),
    ],
)
def test_values_python_cannot_represent_are_refused_only_if_used(tmp_path, value, kind):
    path = tmp_path / "a.parquet"
    when = pa.array([value] * len(HARMFUL), kind)
    parquet.write_table(pa.table({"text": HARMFUL, "when": when}), path)
    assert {p.text for p in load(tmp_path, path.name, path.read_bytes()).train.harmful} <= set(HARMFUL)
    parquet.write_table(pa.table({"text": when}), path)
    with pytest.raises(PromptError, match="row 1: column 'text' holds binary data"):
        load(tmp_path, path.name, path.read_bytes())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("extension", ["txt", "csv", "tsv", "jsonl", "json"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path, encoding, extension):
    rows = [f"{text} é" for text in HARMFUL]
    content = {
        "txt": "\r\n".join(rows),
        "tsv": "text\tx\r\n" + "".join(f"{text}\t1\r\n" for text in rows),
        "csv": "text,x\r\n" + "".join(f"{text},1\r\n" for text in rows),
        "jsonl": "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in rows),
        "json": json.dumps(rows, ensure_ascii=False),
    }[extension]
    prompts = load(tmp_path, f"a.{extension}", content.encode(encoding))
    assert sorted(p.text for _, c in prompts.splits for p in c.harmful) == sorted(rows)


def test_folders_and_missing_or_unreadable_files_are_named(tmp_path):
    good = write_lines(tmp_path / "good.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    closed = Path(write_lines(tmp_path / "closed.txt"))
    closed.chmod(0)
    for source, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "none.csv", "none.csv"),
        ("a\x00b.csv", "cannot be read"),
        (tmp_path / "good.txt" / "x.csv", "x.csv"),
        (tmp_path / "loop.txt", "loop.txt.* cannot be read"),
        ("x" * 5_000, "check the path"),
        *([] if os.access(closed, os.R_OK) else [(closed, "Permission denied")]),  # root reads everything
    ):
        with pytest.raises(PromptError, match=message):
            otl.load_prompts({"harmful": str(source), "harmless": good})
    for whole, message in (
        (tmp_path, "is a folder"),
        ("organsim", "organsim.*'organism'"),
        ("y" * 5_000, "y"),
    ):
        with pytest.raises(PromptError, match=message):
            otl.load_prompts(whole)


SOURCES = {"harmful": "a", "harmless": "b"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "sources"),
        ({"harmful": "advbench"}, "harmful"),
        ({"harmful": "advbench", "harmless": "alpaca", "neutral": "x"}, "neutral"),
        ({"harmful": [], "harmless": "alpaca"}, r"harmful: \[\]"),
        ({"harmful": 3, "harmless": "alpaca"}, "harmful: 3"),
        ({"harmful": {"train": "advbench", "tset": "x"}, "harmless": "alpaca"}, "'tset'"),
        ({"harmful": {"file": "x"}, "harmless": "alpaca"}, "harmful: source"),
        ({"harmful": "alpaca", "harmless": "alpaca"}, "alpaca holds harmless"),
        ({"sources": SOURCES, "sampel": [1, 2]}, "sampel"),
        ({"sources": SOURCES, "sample": [1]}, r"sample .*\[1\]"),
        ({"sources": SOURCES, "near_duplicates": 2}, "near_duplicates .*2.0"),
        ({"sources": SOURCES, "seed": -1}, "seed: .*-1"),
        ("advbench", "advbench holds harmful"),
    ],
)
def test_bad_descriptions_are_named(tmp_path, source, message):
    with pytest.raises(PromptError, match=message) as caught:
        otl.load_prompts(source, root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": (0, 4)}, r"\(0, 4\)"),
        ({"sample": (4,)}, r"\(4,\)"),
        ({"sample": {"harm": (4, 2)}}, "'harm'"),
        ({"near_duplicates": 0.0}, "near_duplicates .*0.0"),
        ({"labels": {"1": "bad"}, "columns": {"text": "text"}}, "'bad'"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    path = write_json(tmp_path / "a.json", [{"text": t, "label": "harmful"} for t in HARMFUL])
    with pytest.raises(PromptError, match=message):
        otl.load_prompts(path, **options)


def test_yaml_creates_no_objects(tmp_path):
    path = tmp_path / "set.yaml"
    for text in ("sources: !!python/object/apply:pytest.fail ['made']", "- a\n- b\n"):
        path.write_text(text)
        with pytest.raises(PromptError, match=r"YAML|harmful: SOURCE"):
            otl.load_prompts(path)


def texts(prompts) -> set[str]:
    return {p.text for _, contrast in prompts.splits for p in contrast.harmful}


def test_a_named_delimiter_is_used(tmp_path):
    content = "prompt;note\n" + "".join(f"{text};a, b\n" for text in HARMFUL)
    assert texts(load(tmp_path, "a.csv", content.encode(), delimiter=";")) == set(HARMFUL)
    source = {"source": tmp_path / "a.csv", "delimiter": ";"}
    assert texts(otl.load_prompts({"harmful": source, "harmless": tmp_path / "good.txt"})) == set(HARMFUL)
    for delimiter, message in ((";;", "one character"), (",", "row 1|not clear")):
        with pytest.raises(PromptError, match=message):
            load(tmp_path, "a.csv", content.encode(), delimiter=delimiter)
    jsonl = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in HARMFUL])
    with pytest.raises(PromptError, match=r"a\.jsonl: delimiter"):
        otl.load_prompts({"harmful": {"source": jsonl, "delimiter": ";"}, "harmless": tmp_path / "good.txt"})


TURNS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "FIRST"},
    {"role": "user", "content": "x"},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "FIRST"}]}]


@pytest.mark.parametrize(
    ("column", "turns"),
    [
        ("messages", TURNS),
        ("prompt", TURNS),
        ("messages", PARTS),
        ("conversations", [{"from": "human", "value": "FIRST"}, {"from": "gpt", "value": "x"}]),
        ("turns", ["FIRST", "x"]),
    ],
)
@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_the_first_user_turn_of_a_conversation_is_the_prompt_and_the_record_says_so(
    tmp_path, extension, column, turns
):
    rows = [{column: json.loads(json.dumps(turns).replace("FIRST", text)), "id": 1} for text in HARMFUL]
    path = tmp_path / f"a.{extension}"
    if extension == "jsonl":
        write_jsonl(path, rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    prompts = load(tmp_path, path.name, path.read_bytes())
    assert texts(prompts) == set(HARMFUL)
    assert column in prompts.manifest()["sources"][0]["conversations"]


def test_conversations_in_a_document_of_both_classes(tmp_path):
    content = {
        c: [{"messages": [{"role": "user", "content": t}]} for t in sentences(8, seed=i)]
        for i, c in enumerate(("harmful", "harmless"))
    }
    assert texts(otl.load_prompts(write_json(tmp_path / "a.json", content))) == set(sentences(8))


def test_rows_that_go_on_in_another_column_are_left_out_and_counted(tmp_path):
    rows = [
        {"instruction": t, "input": "x" if i % 4 == 0 else "", "output": "y"} for i, t in enumerate(HARMFUL)
    ]
    prompts = load(tmp_path, "a.json", json.dumps(rows).encode())
    assert texts(prompts) == {t for i, t in enumerate(HARMFUL) if i % 4}
    assert prompts.manifest()["sources"][0]["left_out"] == 2


@pytest.mark.parametrize("value", [["theft", "door"], 3, {"a": 1}])
def test_columns_of_other_types_that_nobody_named_are_set_aside(tmp_path, value):
    rows = [
        {"prompt": t, "category": value, "answer": value, "answers": [value], "split": 1} for t in HARMFUL
    ]
    content = json.dumps(rows).encode()
    prompts = load(tmp_path, "a.json", content)
    assert texts(prompts) == set(HARMFUL)
    assert set(prompts.manifest()["sources"][0]["set_aside"]) == {"category", "answer", "answers"}
    source = {"source": tmp_path / "a.json", "columns": {"category": "category"}}
    with pytest.raises(PromptError, match="row 1: column 'category' holds"):
        otl.load_prompts({"harmful": source, "harmless": tmp_path / "good.txt"})


def test_paths_count_from_the_file_that_names_them(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    write_lines(tmp_path / "study" / "a.txt", seed=2)
    write_lines(tmp_path / "study" / "b.txt", seed=3)
    path = tmp_path / "study" / "study.yaml"
    monkeypatch.chdir(tmp_path)
    for prompts, expected in (
        (
            "{harmful: a.txt, harmless: {source: b.txt}}",
            {"harmful": "a.txt", "harmless": {"source": "b.txt"}},
        ),
        ("organism", "organism"),
        ("{harmful: advbench@main, harmless: alpaca}", {"harmful": "advbench@main", "harmless": "alpaca"}),
    ):
        path.write_text(f"prompts: {prompts}\nprompts_root: sets\n")
        config = read_config(path)
        assert config.prompts_root == str(tmp_path / "study" / "sets")
        named = json.loads(
            json.dumps(expected)
            .replace("a.txt", str(tmp_path / "study" / "a.txt"))
            .replace("b.txt", str(tmp_path / "study" / "b.txt"))
        )
        assert config.prompts == named
    path.write_text("prompts: {harmful: a.txt, harmless: {source: b.txt}}\n")
    assert texts(otl.load_prompts(read_config(path).prompts)) == set(sentences(20, seed=2))


def test_models_and_phrases_count_from_the_file_too_if_they_are_there(tmp_path):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "organism").mkdir()
    write_lines(tmp_path / "phrases.txt")
    path, tiny = tmp_path / "study.yaml", str(tmp_path / "models" / "tiny")
    path.write_text(
        "model: models/tiny\nphrases: phrases.txt\njudge: {preset: harmbench, model: models/tiny}\n"
    )
    config = read_config(path)
    assert (config.model, config.phrases) == (tiny, str(tmp_path / "phrases.txt"))
    assert config.judge == {"preset": "harmbench", "model": tiny}
    path.write_text("model: organism\nphrases: arditi\njudge: {yes_no: org/name, question: harmful}\n")
    config = read_config(path)
    assert (config.model, config.phrases) == ("organism", "arditi")
    assert config.judge["yes_no"] == "org/name"
