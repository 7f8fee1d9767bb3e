"""How many directions refusal has: the span of the category means about the harmless mean."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.errors import ActivationError
from ot_lens.geometry.quantities import COLUMNS, NO_DRAWS, Quantity, row
from ot_lens.geometry.resampled_moments import PooledGram
from ot_lens.linalg import Pooled
from ot_lens.samples import LayerSamples, each_layer, resolve_position
from ot_lens.statistics.intervals import bootstrap_interval
from ot_lens.statistics.resampling import ResamplingPlan


def category_directions(
    acts: LayerSamples,
    categories: Sequence[str],
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Effective number of refusal directions of the categories of harmful prompts, layer by layer."""
    plan = ResamplingPlan(permutations, bootstrap, seed)
    names = sorted(set(categories))
    code = torch.tensor([names.index(category) for category in categories])
    rows: list[dict[str, Any]] = []
    for keys, H, S in each_layer(acts, resolve_position(acts, position)):
        _check(code, len(H), len(names))
        pooled = PooledGram.of(Pooled.of(H, S))
        generator = torch.Generator().manual_seed(plan.seed + 7)
        # Noise of the means raises the number: the null is what one direction for all looks like at this n.
        orders = torch.rand(permutations, len(code), generator=generator).argsort(1)
        null = _effective(pooled, _weights(code[orders], len(names), len(S)))
        drawn = _effective(pooled, _resampled(code, len(names), len(S), bootstrap, generator))
        value = _effective(pooled, _weights(code.unsqueeze(0), len(names), len(S)))
        # As if every category had as few prompts as the smallest, whose mean is the least certain.
        least = len(names) * int(code.bincount().min())
        quantity = Quantity("refusal_directions", "directions", (1.0, float(len(names))))
        band = bootstrap_interval(float(value), drawn, least, quantity.bounds)
        measured = ({quantity.name: found} for found in (value, null, NO_DRAWS))
        rows.append({**row(keys, quantity, len(H) + len(S), measured), **band})
    return pd.DataFrame(rows, columns=["layer", "position", *COLUMNS])


def _check(code: Int64[Tensor, " n"], n: int, count: int) -> None:
    if len(code) != n:
        raise ActivationError(f"Expected one category per harmful prompt: got {len(code)} for {n} prompts.")
    smallest = int(code.bincount(minlength=count).min())
    if count < 2 or smallest < 2:
        raise ActivationError(
            f"Expected at least two categories of two prompts: got {count}, the smallest of {smallest}."
        )


def _weights(code: Int64[Tensor, "R n"], count: int, n_S: int) -> Float64[Tensor, "R C N"]:
    """Combinations of the pooled samples that give each category mean less the harmless mean."""
    member = torch.nn.functional.one_hot(code, count).to(torch.float64).mT
    harmless = torch.full((len(code), count, n_S), -1.0 / n_S, dtype=torch.float64)
    return torch.cat([member / member.sum(-1, keepdim=True), harmless], dim=-1)


def _resampled(
    code: Int64[Tensor, " n"], count: int, n_S: int, draws: int, generator: torch.Generator
) -> Float64[Tensor, "R C N"]:
    """Prompts resampled within each category and within the harmless class."""
    weights = torch.zeros(draws, count, len(code) + n_S, dtype=torch.float64)
    for c in range(count):
        members = torch.nonzero(code == c).flatten()
        weights[:, c, members] = _shares(len(members), draws, generator)
    weights[:, :, len(code) :] = -_shares(n_S, draws, generator).unsqueeze(1)
    return weights


def _shares(n: int, draws: int, generator: torch.Generator) -> Float64[Tensor, "R n"]:
    """Weights of n prompts in the means of resamples."""
    drawn = torch.randint(n, (draws, n), generator=generator)
    counts = torch.zeros(draws, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    # The mean of n prompts drawn from n scatters by (n - 1) / n too little (Rao & Wu 1988, section 2.2).
    return (1 + (counts - 1) * (n / max(n - 1, 1)) ** 0.5) / n


def _effective(pooled: PooledGram, weights: Float64[Tensor, "R C N"]) -> Float64[Tensor, " R"]:
    """exp(entropy) of the normalized eigenvalues of the products of directions (Roy & Vetterli 2007)."""
    products = weights @ pooled.gram @ weights.mT
    spectrum = torch.linalg.eigvalsh(products).clamp_min(0.0)
    total = spectrum.sum(1, keepdim=True)
    total = total.masked_fill(total <= weights.shape[1] * pooled.rounding, torch.nan)
    return torch.special.entr(spectrum / total).sum(1).exp()
