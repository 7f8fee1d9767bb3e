"""The directions of harm and of refusal by layer: their cosine, and how well each separates its classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ot_lens.linalg import centring_rounding
from ot_lens.samples import LayerSamples
from ot_lens.statistics.intervals import auc_interval, bootstrap_interval, null_band
from ot_lens.statistics.resampling import ResamplingPlan

HARM, REFUSAL = "harm", "refusal"
UNKNOWN = {"low": float("nan"), "high": float("nan")}


@dataclass(frozen=True)
class Labelled:
    """Both classes at one layer and token, harmful first, and to which side of a direction each belongs."""

    X: Float64[Tensor, "n d"]
    flags: Bool[Tensor, " n"]

    @classmethod
    def of(cls, acts: LayerSamples, layer: int, position: int | str, flags: Bool[Tensor, " n"]) -> "Labelled":
        """Samples of a capture."""
        return cls(torch.cat([acts.harmful(layer, position), acts.harmless(layer, position)]), flags)

    @property
    def direction(self) -> Float64[Tensor, " d"]:
        """Difference of the means of the two sides; exactly 0 if only rounding is left of it."""
        found = self.X[self.flags].mean(0) - self.X[~self.flags].mean(0)
        rounding = centring_rounding(self.X.norm(dim=1).amax(), len(self.X))
        return torch.where(found.norm() > rounding, found, torch.zeros_like(found))

    @property
    def other_mean(self) -> Float64[Tensor, " d"]:
        """Mean of the side from which the direction points: harmless prompts, or those that are answered."""
        return self.X[~self.flags].mean(0)


def cosine(harm: Labelled, refusal: Labelled, plan: ResamplingPlan) -> dict[str, Any]:
    """Cosine of both directions, which are of the same prompts at two tokens, with interval and null.

    The interval resamples prompts within each class; the null permutes the labels of either direction by
    itself, which leaves what all directions between these activations share.
    """
    n = len(harm.X)
    if not bool(harm.direction.any()) or not bool(refusal.direction.any()):
        return {"value": float("nan"), **UNKNOWN, **null_band(torch.empty(0, dtype=torch.float64)), "n": n}
    sides = [part.X - part.X.mean(0) for part in (harm, refusal)]
    grams = [a @ b.T for a, b in ((sides[0], sides[0]), (sides[0], sides[1]), (sides[1], sides[1]))]
    once = torch.ones(1, n, dtype=torch.float64)
    value = float(_cosines(grams, _contrast(harm.flags, once), _contrast(refusal.flags, once)))
    times = _resampled(harm.flags, plan)
    drawn = _cosines(grams, _contrast(harm.flags, times), _contrast(refusal.flags, times))
    generator = torch.Generator().manual_seed(plan.seed + 1)
    orders = torch.rand(2, plan.permutations, n, generator=generator).argsort(-1)
    shuffled = [
        _contrast(part.flags[order], torch.ones(order.shape, dtype=torch.float64))
        for part, order in zip((harm, refusal), orders, strict=True)
    ]
    interval = bootstrap_interval(value, drawn, n, (-1.0, 1.0))
    return {"value": value, **interval, **null_band(_cosines(grams, *shuffled)), "n": n}


def _resampled(is_harmful: Bool[Tensor, " n"], plan: ResamplingPlan) -> Float64[Tensor, "R n"]:
    """How often each resample holds each prompt."""
    n_H = int(is_harmful.sum())
    draws = plan.resampled(plan.observed(n_H, len(is_harmful) - n_H))
    rows = torch.cat([draws.source, draws.target], dim=1)
    times = torch.zeros(rows.shape, dtype=torch.float64)
    return times.scatter_add_(1, rows, torch.ones_like(times))


def _contrast(flags: Bool[Tensor, "*R n"], times: Float64[Tensor, "R n"]) -> Float64[Tensor, "R n"]:
    """Weights of the prompts in the difference of two means; NaN where a side is empty."""
    members, others = times * flags, times * ~flags
    return members / members.sum(1, keepdim=True) - others / others.sum(1, keepdim=True)


def _cosines(
    grams: list[Float64[Tensor, "n n"]], harm: Float64[Tensor, "R n"], refusal: Float64[Tensor, "R n"]
) -> Float64[Tensor, " R"]:
    inner = [
        ((left @ gram) * right).sum(1)
        for gram, left, right in zip(grams, (harm, harm, refusal), (harm, refusal, refusal), strict=True)
    ]
    return inner[1] / (inner[0] * inner[2]).sqrt()


def separation(
    scores: Float64[Tensor, " n"], flags: Bool[Tensor, " n"], plan: ResamplingPlan
) -> dict[str, Any]:
    """AUC of scores that were fitted to other prompts, its interval, and its band under permuted labels."""
    sizes = int(flags.sum()), int((~flags).sum())
    generator = torch.Generator().manual_seed(plan.seed + 1)
    orders = torch.rand(plan.permutations, len(flags), generator=generator).argsort(-1)
    value = float(aucs(scores, flags[None]))
    low, high = auc_interval(value, sizes, 1)
    return {
        "value": value,
        "low": low,
        "high": high,
        **null_band(aucs(scores, flags[orders])),
        "n": sum(sizes),
    }


def aucs(scores: Float64[Tensor, " n"], flags: Bool[Tensor, "R n"]) -> Float64[Tensor, " R"]:
    """Share of pairs in which the flagged sample scores higher, by ranks; ties count one half."""
    _, group, count = scores.unique(sorted=True, return_inverse=True, return_counts=True)
    ranks = (count.cumsum(0) - (count - 1) / 2)[group].double()
    n = flags.sum(1).double()
    others = flags.shape[1] - n
    return ((flags * ranks).sum(1) - n * (n + 1) / 2) / (n * others)


def separations(train: Labelled, test: Labelled, plan: ResamplingPlan) -> Iterator[dict[str, Any]]:
    """The held-out AUC of the projection on a direction; nothing where it or a side is missing."""
    direction = train.direction
    if bool(direction.any()) and bool(test.flags.any()) and not bool(test.flags.all()):
        yield separation((test.X - train.X.mean(0)) @ direction, test.flags, plan)
