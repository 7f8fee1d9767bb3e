"""From the effects of each prompt to one row per layer and place, with interval, null and test."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ot_lens.patching.inference import flip_test
from ot_lens.patching.positions import Place
from ot_lens.patching.prepared import Effects
from ot_lens.statistics import Estimate, mean
from ot_lens.statistics.estimates import unknown

Cells = Float[np.ndarray, "layer place prompt"]


def cells(
    effects: Effects, places: Sequence[Place], draws: int, gap: float, seed: int
) -> Iterator[dict[str, Any]]:
    """One row per layer and place of one map.

    The first `draws` replacements are averaged; the others are those of the null.
    """
    score = effects.score.numpy()
    own, null = averaged(score[:draws]), averaged(score[draws:])
    has_null = len(score) > draws
    differences = own - null if has_null else own
    p, adjusted = (
        x.reshape(own.shape[:2]) for x in flip_test(differences.reshape(-1, own.shape[-1]).T, seed)
    )
    kl = None if effects.kl is None else averaged(effects.kl.numpy()[:draws])
    replaced = effects.replaced.numpy()[:draws]
    for layer, number in np.ndindex(own.shape[:2]):
        value, of_null = estimate_of(own[layer, number], seed), estimate_of(null[layer, number], seed)
        shares = replaced[:, number][replaced[:, number] > 0]
        yield {
            "layer": layer,
            "position": places[number].name,
            "token": places[number].token,
            "value": value.value,
            "unit": "nats",
            "low": value.low,
            "high": value.high,
            "null_mean": of_null.value,
            "null_low": of_null.low,
            "null_high": of_null.high,
            "gap": gap,
            "share": value.value / gap if gap else np.nan,
            "p_value": p[layer, number],
            "p_adjusted": adjusted[layer, number],
            "kl": np.nan if kl is None else estimate_of(kl[layer, number], seed).value,
            "n": value.n,
            "n_left_out": own.shape[-1] - value.n,
            "replaced": float(shares.mean()) if len(shares) else np.nan,
        }


def averaged(draws: Float[np.ndarray, "draw layer place prompt"]) -> Cells:
    """The mean over the draws in which a prompt had something to replace; NaN without any."""
    exists = np.isfinite(draws)
    count = exists.sum(axis=0)
    total = np.where(exists, draws, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def estimate_of(values: Float[np.ndarray, " prompt"], seed: int) -> Estimate:
    """The mean of those that were measured."""
    known = values[np.isfinite(values)]
    return mean(known, seed=seed) if len(known) else unknown(0)
