"""Both classes, before and after edits, in the plane of the leading two pooled components."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.linalg import PooledPCA, checks_samples
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
    pca = PooledPCA.of(H, S)
    rank = int(pca.rank)
    if rank < 2:
        raise FitError(f"The pooled samples have rank {rank}, not 2: choose another layer or position.")
    axes, shares = pca.axes(2), (pca.eigenvalues[:2] / pca.eigenvalues.sum()).tolist()
    points, clouds = [], []
    for state, edit in ((BEFORE, None), *(maps or {}).items()):
        for label, X in (("harmful", H), ("harmless", S)):
            keys = {"class": label, "state": state}
            coordinates = ((X if edit is None else edit.map(X)) - pca.mean) @ axes
            points += [
                {"prompt": index, **keys, "pc1": pc1, "pc2": pc2}
                for index, (pc1, pc2) in enumerate(coordinates.tolist())
            ]
            clouds.append({**keys, **_cloud(coordinates), "pc1_share": shares[0], "pc2_share": shares[1]})
    tables = pd.DataFrame(points), pd.DataFrame(clouds)
    for table in tables:
        table.insert(0, "layer", layer)
        table.insert(1, "position", position)
    return tables


def _cloud(coordinates: Float64[Tensor, "n 2"]) -> dict[str, Any]:
    mean, covariance = coordinates.mean(0).tolist(), torch.cov(coordinates.T).tolist()
    return {
        "n": len(coordinates),
        "mean1": mean[0],
        "mean2": mean[1],
        "cov11": covariance[0][0],
        "cov12": covariance[0][1],
        "cov22": covariance[1][1],
    }
