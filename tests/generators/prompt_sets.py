"""Harmless synthetic prompts, and files of them in the formats and folder layouts of the public sets."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def sentences(n: int, *, seed: int = 0, words: int = 8) -> list[str]:
    """Sentences of invented words: all different, none nearly the same as another."""
    rng = np.random.default_rng(seed)
    syllables = rng.choice(_SYLLABLES, size=(n, words, 3))
    return [" ".join("".join(word) for word in sentence) for sentence in syllables]


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, n: int = 20, *, seed: int = 0) -> str:
    """The path of a new text file of n sentences, one per line."""
    path.write_text("\n".join(sentences(n, seed=seed)), encoding="utf-8")
    return str(path)


def write_jsonl(path: Path, records: Iterable[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_csv(path: Path, records: Sequence[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
    return path


def refusal_direction_clone(root: Path, *, size: int = 200) -> dict[str, list[str]]:
    """The files of a clone of refusal_direction, of synthetic prompts; returns the splits' prompts."""
    splits = {}
    for i, (label, split) in enumerate(
        (c, s) for c in ("harmful", "harmless") for s in ("train", "val", "test")
    ):
        splits[f"{label}_{split}"] = sentences(size, seed=i)
        rows = [{"instruction": text, "category": None} for text in splits[f"{label}_{split}"]]
        write_json(root / "dataset" / "splits" / f"{label}_{split}.json", rows)
    names = ("advbench", "malicious_instruct", "tdc2023", "harmbench_val", "harmbench_test")
    for i, name in enumerate((*names, "jailbreakbench", "strongreject", "alpaca"), start=10):
        rows = [
            {"instruction": f" {text} ", "category": "kind"}
            for text in sentences(3 * size if name == "alpaca" else size, seed=i)
        ]
        write_json(root / "dataset" / "processed" / f"{name}.json", rows)
    return splits
