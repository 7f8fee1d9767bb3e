"""Prompts that say the same: exactly after normalization, or nearly by their character n-grams."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from ot_lens.errors import PromptError
from ot_lens.prompts.data import ContrastSet

NEAR = 0.8
N_GRAM = 5
_BLOCK = 512  # prompts compared with all others at a time
_SHARED = 8  # members that candidates must share among their rarest
_PAIRS = 100_000  # candidate pairs verified at a time


def normalized(text: str) -> str:
    """Text without differences of Unicode form (NFKC), letter case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def check_threshold(near_duplicates: float | None) -> None:
    """Check a similarity.

    Raises:
        PromptError: If it is not in (0, 1].
    """
    if near_duplicates is not None and not 0 < near_duplicates <= 1:
        raise PromptError(
            f"near_duplicates = {near_duplicates}: give a Jaccard similarity in (0, 1], or None."
        )


def near_pairs(texts: Sequence[str], threshold: float) -> Iterator[Int[np.ndarray, "pair 2"]]:
    """Pairs of texts whose character n-grams have a Jaccard similarity of at least `threshold`.

    Two sets x, y of Jaccard similarity >= t share at least ceil(t |x|) members, and so at least m of the
    |x| - ceil(t |x|) + m rarest of x and the like of y (prefix filtering: Chaudhuri et al. 2006; Bayardo et
    al. 2007; with m > 1: Wang et al. 2012). Candidates come from a sparse product of those columns alone, and
    only they are compared in full: exact, without looking at all pairs.

    Args:
        texts: Normalized texts. A text shorter than an n-gram is near to none.
        threshold: The similarity t.

    Yields:
        Pairs (later, earlier), block by block of the later.
    """
    grams = _rarest_first(texts)
    sizes = np.diff(grams.indptr)
    needed = np.ceil(threshold * sizes - 1e-9).astype(int)
    shared = np.minimum(needed, _SHARED)
    prefixes = _first(grams, np.minimum(sizes - needed + shared, sizes))
    for start in range(0, len(texts), _BLOCK):
        end = min(start + _BLOCK, len(texts))
        found = (prefixes[start:end] @ prefixes[:end].T).tocoo()
        late, early = found.row + start, found.col
        small, large = np.minimum(sizes[late], sizes[early]), np.maximum(sizes[late], sizes[early])
        likely = (found.data >= np.minimum(shared[late], shared[early])) & (small >= threshold * large - 1e-9)
        pairs = np.stack([late, early], axis=1)[likely & (early < late)]
        for at in range(0, len(pairs), _PAIRS):
            yield _similar(grams, sizes, pairs[at : at + _PAIRS], threshold)


def _rarest_first(texts: Sequence[str]) -> Any:
    """Binary matrix [text, n-gram] whose columns run from the rarest n-gram to the commonest."""
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer

    padded = [f" {text} " for text in texts]
    if max((len(text) for text in padded), default=0) < N_GRAM:
        return sparse.csr_matrix((len(texts), 1), dtype=np.int32)
    vectorizer = CountVectorizer(
        analyzer="char", ngram_range=(N_GRAM, N_GRAM), binary=True, lowercase=False, dtype=np.int32
    )
    found = vectorizer.fit_transform(padded)
    rank = np.argsort(np.argsort(np.bincount(found.indices), kind="stable"))
    ranked = sparse.csr_matrix((found.data, rank[found.indices], found.indptr), shape=found.shape)
    ranked.sort_indices()
    return ranked


def _first(grams: Any, lengths: Int[np.ndarray, " text"]) -> Any:
    """The first `lengths` entries of each row."""
    from scipy import sparse

    position = np.arange(grams.nnz) - np.repeat(grams.indptr[:-1], np.diff(grams.indptr))
    kept = position < np.repeat(lengths, np.diff(grams.indptr))
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((grams.data[kept], grams.indices[kept], bounds), shape=grams.shape)


def _similar(
    grams: Any, sizes: Int[np.ndarray, " text"], pairs: Int[np.ndarray, "pair 2"], threshold: float
) -> Int[np.ndarray, "kept 2"]:
    a, b = pairs.T
    shared = np.asarray(grams[a].multiply(grams[b]).sum(axis=1)).ravel()
    return pairs[shared >= threshold * (sizes[a] + sizes[b] - shared) - 1e-9]


def duplicate_table(prompts: ContrastSet, near_duplicates: float) -> pd.DataFrame:
    """Duplicates within and between groups; see `ContrastSet.check`."""
    check_threshold(near_duplicates)
    texts: list[str] = []
    groups: dict[tuple[str, str], Int[np.ndarray, " n"]] = {}
    for split, contrast in prompts.splits:
        for label, members in contrast:
            groups[label, split] = np.arange(len(texts), len(texts) + len(members))
            texts.extend(normalized(p.text) for p in members)
    group_of = np.concatenate([np.full(len(g), i) for i, g in enumerate(groups.values())])
    near = np.zeros((len(texts), len(groups)), dtype=bool)
    for pairs in near_pairs(texts, near_duplicates):
        late, early = pairs.T
        near[late, group_of[early]] = near[early, group_of[late]] = True
    rows: list[dict[str, Any]] = []
    for (label, split), group in groups.items():
        for i, ((other_label, other_split), other) in enumerate(groups.items()):
            exact = _exact(texts, group, other)
            counts = {"exact": exact.sum(), "near": (near[group, i] & ~exact).sum()}
            where = {"class": label, "split": split, "other_class": other_label, "other_split": other_split}
            rows += [{"kind": kind, **where, "n": int(n), "of": len(group)} for kind, n in counts.items()]
    return pd.DataFrame(rows)


def _exact(
    texts: Sequence[str], group: Int[np.ndarray, " n"], other: Int[np.ndarray, " m"]
) -> Bool[np.ndarray, " n"]:
    held = Counter(texts[i] for i in other)
    itself = 1 if np.array_equal(group, other) else 0
    return np.array([held[texts[i]] > itself for i in group], dtype=bool)
