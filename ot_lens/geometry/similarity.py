"""Similarity of representations: of layers, and of a model before and after it was edited or tuned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.errors import ActivationError, FitError
from ot_lens.geometry.angles import check_components
from ot_lens.geometry.cka import (
    FEWEST,
    check_paired,
    cka_matrix,
    gram_matrices,
    jackknife_intervals,
    permuted_cka,
    unit_patterns,
)
from ot_lens.geometry.quantities import SHARE, estimate
from ot_lens.geometry.resampled_moments import LABELS
from ot_lens.geometry.subspaces import random_products, subspace_products
from ot_lens.linalg import Pooled, centred, check_pair, gram_spectrum, numerical_rank, principal_axes
from ot_lens.samples import LayerSamples, checked_layer, resolve_position
from ot_lens.statistics.intervals import null_band
from ot_lens.statistics.resampling import ResamplingPlan

CKA, KERNEL = "linear_cka", "projection_kernel"
COLUMNS = (
    "layer_a", "layer_b", "position", "class", "quantity", "value", "n", "low", "high", "null_mean",
    "null_low", "null_high", "unit",
)  # fmt: skip
Pair = tuple[int, int]


def projection_kernel(X: Float[Tensor, "n d"], Y: Float[Tensor, "m _"], k: int = 4) -> float:
    """Overlap of the top-k principal subspaces of two samples: ||U^T V||_F^2 / k.

    It is the mean squared cosine of the principal angles: 1 for the same subspace, 0 for orthogonal ones, and
    k / d on average for random subspaces. The samples need not be of the same prompts.

    Args:
        X: one sample.
        Y: another, of the same width.
        k: dimension of both subspaces.

    Returns:
        The overlap, from 0 to 1.

    Raises:
        ActivationError: samples that cannot be used, or of different widths.
        FitError: k below 1, or more dimensions than a sample spans.

    Source: Hamm & Lee 2008, ICML, section 3 (there without the division by k).
    """
    samples = check_pair(X, Y, names=("X", "Y"))
    U, V = (_leading(x, k, name) for x, name in zip(samples, "XY", strict=True))
    return float((U.T @ V).square().sum() / k)


def _leading(x: Float64[Tensor, "n d"], k: int, name: str) -> Float64[Tensor, "d k"]:
    Z, mean = centred(x)
    values, vectors = gram_spectrum(Z)
    rank = int(numerical_rank(values, mean.norm() + Z.norm(dim=1).amax()))
    if not 1 <= k <= rank:
        raise FitError(f"k = {k} is out of range: {name} spans {rank} dimensions about its mean.")
    return principal_axes(Z, vectors, k)


def similarity(
    acts: LayerSamples,
    other: LayerSamples | None = None,
    *,
    k: int | None = 4,
    translations: bool = False,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike representations are, class by class: of every two layers, or of two captures at each layer.

    With `other`, the captures are of the same prompts: before and after an edit, or of a base model and the
    one tuned from it. Two quantities:

    - "linear_cka" (`linear_cka`, debiased): whether the prompts lie in the same pattern. Its null permutes
      the prompts of one representation; its interval is a jackknife over prompts.
    - "projection_kernel" (`projection_kernel`): whether they vary along the same k axes, which CKA does not
      ask. Its null is that of two random subspaces (k / d on average), its interval a bootstrap.

    Args:
        acts: activations of both classes.
        other: activations of the same prompts at some of the same layers.
        k: dimension of the subspaces; None leaves them out, as widths that differ require.
        translations: the captures are of translations of the same prompts, in the same order.
        position: token position; may be left out when only one was captured.
        permutations: draws of each null; 0 for none.
        bootstrap: resamples of the interval of the kernel; 0 for none.
        seed: seed of the draws.

    Returns:
        Columns layer_a (of `acts`), layer_b (of `other`, the same, or of `acts`), position, class, quantity,
        value, n, low, high, null_mean, null_low, null_high, unit. NaN where a class has no pattern, or spans
        fewer than k dimensions.

    Raises:
        ActivationError: different prompts or widths, no common layer, or samples that cannot be used.
        FitError: fewer than 4 prompts of a class, or k outside 1 .. n - 1.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    at = resolve_position(acts, position)
    if other is not None and not translations:
        _check_prompts(acts, other)
    comparisons = _comparisons(acts, other, position)
    rows = [row for comparison in comparisons for row in comparison.rows(k, plan)]
    return pd.DataFrame(rows).assign(position=at)[list(COLUMNS)]


def _check_prompts(acts: LayerSamples, other: LayerSamples) -> None:
    """Captures know the hash of their prompts."""
    own, theirs = (getattr(one, "info", {}).get("prompts") for one in (acts, other))
    if None not in (own, theirs) and own != theirs:
        raise ActivationError(
            "The captures are of different prompts: capture the same ones in one order, or pass "
            "translations=True if they correspond row by row."
        )


@dataclass(frozen=True)
class _Comparison:
    """Both classes at several sites, and the pairs of sites to compare, by their numbers."""

    classes: Sequence[tuple[Float64[Tensor, "n_H _"], Float64[Tensor, "n_S _"]]]
    layers: Sequence[int]
    pairs: Sequence[Pair]

    def rows(self, k: int | None, plan: ResamplingPlan) -> Iterator[dict[str, Any]]:
        """One per pair, class and quantity."""
        pooled = [] if k is None else self._pooled()
        for number, label in enumerate(LABELS):
            samples = [both[number] for both in self.classes]
            found = [self._cka(samples, plan)]
            if k is not None:
                found.append(self._kernel(pooled, label, k, plan))
            for quantity in found:
                for (a, b), row in zip(self.pairs, quantity, strict=True):
                    yield {"layer_a": self.layers[a], "layer_b": self.layers[b], "class": label, **row}

    def _pooled(self) -> list[Pooled]:
        widths = sorted({H.shape[1] for H, _ in self.classes})
        if len(widths) > 1:
            raise ActivationError(
                f"Subspaces of widths {' and '.join(map(str, widths))} cannot be compared: pass k=None for "
                "the similarity of patterns alone."
            )
        return [Pooled.of(H.cpu(), S.cpu()) for H, S in self.classes]

    def _cka(
        self, samples: Sequence[Float64[Tensor, "n _"]], plan: ResamplingPlan
    ) -> Iterator[dict[str, Any]]:
        n = len(samples[0])
        if n < FEWEST:
            raise FitError(f"The debiased similarity needs {FEWEST} prompts of each class, got {n}.")
        grams = gram_matrices(samples)
        patterns = unit_patterns(grams)
        value, null = cka_matrix(patterns), permuted_cka(patterns, plan.permutations, plan.seed)
        low, high = jackknife_intervals(grams, value)
        for pair in self.pairs:
            ends = {"low": float(low[pair]), "high": float(high[pair])}
            drawn = null_band(null[:, pair[0], pair[1]])
            yield {"quantity": CKA, "value": float(value[pair]), "n": n, **ends, **drawn, "unit": "CKA"}

    def _kernel(
        self, pooled: Sequence[Pooled], label: str, k: int, plan: ResamplingPlan
    ) -> Iterator[dict[str, Any]]:
        H, S = self.classes[0]
        labels = plan.observed(len(H), len(S))
        n = labels.sizes[LABELS.index(label)]
        check_components(k, n)
        (value,) = _overlap(subspace_products(pooled, labels, label, k))
        drawn = _overlap(subspace_products(pooled, plan.resampled(labels), label, k))
        null = _overlap(random_products(H.shape[1], k, plan.permutations, plan.seed))
        for a, b in self.pairs:
            known = estimate(float(value[a, b]), n, null, drawn[:, a, b], bounds=SHARE)
            yield {"quantity": KERNEL, "value": float(value[a, b]), **known, "unit": "share"}


def _overlap(products: Float64[Tensor, "*R k k"]) -> Float64[Tensor, "*R"]:
    return products.square().sum((-2, -1)) / products.shape[-1]


def _comparisons(
    acts: LayerSamples, other: LayerSamples | None, position: int | str | None
) -> Iterator[_Comparison]:
    """One of all layers; with another capture, one of each layer that both have."""
    at = resolve_position(acts, position)
    if other is None:
        classes = [checked_layer(acts, layer, at) for layer in acts.layers]
        numbers = range(len(classes))
        yield _Comparison(classes, acts.layers, list(product(numbers, numbers)))
        return
    layers, their = (
        [layer for layer in acts.layers if layer in other.layers],
        resolve_position(other, position),
    )
    if not layers:
        raise ActivationError(
            f"No common layer in {list(acts.layers)} and {list(other.layers)}: capture the same ones."
        )
    for layer in layers:
        classes = [checked_layer(acts, layer, at), checked_layer(other, layer, their)]
        for sizes in zip(*([len(x) for x in both] for both in classes), strict=True):
            check_paired(sizes)
        yield _Comparison(classes, (layer, layer), [(0, 1)])
