"""Principal angles between leading subspaces of the class covariances: between classes and between layers."""

from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.geometry.comparison import Sites
from ot_lens.geometry.resampled_moments import LABELS, DrawnClasses, DrawnShapes
from ot_lens.linalg import mapped
from ot_lens.samples import LayerSamples, resolve_position
from ot_lens.statistics.intervals import bootstrap_interval, null_band
from ot_lens.statistics.resampling import Resamples, ResamplingPlan

COLUMNS = ("component", "angle", "n", "low", "high", "null_mean", "null_low", "null_high", "unit")
SMALLEST = 1e-12  # of the leading eigenvalue


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
    for requested, layer in product(acts.positions if position is None else (position,), acts.layers):
        at = resolve_position(acts, requested)
        sites = Sites.of(acts, [(layer, at)])
        _check_k(k, min(sites.sizes))
        labels = plan.observed(*sites.sizes)
        gram, rounding = sites.Z[0] @ sites.Z[0].T, float(sites.gram_rounding[0])
        value = _between_classes(gram, rounding, labels, k)[0]
        resamples, null = plan.resampled(labels), None
        if permutations:
            shapes = DrawnShapes.relabelled(gram, sites.sizes, permutations, seed, rounding)
            null = torch.cat(mapped(lambda chunk: _between_shapes(chunk, k), shapes.chunks()))
        drawn = None if resamples is None else _between_classes(gram, rounding, resamples, k)
        rows += _rows({"layer": layer, "position": at}, value, null, drawn, sum(sites.sizes))
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
    if label not in LABELS:
        raise FitError(f"label = {label!r} is unknown: choose one of {', '.join(LABELS)}.")
    at = resolve_position(acts, position)
    sites = Sites.of(acts, [(layer, at) for layer in acts.layers])
    n = sites.sizes[LABELS.index(label)]
    _check_k(k, n)
    labels = plan.observed(*sites.sizes)
    value, resamples = _between_layers(sites, labels, label, k)[0], plan.resampled(labels)
    null = _random_subspaces(sites.Z[0].shape[1], k, permutations, seed) if permutations else None
    drawn = None if resamples is None else _between_layers(sites, resamples, label, k)
    rows: list[dict[str, Any]] = []
    for (a, layer_a), (b, layer_b) in product(enumerate(acts.layers), repeat=2):
        keys = {"layer_a": layer_a, "layer_b": layer_b, "position": at, "class": label}
        rows += _rows(keys, value[a, b], null, None if drawn is None else drawn[:, a, b], n)
    return pd.DataFrame(rows, columns=["layer_a", "layer_b", "position", "class", *COLUMNS])


def _check_k(k: int, n: int) -> None:
    if not 1 <= k < n:
        raise FitError(f"k = {k} is out of range for a class of {n} samples: choose 1 <= k <= {n - 1}.")


def _basis(classes: DrawnClasses, label: str, k: int) -> Float64[Tensor, "R N k"]:
    """W such that Z^T W is orthonormal and spans the top-k components of a class of samples Z."""
    rows = classes.draws.source if label == "harmful" else classes.draws.target
    size = len(classes.gram)
    return _weights(classes.within(label), rows, rows.shape[1] - 1, size, k, classes.rounding)


def _weights(
    within: Float64[Tensor, "R n n"],
    rows: Int64[Tensor, "R n"],
    freedom: int,
    N: int,
    k: int,
    rounding: float,
) -> Float64[Tensor, "R N k"]:
    """The same from the inner products of the class's rows over its degrees of freedom."""
    values, vectors = torch.linalg.eigh(within)
    leading = values[:, -k:].unsqueeze(1)
    scaled = vectors[:, :, -k:] / (leading * freedom).sqrt()
    least = (SMALLEST * values[:, -1:, None]).clamp_min(rounding)
    scaled = scaled.masked_fill(leading <= least, torch.nan)
    W = within.new_zeros(rows.shape[0], N, k)
    return W.scatter_add_(1, rows.unsqueeze(2).expand(-1, -1, k), scaled)


def _between_classes(
    gram: Float64[Tensor, "N N"], rounding: float, draws: Resamples, k: int
) -> Float64[Tensor, "R k"]:
    def measure(chunk: Resamples) -> Float64[Tensor, "R k"]:
        classes = DrawnClasses.of(gram, chunk, rounding)
        source, target = (_basis(classes, label, k) for label in LABELS)
        return _angles(source.mT @ gram @ target)

    return torch.cat(mapped(measure, draws.chunks()))


def _between_shapes(shapes: DrawnShapes, k: int) -> Float64[Tensor, "R k"]:
    rows = shapes.draws.source, shapes.draws.target
    source, target = (
        _weights(shapes.contrasts(label), of, of.shape[1], len(shapes.gram), k, shapes.rounding)
        for label, of in zip(LABELS, rows, strict=True)
    )
    return _angles(source.mT @ shapes.gram @ target)


def _between_layers(sites: Sites, draws: Resamples, label: str, k: int) -> Float64[Tensor, "R L L k"]:
    grams = [Z @ Z.T for Z in sites.Z]
    layers = list(zip(sites.Z, grams, sites.gram_rounding, strict=True))

    def measure(chunk: Resamples) -> Float64[Tensor, "R L L k"]:
        classes = [(Z, DrawnClasses.of(gram, chunk, rounding)) for Z, gram, rounding in layers]
        bases = [Z.T @ _basis(drawn, label, k) for Z, drawn in classes]
        Q = torch.stack(bases, dim=1)
        return _angles(Q.unsqueeze(2).mT @ Q.unsqueeze(1))

    return torch.cat(mapped(measure, draws.chunks()))


def _random_subspaces(d: int, k: int, count: int, seed: int) -> Float64[Tensor, "R k"]:
    """Angles between random subspaces and one that may be fixed: the first k coordinates."""
    generator = torch.Generator().manual_seed(seed + 5)
    samples = torch.randn(count, d, min(k, d), generator=generator, dtype=torch.float64)
    return _angles(torch.linalg.qr(samples).Q[:, :k])


def _angles(cosines: Float64[Tensor, "*R k k"]) -> Float64[Tensor, "*R k"]:
    """In degrees, smallest first."""
    undefined = cosines.isnan().any(-1).any(-1)
    singular = torch.linalg.svdvals(cosines.nan_to_num(0.0)).clamp_max(1.0)
    return torch.rad2deg(torch.arccos(singular)).masked_fill(undefined.unsqueeze(-1), torch.nan)


def _rows(
    keys: dict[str, Any],
    value: Float64[Tensor, " k"],
    null: Float64[Tensor, "R k"] | None,
    drawn: Float64[Tensor, "B k"] | None,
    n: int,
) -> list[dict[str, Any]]:
    return [
        {
            **keys,
            "component": component,
            "angle": angle,
            "n": n,
            **bootstrap_interval(angle, None if drawn is None else drawn[:, component], n, (0.0, 90.0)),
            **null_band(None if null is None else null[:, component]),
            "unit": "degrees",
        }
        for component, angle in enumerate(value.tolist())
    ]
