"""Leading principal subspaces of one class at several sites under draws, compared by their inner products."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.geometry.resampled_moments import PooledGram
from ot_lens.linalg import Pooled, mapped
from ot_lens.statistics.resampling import Resamples

CHUNK_BYTES = 64 * 2**20


def subspace_products(
    sites: Sequence[Pooled], draws: Resamples, label: str, k: int
) -> Float64[Tensor, "R L L k k"]:
    """Q_a^T Q_b for every two sites, Q a basis of the class's top-k components; NaN where it has fewer."""
    grams = [PooledGram.of(site) for site in sites]
    size = max(1, CHUNK_BYTES // (8 * len(sites) * sites[0].Z.shape[1] * k))

    def measure(chunk: Resamples) -> Float64[Tensor, "R L L k k"]:
        weights = (gram.under(chunk).leading_weights(label, k) for gram in grams)
        Q = torch.stack([site.Z.T @ W for site, W in zip(sites, weights, strict=True)], dim=1)
        return Q.unsqueeze(2).mT @ Q.unsqueeze(1)

    starts = range(0, max(draws.count, 1), size)
    return torch.cat(mapped(measure, [draws.slice(start, start + size) for start in starts]))


def random_products(d: int, k: int, count: int, seed: int) -> Float64[Tensor, "R k k"]:
    """The same for pairs of random subspaces, of which one may be fixed: the first k coordinates."""
    generator = torch.Generator().manual_seed(seed + 5)
    samples = torch.randn(count, d, min(k, d), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(samples).Q[:, :k]
