"""Published refusal directions compared with other directions, in the table of `direction_cosines`."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.directions.published_run import RefusalDirectionRun
from ot_lens.errors import ActivationError, OtLensTypeError
from ot_lens.geometry.directions import Sites
from ot_lens.linalg import float64
from ot_lens.samples import LayerSamples, resolve_position
from ot_lens.statistics.intervals import bootstrap_interval, null_band
from ot_lens.statistics.resampling import ResamplingPlan

BANDS = ("low", "high", "null_mean", "null_low", "null_high")
COLUMNS = ("layer_a", "layer_b", "position", "cosine", "n", *BANDS)
# A published difference in means this much shorter than the longest is rounding: all prompts share the tokens
# up to that position, so there is no direction.
ROUNDING = 1e-10


def compare_directions(
    run: RefusalDirectionRun,
    other: Any = None,
    *,
    position: int | None = None,
    other_position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of a run's direction at every layer with other directions at every layer.

    Args:
        run: A run that has its mean_diffs.
        other: Activations of both classes, whose prompts give an interval and a null; another run; or
            directions [layer, d]. Default: the run itself.
        position: Position in `run`; default: the selected one, else the last of the prompt.
        other_position: Position in `other`; default: the same.
        permutations: Relabellings of the prompts of `other`, for the null; 0 for none.
        bootstrap: Resamples of the prompts of `other` within each class, for the interval; 0 for none.
        seed: Of both.

    Returns:
        The columns of `ot_lens.direction_cosines`: `layer_a` of the run, `layer_b` of `other`. The cosine is
        NaN at a layer without a direction; n, interval and null are missing if there are no prompts.

    Raises:
        OtLensError: If a position or a number of resamples is not valid, or `other` is of another type.
        ActivationError: If widths differ, or the activations cannot be used.
    """
    plan = ResamplingPlan(permutations, bootstrap, seed)
    own = run.default_position if position is None else position
    theirs = own if other_position is None else other_position
    A = _unit(run.directions(own))
    if isinstance(other, LayerSamples):
        rows = [row for layer in other.layers for row in _with_samples(A, other, layer, theirs, plan)]
    else:
        B = _directions_of(run if other is None else other, theirs)
        _check_widths(A, B.shape[1])
        cosines = (A @ _unit(B).T).clamp(-1, 1)
        rows = [
            {"layer_a": a, "layer_b": b, "cosine": cosine, "n": None, **dict.fromkeys(BANDS, np.nan)}
            for a, row in enumerate(cosines.tolist())
            for b, cosine in enumerate(row)
        ]
    label = own if theirs == own else f"{own} and {theirs}"
    table = pd.DataFrame([{**row, "position": label} for row in rows], columns=list(COLUMNS))
    return table.sort_values(["layer_a", "layer_b"], ignore_index=True).astype({"n": "Int64"})


def _unit(directions: Float[Tensor, "layer d"]) -> Float64[Tensor, "layer d"]:
    """Unit directions; NaN at a layer without one."""
    directions = float64(directions)
    norms = directions.norm(dim=-1, keepdim=True)
    finite = norms.nan_to_num(nan=0, posinf=0)
    return torch.where(finite > ROUNDING * finite.max(), directions / norms, torch.nan)


def _directions_of(other: Any, position: int | str) -> Float64[Tensor, "layer d"]:
    if isinstance(other, RefusalDirectionRun):
        return other.directions(int(position))
    if isinstance(other, Tensor) and other.ndim == 2 and other.is_floating_point():
        return other.cpu().double()
    kind = f"shape {tuple(other.shape)}" if isinstance(other, Tensor) else type(other).__name__
    raise OtLensTypeError(f"Cannot compare with {kind}: give activations, a run, or directions [layer, d].")


def _check_widths(A: Tensor, width: int) -> None:
    if A.shape[1] != width:
        raise ActivationError(
            f"The run's directions have width {A.shape[1]}, the others {width}: the models differ."
        )


def _with_samples(
    A: Float64[Tensor, "a d"],
    samples: LayerSamples,
    layer: int,
    position: int | str,
    plan: ResamplingPlan,
) -> list[dict[str, Any]]:
    site = Sites.of(samples, [(layer, resolve_position(samples, position))])
    _check_widths(A, site.width)
    value, null, resampled = plan.measure(
        plan.observed(*site.sizes), lambda draws: (site.directions(draws)[:, 0] @ A.T).clamp(-1, 1)
    )
    n = sum(site.sizes)
    rows = []
    for a, cosine in enumerate(value.tolist()):
        interval = bootstrap_interval(cosine, resampled[:, a], n, (-1.0, 1.0))
        band = null_band(null[:, a])
        rows.append({"layer_a": a, "layer_b": layer, "cosine": cosine, "n": n, **interval, **band})
    return rows
