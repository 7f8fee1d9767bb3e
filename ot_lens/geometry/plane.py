"""Both classes, before and after edits, in the plane of the leading two pooled components."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import Pooled, checks_samples, gram_spectrum, numerical_rank, principal_axes
from ot_lens.samples import Edit

BEFORE = "before"


@checks_samples
def principal_plane(
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    maps: Mapping[str, Edit] | None = None,
    *,
    layer: int | None = None,
    position: int | str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coordinates of every prompt, and mean and covariance of every cloud, before and under each edit.

    An edit moves both classes, as it does in the model. Coordinates are about the pooled mean of the unedited
    samples.

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        maps: edits by their label.
        layer: written into the tables.
        position: written into the tables.

    Returns:
        Points: layer, position, prompt, class, state ("before" or a label), pc1, pc2.
        Clouds: layer, position, class, state, n, mean1, mean2, cov11, cov12, cov22, pc1_share,
            pc2_share (of the pooled variance).

    Raises:
        ActivationError: samples that cannot be used (see `check_samples`).
        FitError: the pooled samples do not span a plane.
    """
    pooled = Pooled.of(H, S)
    values, vectors = gram_spectrum(pooled.Z)
    rank = int(numerical_rank(values, pooled.magnitude))
    if rank < 2:
        raise FitError(f"The pooled samples have rank {rank}, not 2: choose another layer or position.")
    axes, centre = principal_axes(pooled.Z, vectors, 2), pooled.mean
    shares = (values[:2] / values.sum()).tolist()
    keys = {"layer": layer, "position": position}
    points, clouds = [], []
    for state, edit in ((BEFORE, None), *(maps or {}).items()):
        for label, X in (("harmful", H), ("harmless", S)):
            moved = X if edit is None else edit.map(X)
            coordinates = (moved - centre) @ axes
            points += _points(keys, label, state, coordinates)
            clouds.append(_cloud(keys, label, state, coordinates, shares))
    return pd.DataFrame(points), pd.DataFrame(clouds)


def _points(
    keys: Mapping[str, Any], label: str, state: str, coordinates: Float64[Tensor, "n 2"]
) -> list[dict[str, Any]]:
    return [
        {**keys, "prompt": index, "class": label, "state": state, "pc1": pc1, "pc2": pc2}
        for index, (pc1, pc2) in enumerate(coordinates.tolist())
    ]


def _cloud(
    keys: Mapping[str, Any],
    label: str,
    state: str,
    coordinates: Float64[Tensor, "n 2"],
    shares: list[float],
) -> dict[str, Any]:
    mean, covariance = coordinates.mean(0), torch.cov(coordinates.T)
    return {
        **keys,
        "class": label,
        "state": state,
        "n": len(coordinates),
        "mean1": float(mean[0]),
        "mean2": float(mean[1]),
        "cov11": float(covariance[0, 0]),
        "cov12": float(covariance[0, 1]),
        "cov22": float(covariance[1, 1]),
        "pc1_share": shares[0],
        "pc2_share": shares[1],
    }
