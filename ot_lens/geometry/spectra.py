"""Covariance spectra of each class, from the class Gram matrices."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.geometry.resampled_moments import DrawnClasses
from ot_lens.linalg import Pooled, mapped
from ot_lens.samples import LayerSamples, each_layer
from ot_lens.statistics.intervals import bootstrap_interval
from ot_lens.statistics.resampling import Resamples, ResamplingPlan

COLUMNS = (
    "layer",
    "position",
    "class",
    "component",
    "eigenvalue",
    "share",
    "n",
    "low",
    "high",
    "unit",
)


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
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(
    keys: dict[str, Any],
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    plan: ResamplingPlan,
) -> Iterator[dict[str, Any]]:
    pooled, labels = Pooled.of(H, S), plan.observed(len(H), len(S))
    resamples = plan.resampled(labels)
    for label, n in (("harmful", len(H)), ("harmless", len(S))):
        count = min(n - 1, H.shape[1])
        values = _eigenvalues(pooled, labels, label)[0, :count]
        drawn = None if resamples is None else _eigenvalues(pooled, resamples, label)[:, :count]
        total = float(values.sum())
        for component, value in enumerate(values.tolist()):
            yield {
                **keys,
                "class": label,
                "component": component,
                "eigenvalue": value,
                "share": value / total if total > 0 else np.nan,
                "n": n,
                **_interval(value, total, n, None if drawn is None else drawn[:, component]),
                "unit": "activation²",
            }


def _interval(value: float, total: float, n: int, drawn: Float64[Tensor, " B"] | None) -> dict[str, float]:
    """NaN for a component beyond the rank of any resample: some hold few distinct prompts."""
    if drawn is not None and not float(drawn.min()) > 1e-12 * total:
        drawn = None
    return bootstrap_interval(value, drawn, n, (0.0, np.inf), scale="log")


def _eigenvalues(pooled: Pooled, draws: Resamples, label: str) -> Float64[Tensor, "R n"]:
    gram, rounding = pooled.gram().cpu(), float(pooled.gram_rounding)

    def measure(chunk: Resamples) -> Float64[Tensor, "R n"]:
        classes = DrawnClasses.of(gram, chunk, rounding)
        values = torch.linalg.eigvalsh(classes.within(label)).flip(-1)
        return values.masked_fill(values <= classes.rounding, 0.0)

    return torch.cat(mapped(measure, draws.chunks()))
