"""Principal angles between leading subspaces of the class covariances: between classes and between layers."""

from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import FitError, one_of
from ot_lens.geometry.directions import Sites
from ot_lens.geometry.quantities import estimate
from ot_lens.geometry.resampled_moments import LABELS, DrawnClasses, DrawnShapes, PooledGram
from ot_lens.geometry.subspaces import random_products, subspace_products
from ot_lens.linalg import Pooled, mapped
from ot_lens.samples import LayerSamples, each_layer, resolve_position
from ot_lens.statistics.resampling import ResamplingPlan

COLUMNS = ("component", "angle", "n", "low", "high", "null_mean", "null_low", "null_high", "unit")


def class_angles(
    acts: LayerSamples,
    *,
    k: int = 2,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Principal angles between the top-k principal subspaces of the two classes, layer by layer.

    Subspaces of two samples of one covariance also differ: the null shows by how much. It permutes labels of
    contrasts within the classes (see `DrawnShapes`), because classes of one covariance and two means would
    otherwise be mixtures, whose leading component is the difference in means.

    Args:
        acts: activations of both classes.
        k: dimension of both subspaces.
        position: one token position; all captured ones when None.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of the draws.

    Returns:
        Columns layer, position, component (0 the smallest angle), angle, n, low, high, null_mean, null_low,
        null_high, unit (degrees). NaN where a class does not span k dimensions.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        FitError: k outside 1 .. n - 1 of the smaller class.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    rows: list[dict[str, Any]] = []
    for keys, H, S in each_layer(acts, position):
        sizes = len(H), len(S)
        check_components(k, min(sizes))
        pooled, labels = PooledGram.of(Pooled.of(H, S)), plan.observed(*sizes)
        measure = partial(_between_classes, k=k)
        shapes = pooled.relabelled_shapes(sizes, permutations, seed)
        null = torch.cat(mapped(measure, shapes.chunks()))
        drawn = torch.cat(mapped(measure, map(pooled.under, plan.resampled(labels).chunks())))
        value = measure(pooled.under(labels))[0]
        rows += _rows(keys, value, null, drawn, sum(sizes))
    return pd.DataFrame(rows, columns=["layer", "position", *COLUMNS])


def layer_angles(
    acts: LayerSamples,
    *,
    k: int = 2,
    label: str = "harmful",
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Principal angles between the top-k principal subspaces of one class at every two layers.

    Labels do not enter, so the null is that of two random k-dimensional subspaces of the same space.

    Args:
        acts: activations of both classes.
        k: dimension of both subspaces.
        label: "harmful" or "harmless".
        position: token position; may be left out when only one was captured.
        permutations: pairs of random subspaces in the null; 0 for none.
        bootstrap: resamples of the interval; 0 for none.
        seed: seed of the draws.

    Returns:
        Columns layer_a, layer_b, position, class, component, angle, n, low, high, null_mean, null_low,
        null_high, unit.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        FitError: k outside 1 .. n - 1, or an unknown label.
        OtLensError: a negative number of draws.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    one_of("label", label, LABELS, FitError)
    at = resolve_position(acts, position)
    sites = Sites.of(acts, [(layer, at) for layer in acts.layers])
    n = sites.sizes[LABELS.index(label)]
    check_components(k, n)
    labels = plan.observed(*sites.sizes)
    value = _angles(subspace_products(sites.pooled, labels, label, k))[0]
    null = _angles(random_products(sites.width, k, permutations, seed))
    drawn = _angles(subspace_products(sites.pooled, plan.resampled(labels), label, k))
    rows: list[dict[str, Any]] = []
    for (a, layer_a), (b, layer_b) in product(enumerate(acts.layers), repeat=2):
        keys = {"layer_a": layer_a, "layer_b": layer_b, "position": at, "class": label}
        rows += _rows(keys, value[a, b], null, drawn[:, a, b], n)
    return pd.DataFrame(rows, columns=["layer_a", "layer_b", "position", "class", *COLUMNS])


def check_components(k: int, n: int) -> None:
    """Refuse more principal components than a class of n samples has."""
    if not 1 <= k < n:
        raise FitError(f"k = {k} is out of range for a class of {n} samples: choose 1 <= k <= {n - 1}.")


def _between_classes(classes: DrawnClasses | DrawnShapes, k: int) -> Float64[Tensor, "R k"]:
    source, target = (classes.leading_weights(label, k) for label in LABELS)
    return _angles(source.mT @ classes.gram @ target)


def _angles(cosines: Float64[Tensor, "*R k k"]) -> Float64[Tensor, "*R k"]:
    """In degrees, smallest first."""
    undefined = cosines.isnan().any(-1).any(-1)
    singular = torch.linalg.svdvals(cosines.nan_to_num(0.0)).clamp_max(1.0)
    return torch.rad2deg(torch.arccos(singular)).masked_fill(undefined.unsqueeze(-1), torch.nan)


def _rows(
    keys: dict[str, Any],
    value: Float64[Tensor, " k"],
    null: Float64[Tensor, "R k"],
    drawn: Float64[Tensor, "B k"],
    n: int,
) -> list[dict[str, Any]]:
    numbers = zip(value.tolist(), null.unbind(1), drawn.unbind(1), strict=True)
    return [
        {
            **keys,
            "component": component,
            "angle": angle,
            **estimate(angle, n, *draws, bounds=(0.0, 90.0)),
            "unit": "degrees",
        }
        for component, (angle, *draws) in enumerate(numbers)
    ]
