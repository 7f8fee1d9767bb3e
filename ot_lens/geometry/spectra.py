"""Covariance spectra of each class, from the class Gram matrices, and what they say of its shape."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.geometry.quantities import NO_DRAWS, NONNEGATIVE
from ot_lens.geometry.resampled_moments import LABELS, DrawnClasses, DrawnShapes, PooledGram, Values
from ot_lens.linalg import Pooled, mapped
from ot_lens.moments import intensity_of_gram
from ot_lens.samples import LayerSamples, each_layer
from ot_lens.statistics.intervals import bootstrap_interval
from ot_lens.statistics.resampling import Resamples, ResamplingPlan

COLUMNS = ["layer", "position", "class", "component", "eigenvalue", "share", "n", "low", "high", "unit"]


def spectra(
    acts: LayerSamples, *, position: int | str | None = None, bootstrap: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Eigenvalues of each class covariance, largest first, with intervals over prompts.

    Only min(n - 1, d) of them can differ from zero; the leading ones are biased upward and the trailing ones
    downward when n is far below d.

    Args:
        acts: activations of both classes.
        position: one token position; all captured ones when None.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of the resamples.

    Returns:
        Columns layer, position, class, component (from 0), eigenvalue, share (of the class's variance), n,
        low, high (of the eigenvalue; NaN beyond the rank of any resample), unit.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
    """
    plan = ResamplingPlan(0, bootstrap, seed)
    rows = [entry for keys, H, S in each_layer(acts, position) for entry in _rows(keys, H, S, plan)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(
    keys: dict[str, Any],
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    plan: ResamplingPlan,
) -> Iterator[dict[str, Any]]:
    pooled, labels = PooledGram.of(Pooled.of(H, S)), plan.observed(len(H), len(S))
    resamples = plan.resampled(labels)
    for label, n in zip(LABELS, labels.sizes, strict=True):
        count = min(n - 1, H.shape[1])
        values = _eigenvalues(pooled, labels, label)[0, :count]
        drawn = _eigenvalues(pooled, resamples, label)[:, :count]
        total = float(values.sum())
        components = zip(values.tolist(), drawn.unbind(1), strict=True)
        for component, (value, eigenvalues) in enumerate(components):
            # Some resamples hold few distinct prompts: no interval beyond the rank of any.
            known = bool((eigenvalues > 1e-12 * total).all())
            yield {
                **keys,
                "class": label,
                "component": component,
                "eigenvalue": value,
                "share": value / total if total > 0 else np.nan,
                "n": n,
                **bootstrap_interval(value, eigenvalues if known else NO_DRAWS, n, NONNEGATIVE, scale="log"),
                "unit": "activation²",
            }


def _eigenvalues(pooled: PooledGram, draws: Resamples, label: str) -> Float64[Tensor, "R n"]:
    def measure(chunk: Resamples) -> Float64[Tensor, "R n"]:
        values = torch.linalg.eigvalsh(pooled.under(chunk).within(label)).flip(-1)
        return values.masked_fill(values <= pooled.rounding, 0.0)

    return torch.cat(mapped(measure, draws.chunks()))


def dimensions(classes: DrawnClasses | DrawnShapes, d: int) -> Values:
    """Effective rank, participation ratio and condition number of each class; NaN for equal samples."""
    values: Values = {}
    for label in LABELS:
        gram = classes.within(label)
        spectrum = torch.linalg.eigvalsh(gram).clamp_min(0.0)
        total = gram.diagonal(dim1=1, dim2=2).sum(1)
        total = total.masked_fill(spectrum[:, -1] <= classes.rounding, torch.nan)
        # exp(entropy of the normalized spectrum) (Roy & Vetterli 2007).
        values[f"effective_rank_{label}"] = torch.special.entr(spectrum / total.unsqueeze(1)).sum(1).exp()
        values[f"participation_ratio_{label}"] = total.square() / gram.square().sum((1, 2))
        # Of the Ledoit-Wolf covariance, because the raw one is singular for n <= d.
        values[f"condition_number_{label}"] = _condition(spectrum, total, intensity_of_gram(gram, d), d)
    return values


def _condition(spectrum: Tensor, total: Tensor, shrinkage: Tensor, d: int) -> Tensor:
    floor = shrinkage * total / d
    smallest = spectrum[:, -d] if spectrum.shape[1] > d else torch.zeros_like(total)
    return ((1 - shrinkage) * spectrum[:, -1] + floor) / ((1 - shrinkage) * smallest + floor)
