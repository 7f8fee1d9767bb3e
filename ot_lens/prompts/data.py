"""Prompts, the two classes of a split, and the three splits of a contrast set."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import escape

from ot_lens.errors import PromptError
from ot_lens.prompts.duplicates import duplicate_table

CLASSES = ("harmful", "harmless")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Prompt:
    """One request, as a user would type it, before the chat template.

    Attributes:
        text: The request.
        answer: One correct, compliant answer (perplexity is measured on it), or None if none is known.
        answers: Every answer that counts as correct; empty if none is known.
        category: The category of the request, or None.
        thought: Tokens that follow the rendered request, up to where the answer begins (see `think`). Every
            measure reads them as part of the prompt. None: the model has not thought.
    """

    text: str
    answer: str | None = None
    answers: tuple[str, ...] = ()
    category: str | None = None
    thought: tuple[int, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Contrast:
    """The two classes of one split."""

    harmful: tuple[Prompt, ...]
    harmless: tuple[Prompt, ...]

    def __iter__(self) -> Iterator[tuple[str, tuple[Prompt, ...]]]:
        """Yield ("harmful", prompts), then ("harmless", prompts)."""
        return iter((("harmful", self.harmful), ("harmless", self.harmless)))

    @property
    def sha256(self) -> str:
        """Hash of the texts, answers and thoughts of both classes, in order."""
        rows = [
            (name, p.text, p.answer, *(() if p.thought is None else (p.thought,)))
            for name, prompts in self
            for p in prompts
        ]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class ContrastSet:
    """Harmful and harmless prompts: maps are fitted on `train`, choices made on `val`, results are on `test`.

    Attributes:
        name: Name of the set.
        train: Prompts that maps are fitted on.
        val: Prompts that choices are made on.
        test: Prompts that results are reported on.
        licence: Licence of the prompts, "unknown" if none is stated.
        source: Where they come from, in words.
        provenance: How the set was made: files and hashes, seed and sampling, what was dropped and why.
            `manifest` combines it with the counts. It does not count when two sets are compared.
    """

    name: str
    train: Contrast
    val: Contrast
    test: Contrast
    licence: str = "unknown"
    source: str = "unknown"
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def splits(self) -> tuple[tuple[str, Contrast], ...]:
        """("train", contrast), ("val", contrast) and ("test", contrast)."""
        return tuple((split, getattr(self, split)) for split in SPLITS)

    def __repr__(self) -> str:
        """Counts per split and class, and how many prompts were left out as duplicates or leaks."""
        n = sum(row["n"] for row in self.provenance.get("left_out", ()))
        left_out = f"; {n} duplicates and leaks left out" if n else ""
        sizes = ", ".join(f"{split} {len(c.harmful)}+{len(c.harmless)}" for split, c in self.splits)
        return f"ContrastSet({self.name!r}: harmful+harmless {sizes}; licence {self.licence}{left_out})"

    def _repr_html_(self) -> str:
        """Name, licence and lengths as a small table, without the text of any prompt."""
        table = self.table()
        words = table[(table["category"] == "all") & (table["unit"] == "words")].drop(columns="category")
        head = f"<b>{escape(self.name)}</b> ({escape(self.licence)}; {escape(self.source)})"
        body = words.to_html(index=False, escape=True, border=0, float_format="{:.1f}".format)
        return f"<div>{head}{body}</div>"

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every split, for the manifest."""
        return {split: contrast.sha256 for split, contrast in self.splits}

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of prompts per split and class."""
        return {split: {label: len(group) for label, group in contrast} for split, contrast in self.splits}

    def manifest(self) -> dict[str, Any]:
        """A record of the set, ready for JSON, without the text of any prompt.

        Returns:
            name, licence, source; counts and sha256 per split; and, for a set from `load_prompts`: sources
            (each with licence, revision, rows, and the SHA-256 of its file), seed, sample, and left_out: how
            many prompts were dropped, by reason, class and split.
        """
        return {
            "name": self.name,
            "licence": self.licence,
            "source": self.source,
            "counts": self.counts(),
            "sha256": self.hashes(),
            **self.provenance,
        }

    def table(self, tokenizer: Any = None) -> pd.DataFrame:
        """Lengths of the prompts by split, class and category.

        Args:
            tokenizer: A Hugging Face tokenizer, to count tokens as well (of the bare text, without the chat
                template).

        Returns:
            Tidy: split, class, category ("all", then each), unit (characters, words, tokens), n, mean, sd,
            shortest, median, longest.
        """
        prompts = [
            {"split": split, "class": label, "category": prompt.category or "none", "text": prompt.text}
            for split, contrast in self.splits
            for label, group in contrast
            for prompt in group
        ]
        frame = pd.DataFrame(prompts, columns=["split", "class", "category", "text"])
        lengths = {"characters": frame["text"].str.len(), "words": frame["text"].str.count(r"\S+")}
        if tokenizer is not None:
            ids = tokenizer(frame["text"].tolist(), add_special_tokens=False)["input_ids"]
            lengths["tokens"] = pd.Series(list(map(len, ids)), dtype=int)
        long = pd.concat([frame.assign(unit=unit, length=n) for unit, n in lengths.items()])
        both = pd.concat([long.assign(category="all"), long])
        grouped = both.groupby(["split", "class", "category", "unit"], sort=False)["length"]
        return grouped.agg(
            n="size", mean="mean", sd="std", shortest="min", median="median", longest="max"
        ).reset_index()

    def check(self, near_duplicates: float = 0.8) -> pd.DataFrame:
        """Duplicates within and between the splits and classes.

        Args:
            near_duplicates: Jaccard similarity of character 5-grams, in (0, 1], from which two prompts count
                as near duplicates.

        Returns:
            Tidy: kind ("exact", "near"), class, split, other_class, other_split, n (prompts of the first
            group with a duplicate in the second), of (prompts of the first group). Exact means equal after
            normalization (NFKC, letter case, white space); near duplicates exclude exact ones.

        Raises:
            PromptError: If the similarity is not in (0, 1].
        """
        groups = {
            (label, split): [p.text for p in group]
            for split, contrast in self.splits
            for label, group in contrast
        }
        return duplicate_table(groups, near_duplicates)


def as_texts(prompts: Sequence[Prompt | str] | str) -> list[str]:
    """The texts of prompts given as `Prompt` objects or plain strings.

    Raises:
        PromptError: If there is no prompt, or one is empty.
    """
    if isinstance(prompts, str):
        raise PromptError(f"Prompts must be a list, got the string {prompts[:40]!r}: put it in a list.")
    texts = [p.text if isinstance(p, Prompt) else p for p in prompts]
    if not texts:
        raise PromptError("There are no prompts: the list is empty. Give at least one prompt.")
    blank = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if blank:
        raise PromptError(f"Prompt {blank[0]} of {len(texts)} is empty or not text: remove it or fill it in.")
    return texts
