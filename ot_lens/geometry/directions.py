"""Refusal directions r = mu_H - mu_S compared between layers, positions and runs, as tidy tables."""

from itertools import product
from typing import Any

import pandas as pd

from ot_lens.errors import ActivationError
from ot_lens.geometry.comparison import Cosines, Places
from ot_lens.samples import LayerSamples, resolve_position
from ot_lens.statistics.resampling import check_draw_counts

COLUMNS = ("cosine", "n", "low", "high", "null_mean", "null_low", "null_high")


def direction_cosines(
    acts: LayerSamples,
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of the refusal directions of every pair of layers.

    Layers share most of what the residual stream carries, so directions of permuted labels agree as well: the
    null, one relabelling for all layers at a time, says how much. NaN at a layer whose class means coincide.

    Args:
        acts: activations of both classes.
        position: one token position; all that were captured when None.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamplings of the interval; 0 for none.
        seed: of the draws.

    Returns:
        Columns layer_a, layer_b, position, cosine, n, low, high, null_mean, null_low, null_high.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        OtLensError: a negative number of draws.
    """
    check_draw_counts(permutations, bootstrap)
    rows: list[dict[str, Any]] = []
    for wanted in acts.positions if position is None else (position,):
        at = resolve_position(acts, wanted)
        places = Places.of(acts, [(layer, at) for layer in acts.layers])
        found = Cosines.between(places, places, n_permutations=permutations, n_bootstrap=bootstrap, seed=seed)
        for (a, layer_a), (b, layer_b) in product(enumerate(acts.layers), repeat=2):
            rows.append({"layer_a": layer_a, "layer_b": layer_b, "position": at, **found.row(a, b)})
    return pd.DataFrame(rows, columns=["layer_a", "layer_b", "position", *COLUMNS])


def position_cosines(
    acts: LayerSamples, *, permutations: int = 200, bootstrap: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Cosine of the refusal directions of every pair of token positions, layer by layer.

    Args:
        acts: activations of both classes at several positions.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamplings of the interval; 0 for none.
        seed: of the draws.

    Returns:
        Columns layer, position_a, position_b, cosine, n, low, high, null_mean, null_low, null_high.

    Raises:
        ActivationError: samples that cannot be used; the message names the layer.
        OtLensError: a negative number of draws.
    """
    check_draw_counts(permutations, bootstrap)
    rows: list[dict[str, Any]] = []
    for layer in acts.layers:
        places = Places.of(acts, [(layer, at) for at in acts.positions])
        found = Cosines.between(places, places, n_permutations=permutations, n_bootstrap=bootstrap, seed=seed)
        for (a, first), (b, second) in product(enumerate(acts.positions), repeat=2):
            rows.append({"layer": layer, "position_a": first, "position_b": second, **found.row(a, b)})
    return pd.DataFrame(rows, columns=["layer", "position_a", "position_b", *COLUMNS])


def run_cosines(
    acts: LayerSamples,
    other: LayerSamples,
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of this run's refusal direction with another run's, at the layers both captured.

    Two checkpoints, two prompt sets or two hook points of one width. Runs of equal class sizes are taken to
    hold the same prompts in the same order: they are relabelled and resampled together.

    Args:
        acts: activations of one run.
        other: activations of another.
        position: token position; may be left out when both captured one.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamplings of the interval; 0 for none.
        seed: of the draws.

    Returns:
        Columns layer, position, cosine, n, low, high, null_mean, null_low, null_high.

    Raises:
        ActivationError: no common layer, different widths, or samples that cannot be used.
        OtLensError: a negative number of draws.
    """
    check_draw_counts(permutations, bootstrap)
    layers = [layer for layer in acts.layers if layer in other.layers]
    if not layers:
        raise ActivationError(f"the runs share no layer: {list(acts.layers)} and {list(other.layers)}")
    at = resolve_position(acts, position)
    rows: list[dict[str, Any]] = []
    for layer in layers:
        first = Places.of(acts, [(layer, at)])
        second = Places.of(other, [(layer, resolve_position(other, position))])
        found = Cosines.between(first, second, n_permutations=permutations, n_bootstrap=bootstrap, seed=seed)
        rows.append({"layer": layer, "position": at, **found.row(0, 0)})
    return pd.DataFrame(rows, columns=["layer", "position", *COLUMNS])


def layer_cosines(
    acts: LayerSamples,
    other: LayerSamples,
    *,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of this run's refusal direction at every layer with another run's at every layer.

    As `run_cosines`, for every two layers: the runs need not share any.

    Args:
        acts: activations of one run.
        other: activations of another, of the same width.
        position: token position; may be left out when both captured one.
        permutations: relabellings of the null; 0 for none.
        bootstrap: resamplings of the interval; 0 for none.
        seed: of the draws.

    Returns:
        Columns layer, layer_other, position, cosine, n, low, high, null_mean, null_low, null_high.

    Raises:
        ActivationError: different widths, or samples that cannot be used.
        OtLensError: a negative number of draws.
    """
    check_draw_counts(permutations, bootstrap)
    at = resolve_position(acts, position)
    theirs = resolve_position(other, position)
    first = Places.of(acts, [(layer, at) for layer in acts.layers])
    second = Places.of(other, [(layer, theirs) for layer in other.layers])
    found = Cosines.between(first, second, n_permutations=permutations, n_bootstrap=bootstrap, seed=seed)
    rows = [
        {"layer": one, "layer_other": two, "position": at, **found.row(a, b)}
        for (a, one), (b, two) in product(enumerate(acts.layers), enumerate(other.layers))
    ]
    return pd.DataFrame(rows, columns=["layer", "layer_other", "position", *COLUMNS])
