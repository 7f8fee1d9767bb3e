"""Prompts, the two classes of a split, and the three splits of a contrast set."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import escape

from ot_lens.errors import PromptError

CLASSES = ("harmful", "harmless")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Prompt:
    """One request, as a user would type it, before the chat template.

    Attributes:
        text: The request.
        answer: One right, compliant answer (perplexity is measured on it), or None when none is known.
        answers: Every answer that counts as right; empty when none is known.
        category: The category of the request, or None.
    """

    text: str
    answer: str | None = None
    answers: tuple[str, ...] = ()
    category: str | None = None


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
        """Hash of the texts and answers of both classes, in order."""
        rows = [(name, p.text, p.answer) for name, prompts in self for p in prompts]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class ContrastSet:
    """Harmful and harmless prompts: `train` fits maps, `val` chooses, `test` reports.

    Attributes:
        name: Name of the set.
        train: Prompts that maps are fitted on.
        val: Prompts that choices are made on.
        test: Prompts that results are reported on.
        licence: Licence of the prompts, "unknown" where none is stated.
        source: Where they are from, in words.
        provenance: How the set was made: files and hashes, seed and sampling, what was left out and why.
            `manifest` gives it with the counts. Two sets of the same prompts are equal whatever it says.
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
        """Counts a split and class."""
        sizes = ", ".join(f"{split} {len(c.harmful)}+{len(c.harmless)}" for split, c in self.splits)
        return f"ContrastSet({self.name!r}: harmful+harmless {sizes}; licence {self.licence})"

    def _repr_html_(self) -> str:
        """Name, licence and lengths as a small table; no prompt's text."""
        table = self.table()
        shown = table[(table["category"] == "all") & (table["unit"] == "words")]
        head = f"<b>{escape(self.name)}</b> ({escape(self.licence)}; {escape(self.source)})"
        rows = shown.drop(columns="category").to_html(
            index=False, escape=True, border=0, float_format="{:.1f}".format
        )
        return f"<div>{head}{rows}</div>"

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every split, for the manifest."""
        return {split: contrast.sha256 for split, contrast in self.splits}

    def counts(self) -> dict[str, dict[str, int]]:
        """Prompts of every split and class."""
        return {split: {label: len(group) for label, group in contrast} for split, contrast in self.splits}

    def manifest(self) -> dict[str, Any]:
        """What is recorded of the set, ready for JSON; never a text.

        Returns:
            name, licence, source, counts and sha256 a split; and, of a set that `load_prompts` made: sources
            (each with licence, revision, rows, and the SHA-256 of its file), seed, sample, and left_out,
            which counts what was dropped, by reason, class and split.
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
            tokenizer: A Hugging Face tokenizer, to count tokens too (of the bare text, without the chat
                template).

        Returns:
            Tidy: split, class, category ("all", then each), unit (characters, words, tokens), n, mean, sd,
            shortest, median, longest.
        """
        from ot_lens.prompts.lengths import length_table

        return length_table(self, tokenizer)

    def check(self, near_duplicates: float = 0.8) -> pd.DataFrame:
        """Duplicates within and between the splits and classes.

        Args:
            near_duplicates: Jaccard similarity of character 5-grams from which two prompts count as nearly
                the same, in (0, 1].

        Returns:
            Tidy: kind ("exact", "near"), class, split, other_class, other_split, n (prompts of the first
            with a twin in the second), of (prompts of the first). Exact means equal after normalization
            (NFKC, letter case, white space); near does not count these again.

        Raises:
            PromptError: If the similarity is not in (0, 1].
        """
        from ot_lens.prompts.duplicates import duplicate_table

        return duplicate_table(self, near_duplicates)


def as_texts(prompts: Sequence[Prompt | str] | str) -> list[str]:
    """The texts of prompts given as `Prompt` objects or plain strings.

    Raises:
        PromptError: If there is no prompt, or one is empty.
    """
    if isinstance(prompts, str):
        raise PromptError(
            f"prompts must be a list, got the single string {prompts[:40]!r}: put it in a list."
        )
    texts = [p.text if isinstance(p, Prompt) else p for p in prompts]
    if not texts:
        raise PromptError("no prompts: the list is empty. Give at least one prompt.")
    blank = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if blank:
        raise PromptError(f"prompt {blank[0]} of {len(texts)} is empty or not text: remove it or fill it in.")
    return texts
