"""Prompts that say the same: exactly after normalization, or nearly by their character n-grams."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from ot_lens.errors import PromptError

NEAR = 0.8
N_GRAM = 5
_BLOCK = 512  # prompts compared with all others at a time
_SHARED = 8  # of their rarest n-grams, how many two candidates must share
_PAIRS = 100_000  # candidate pairs verified at a time


def normalized(text: str) -> str:
    """Text without differences of Unicode form (NFKC), letter case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def check_threshold(near_duplicates: float | None) -> None:
    """Raise a PromptError unless the similarity is None or in (0, 1]."""
    if near_duplicates is not None and not 0 < near_duplicates <= 1:
        raise PromptError(
            f"near_duplicates must be a Jaccard similarity in (0, 1] or None, got {near_duplicates}."
        )


def near_pairs(texts: Sequence[str], threshold: float) -> Iterator[Int[np.ndarray, "pair 2"]]:
    """Pairs (later, earlier) of normalized texts whose n-grams have a Jaccard similarity of `threshold`."""
    # Two sets x, y of Jaccard similarity >= t share at least ceil(t |x|) members, hence at least m of the
    # |x| - ceil(t |x|) + m rarest of x, and likewise of y (prefix filtering: Chaudhuri et al. 2006; Bayardo
    # et al. 2007; with m > 1: Wang et al. 2012). Only candidates by those columns are compared in full.
    grams = _rarest_first(texts)
    sizes = np.diff(grams.indptr)
    needed = np.ceil(threshold * sizes - 1e-9).astype(int)
    shared = np.minimum(needed, _SHARED)
    prefixes = _first(grams, np.minimum(sizes - needed + shared, sizes))
    for start in range(0, len(texts), _BLOCK):
        end = min(start + _BLOCK, len(texts))
        common = (prefixes[start:end] @ prefixes[:end].T).tocoo()
        late, early = common.row + start, common.col
        small, large = np.minimum(sizes[late], sizes[early]), np.maximum(sizes[late], sizes[early])
        enough = common.data >= np.minimum(shared[late], shared[early])
        likely = enough & (small >= threshold * large - 1e-9) & (early < late)
        pairs = np.stack([late, early], axis=1)[likely]
        for first in range(0, len(pairs), _PAIRS):
            yield _similar(grams, sizes, pairs[first : first + _PAIRS], threshold)


def _rarest_first(texts: Sequence[str]) -> Any:
    """Binary matrix [text, n-gram], columns from the rarest n-gram to the most common."""
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer

    padded = [f" {text} " for text in texts]
    if max((len(text) for text in padded), default=0) < N_GRAM:
        return sparse.csr_matrix((len(texts), 1), dtype=np.int32)
    vectorizer = CountVectorizer(
        analyzer="char", ngram_range=(N_GRAM, N_GRAM), binary=True, lowercase=False, dtype=np.int32
    )
    counts = vectorizer.fit_transform(padded)
    rank = np.argsort(np.argsort(np.bincount(counts.indices), kind="stable"))
    ranked = sparse.csr_matrix((counts.data, rank[counts.indices], counts.indptr), shape=counts.shape)
    ranked.sort_indices()
    return ranked


def _first(grams: Any, lengths: Int[np.ndarray, " text"]) -> Any:
    """The first `lengths` entries of each row."""
    from scipy import sparse

    position = np.arange(grams.nnz) - np.repeat(grams.indptr[:-1], np.diff(grams.indptr))
    included = position < np.repeat(lengths, np.diff(grams.indptr))
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((grams.data[included], grams.indices[included], bounds), shape=grams.shape)


def _similar(
    grams: Any, sizes: Int[np.ndarray, " text"], pairs: Int[np.ndarray, "pair 2"], threshold: float
) -> Int[np.ndarray, "similar 2"]:
    a, b = pairs.T
    shared = np.asarray(grams[a].multiply(grams[b]).sum(axis=1)).ravel()
    return pairs[shared >= threshold * (sizes[a] + sizes[b] - shared) - 1e-9]


def duplicate_table(groups: Mapping[tuple[str, str], Sequence[str]], near_duplicates: float) -> pd.DataFrame:
    """Duplicates within and between groups of texts by (class, split); see `ContrastSet.check`."""
    check_threshold(near_duplicates)
    texts = {group: [normalized(text) for text in members] for group, members in groups.items()}
    group_of = np.repeat(np.arange(len(texts)), [len(members) for members in texts.values()])
    near = np.zeros((len(group_of), len(texts)), dtype=bool)
    for pairs in near_pairs([text for members in texts.values() for text in members], near_duplicates):
        late, early = pairs.T
        near[late, group_of[early]] = near[early, group_of[late]] = True
    rows: list[dict[str, Any]] = []
    for i, ((label, split), members) in enumerate(texts.items()):
        for j, ((other_label, other_split), others) in enumerate(texts.items()):
            occurrences = Counter(others)
            exact = np.array([occurrences[text] > (i == j) for text in members], dtype=bool)
            counts = {"exact": exact.sum(), "near": (near[group_of == i, j] & ~exact).sum()}
            pair = {"class": label, "split": split, "other_class": other_label, "other_split": other_split}
            rows += [{"kind": kind, **pair, "n": int(n), "of": len(members)} for kind, n in counts.items()]
    return pd.DataFrame(rows)
