"""Centred kernel alignment with the linear kernel, from n x n Gram matrices; debiased, with its jackknife."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy import stats
from torch import Tensor

from ot_lens.errors import ActivationError, FitError
from ot_lens.linalg import centred, centring_rounding, check_samples
from ot_lens.statistics.intervals import TAIL

# The debiased estimate is a sum over four different prompts.
FEWEST = 4


def linear_cka(X: Float[Tensor, "n d"], Y: Float[Tensor, "_ e"], *, debiased: bool = True) -> float:
    """Centred kernel alignment of two representations of the same prompts, with the linear kernel.

    It does not change if either representation is rotated, shifted or scaled as a whole. The plain estimate
    tends to 1 for unrelated samples as the widths grow beyond n: for Gaussian noise it is about
    sqrt(d e / ((d + n) (e + n))). The debiased one stays near 0 there, and is the default, because there are
    more coordinates than prompts; it is at most 1 and may be negative.

    Args:
        X: one representation, a row per prompt.
        Y: another one of the same prompts in the same order; its width may differ.
        debiased: the ratio of unbiased estimates of HSIC; if not, of the plain ones.

    Returns:
        The similarity; 1 for representations that are equal up to rotation, shift and scale.

    Raises:
        ActivationError: different numbers of prompts, fewer than 4, or samples that cannot be used.
        FitError: samples without a pattern: all equal or, for the debiased estimate, all equally far apart.

    Source: Kornblith et al. 2019, arXiv 1905.00414, eqs. (3) and (4); unbiased HSIC: Song et al. 2012, JMLR
    13, eq. (5); the ratio of unbiased estimates: Nguyen et al. 2021, arXiv 2010.15327, eqs. (2) and (3).
    """
    samples = check_samples(X, "X", least=FEWEST), check_samples(Y, "Y", least=FEWEST)
    check_paired([len(x) for x in samples])
    patterns = unit_patterns(gram_matrices(samples), debiased=debiased)
    for name, pattern in zip("XY", patterns, strict=True):
        if bool(pattern.isnan().any()):
            raise FitError(
                f"{name} has no pattern: its {len(samples[0])} samples are equal or equally far apart: "
                "choose another layer or other prompts."
            )
    return float((patterns[0] * patterns[1]).sum().clamp(-1.0, 1.0))


def check_paired(sizes: Sequence[int]) -> None:
    """Refuse representations of different prompts."""
    if len(set(sizes)) != 1:
        raise ActivationError(
            f"The representations have {' and '.join(map(str, sizes))} samples: they must be of the same "
            "prompts in the same order."
        )


def gram_matrices(samples: Sequence[Float64[Tensor, "n _"]]) -> Float64[Tensor, "L n n"]:
    """Inner products of the samples of each representation about their mean."""
    about_mean = (centred(x)[0] for x in samples)
    return torch.stack([(Z @ Z.T).cpu() for Z in about_mean])


def unit_patterns(grams: Float64[Tensor, "L n n"], *, debiased: bool = True) -> Float64[Tensor, "L n n"]:
    """Centred Gram matrices of norm 1, whose inner products are similarities; NaN where rounding is all."""
    n = grams.shape[-1]
    patterns = _u_centred(grams) if debiased else grams
    norms = patterns.flatten(1).norm(dim=1)
    rounding = n * centring_rounding(grams.abs().amax((1, 2)), n)
    return patterns / norms.masked_fill(norms <= rounding, torch.nan)[:, None, None]


def cka_matrix(patterns: Float64[Tensor, "L n n"]) -> Float64[Tensor, "L L"]:
    """The similarity of every two representations."""
    flat = patterns.flatten(1)
    return (flat @ flat.T).clamp(-1.0, 1.0)


def permuted_cka(patterns: Float64[Tensor, "L n n"], count: int, seed: int) -> Float64[Tensor, "R L L"]:
    """The same with the prompts of the second representation permuted, symmetric in the two."""
    generator = torch.Generator().manual_seed(seed + 1)
    flat, n = patterns.flatten(1), patterns.shape[-1]
    drawn = patterns.new_empty(count, len(flat), len(flat))
    for products in drawn:
        order = torch.randperm(n, generator=generator)
        products.copy_(flat @ patterns[:, order][:, :, order].flatten(1).T)
    return drawn.triu() + drawn.triu(1).mT


def jackknife_intervals(
    grams: Float64[Tensor, "L n n"], value: Float64[Tensor, "L L"]
) -> tuple[Float64[Tensor, "L L"], Float64[Tensor, "L L"]]:
    """95 % intervals over prompts, each left out once, with Student's t (Arvesen 1969); NaN with four.

    A resample would repeat prompts, whose similarity to themselves the debiased estimate leaves out.
    """
    n = grams.shape[-1]
    each = without_each(grams)
    error = ((n - 1) / n * (each - each.mean(0)).square().sum(0)).sqrt()
    reach = float(stats.t.ppf(1 - TAIL, n - 1)) * error if n > FEWEST else error * np.nan
    return (value - reach).clamp(-1.0, 1.0), (value + reach).clamp(-1.0, 1.0)


def without_each(grams: Float64[Tensor, "L n n"]) -> Float64[Tensor, "n L L"]:
    """The debiased similarity of every two representations without each prompt, in O(n^2) for all n."""
    n, K = grams.shape[-1], _hollow(grams)
    rows = K.sum(-1).T  # [n, L]
    across = torch.einsum("bij,ja->iab", K, rows)
    by_prompt = K.permute(1, 0, 2)
    own = by_prompt @ by_prompt.mT
    rest = rows.sum(0) - 2 * rows
    products = own.sum(0) - 2 * own
    chains = rows.T @ rows - rows.unsqueeze(2) * rows.unsqueeze(1) - across - across.mT + own
    hsic = _hsic(products, rest.unsqueeze(2) * rest.unsqueeze(1), chains, n - 1)
    scale = hsic.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()
    return (hsic / (scale.unsqueeze(2) * scale.unsqueeze(1))).clamp(-1.0, 1.0)


def _hsic(products: Tensor, sums: Tensor, chains: Tensor, n: int) -> Tensor:
    """The unbiased estimate times n (n - 3): tr KL + 1'K1 1'L1 / ((n - 1) (n - 2)) - 2 / (n - 2) 1'KL1."""
    return products + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * chains


def _hollow(grams: Float64[Tensor, "L n n"]) -> Float64[Tensor, "L n n"]:
    """Without the similarity of each prompt to itself."""
    return grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))


def _u_centred(grams: Float64[Tensor, "L n n"]) -> Float64[Tensor, "L n n"]:
    """U-centring (Szekely & Rizzo 2014): its inner product is n (n - 3) times the unbiased HSIC."""
    n, K = grams.shape[-1], _hollow(grams)
    rows = K.sum(-1, keepdim=True) / (n - 2)
    total = K.sum((1, 2), keepdim=True) / ((n - 1) * (n - 2))
    return _hollow(K - rows - rows.mT + total)
