"""Every way in which a file of prompts can be wrong is one line that names file, place and remedy."""

import codecs
import json
import os
import pickle

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import ot_lens as otl
from ot_lens.errors import PromptError
from ot_lens.prompts.rows import MAX_CHARACTERS
from tests.generators.prompt_sets import sentences, write_json

GOOD = "\n".join(sentences(8, seed=1)).encode()


def load(folder, name: str, content: bytes, **options):
    """Load `content` as the harmful source, beside good harmless prompts."""
    (folder / name).write_bytes(content)
    (folder / "good.txt").write_bytes(GOOD)
    return otl.load_prompts({"harmful": str(folder / name), "harmless": str(folder / "good.txt")}, **options)


HARMFUL = sentences(8, seed=2)
ROWS = "".join(f"{text},x\n" for text in HARMFUL[:3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "no prompts: the file is empty"),
        ("a.txt", b"\n \n", "no prompts: the file is empty"),
        ("a.csv", b"", "no prompts: the file is empty"),
        ("a.csv", b"text,x\n", "no prompts: the file is empty"),
        ("a.json", b"[]", "no prompts: the file is empty"),
        ("a.jsonl", b"\n\n", "no prompts: the file is empty"),
        ("a.doc", b"x", "not read from .doc: give one of .csv"),
        ("a.txt", "één\ntwo\n".encode() + b"caf\xe9 noir\n", r"line 3, byte 13: not UTF-8.*0xE9.*'é'"),
        ("a.csv", codecs.BOM_UTF8 + b"text\nok\n\xff\n", "line 3, byte 11: not UTF-8"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\x00b", "not whole UTF-16"),
        ("a.csv", f"text,x\n{ROWS}one,two,three\n".encode(), "row 4 has 3 cells where the header has 2"),
        ("a.csv", f"text,x\n{ROWS}alone\n".encode(), "row 4 has 1 cells where the header has 2"),
        ("a.csv", b'text,x\n"open,1\nnext,2\n', "row 1 has 1 cells|opens a quote that is never closed"),
        ("a.csv", b'text,x\nab,"open\nnext,2\n', "row 1 opens a quote that is never closed"),
        ("a.csv", b"text,text\na,b\n", "names column 'text' twice"),
        ("a.csv", b"text,x\nok,1\n,2\n", "row 2: column 'text' is blank"),
        ("a.json", b'[{"text": NaN}]', "Invalid JSON: expected value at line 1 column 11"),
        ("a.json", b'["a", ["b"]]', "row 1 is text, not an object"),
        ("a.json", b'[{"text": ["b"]}]', "row 1: column 'text' holds a list, not text"),
        ("a.json", b'[{"text": "b"}, {"text": 3}]', "row 2: column 'text' holds a number, not text"),
        ("a.json", b'[{"text": "b"}, {"text": null}]', "row 2: column 'text' holds null, not text"),
        ("a.json", b'[{"text": "b"}, {"goal": "c"}]', "name one of text, goal"),
        ("a.json", b'[{"text": "b", "answer": 3}]', "row 1: column 'answer' holds a number, not text"),
        ("a.json", b'[{"text": "b", "answers": "c"}]', "row 1: column 'answers' holds text, not a list"),
        ("a.json", b'[{"text": "b", "answers": [1]}]', "row 1: column 'answers' lists an answer that is not"),
        ("a.json", b'"text"', "holds text: as one class's source it must be a list"),
        ("a.json", b"[" * 100_000, "Invalid JSON: recursion limit"),
        ("a.json", b'["\\ud800"]', "Invalid JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "line 3: Invalid JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2 is a list, not an object"),
        ("a.txt", b"fine\nnul \x00 here\n", r"line 2: control character U\+0000 at character 5"),
        ("a.json", b'["bell \\u0007"]', r"row 1: control character U\+0007 at character 6"),
        ("a.txt", b"x" * (MAX_CHARACTERS + 1), "line 1 has 1000001 characters: more than 1000000"),
        ("a.csv", b"text\n" + b"x" * (MAX_CHARACTERS + 1) + b"\n", "row 1 has 1000001 characters"),
        ("a.parquet", b"PAR1 but no more", "not a parquet file"),
        ("a.parquet", b"", "not a parquet file"),
    ],
)
def test_bad_content_is_one_line_with_file_and_place(tmp_path, name, content, message):
    with pytest.raises(PromptError, match=message) as caught:
        load(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


class Explosive:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_parquet_of_pickled_objects_or_bytes_is_refused_and_not_opened(tmp_path):
    path = tmp_path / "a.parquet"
    pickles = [pickle.dumps(Explosive())] * 3
    parquet.write_table(pa.table({"text": pa.array(pickles, pa.binary()), "n": [1, 2, 3]}), path)
    with pytest.raises(PromptError, match="row 1: column 'text' holds binary data, not text"):
        load(tmp_path, "a.parquet", path.read_bytes())
    pd.DataFrame({"text": [1.5, None, 2]}).to_parquet(path)
    with pytest.raises(PromptError, match="row 1: column 'text' holds a number, not text"):
        load(tmp_path, "a.parquet", path.read_bytes())
    pd.DataFrame({"text": ["a", None]}).to_parquet(path)
    with pytest.raises(PromptError, match="row 2: column 'text' holds null, not text"):
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
def test_what_python_has_no_value_for_is_refused_only_where_it_is_used(tmp_path, value, kind):
    path = tmp_path / "a.parquet"
    when = pa.array([value] * len(HARMFUL), kind)
    parquet.write_table(pa.table({"text": HARMFUL, "when": when}), path)
    read = load(tmp_path, path.name, path.read_bytes()).train.harmful
    assert {prompt.text for prompt in read} <= set(HARMFUL)
    parquet.write_table(pa.table({"text": when}), path)
    with pytest.raises(PromptError, match="row 1: column 'text' holds binary data, not text"):
        load(tmp_path, path.name, path.read_bytes())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl", "json"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, encoding, ending):
    rows = [f"{text} é" for text in HARMFUL]
    content = {
        "txt": "\r\n".join(rows),
        "csv": "text,x\r\n" + "".join(f"{text},1\r\n" for text in rows),
        "jsonl": "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in rows),
        "json": json.dumps(rows, ensure_ascii=False),
    }[ending]
    prompts = load(tmp_path, f"a.{ending}", content.encode(encoding))
    assert sorted(p.text for _, c in prompts.splits for p in c.harmful) == sorted(rows)


def test_folders_missing_and_unreadable_files(tmp_path):
    (tmp_path / "good.txt").write_bytes(GOOD)
    good = str(tmp_path / "good.txt")
    for source, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "none.csv", "no file"),
        ("a\x00b.csv", "cannot be read"),
        (tmp_path / "good.txt" / "x.csv", "cannot be read|no file"),
    ):
        with pytest.raises(PromptError, match=message):
            otl.load_prompts({"harmful": str(source), "harmless": good})
    with pytest.raises(PromptError, match="is a folder"):
        otl.load_prompts(tmp_path)
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(PromptError, match="cannot be read"):
        otl.load_prompts({"harmful": str(tmp_path / "loop.txt"), "harmless": good})
    (tmp_path / "closed.txt").write_bytes(GOOD)
    (tmp_path / "closed.txt").chmod(0)
    if os.access(tmp_path / "closed.txt", os.R_OK):
        return  # root reads everything
    with pytest.raises(PromptError, match="Permission denied"):
        otl.load_prompts({"harmful": str(tmp_path / "closed.txt"), "harmless": good})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "sources"),
        ({"harmful": "advbench"}, "sources of harmful: name those of harmful and harmless"),
        (
            {"harmful": "advbench", "harmless": "alpaca", "neutral": "x"},
            "sources of harmful, harmless, neutral",
        ),
        ({"harmful": [], "harmless": "alpaca"}, "harmful: .* is no source"),
        ({"harmful": 3, "harmless": "alpaca"}, "harmful: 3 is no source"),
        ({"harmful": {"train": "advbench", "tset": "x"}, "harmless": "alpaca"}, "no split 'tset'"),
        ({"harmful": {"file": "x"}, "harmless": "alpaca"}, "source: Field required|unknown field 'file'"),
        (
            {"harmful": "alpaca", "harmless": "alpaca"},
            "alpaca holds harmless prompts, and is named as a harmful",
        ),
        ({"sources": {"harmful": "a", "harmless": "b"}, "sampel": [1, 2]}, "unknown field 'sampel'"),
        (
            {"sources": {"harmful": "a", "harmless": "b"}, "sample": [1]},
            r"sample = \[1\]: give \(train, val\)",
        ),
        ({"sources": {"harmful": "a", "harmless": "b"}, "near_duplicates": 2}, "near_duplicates = 2.0"),
        ({"sources": {"harmful": "a", "harmless": "b"}, "seed": -1}, "seed: .*greater than or equal to 0"),
        ("advbench", "advbench holds harmful prompts only"),
    ],
)
def test_bad_descriptions_are_named(tmp_path, source, message):
    with pytest.raises(PromptError, match=message) as caught:
        otl.load_prompts(source, root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": (0, 4)}, r"sample = \(0, 4\)"),
        ({"sample": (4,)}, "sample = "),
        ({"sample": {"harm": (4, 2)}}, "no class of a sample 'harm'"),
        ({"near_duplicates": 0.0}, "near_duplicates = 0.0"),
        ({"labels": {"1": "bad"}, "columns": {"text": "text"}}, "no class 'bad'"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    path = write_json(tmp_path / "a.json", [{"text": t, "label": "harmful"} for t in HARMFUL])
    with pytest.raises(PromptError, match=message):
        otl.load_prompts(path, **options)


def test_yaml_makes_no_objects(tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text("sources: !!python/object/apply:pytest.fail ['made']")
    with pytest.raises(PromptError, match="not readable YAML"):
        otl.load_prompts(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(PromptError, match="is described by"):
        otl.load_prompts(path)


def test_a_name_that_no_file_system_takes_is_named(tmp_path):
    (tmp_path / "good.txt").write_bytes(GOOD)
    for sources in ({"harmful": "x" * 5_000, "harmless": str(tmp_path / "good.txt")}, "y" * 5_000):
        with pytest.raises(PromptError, match=r"check the path|no prompt set"):
            otl.load_prompts(sources)
