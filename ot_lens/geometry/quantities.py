"""Every quantity that `diagnose` measures per layer, and its row in a tidy table."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import OtLensError, OtLensTypeError, one_of
from ot_lens.geometry.resampled_moments import LABELS
from ot_lens.statistics.intervals import UNBOUNDED, auc_interval, bootstrap_interval, null_band
from ot_lens.statistics.resampling import Resamples

COLUMNS = ("quantity", "value", "n", "null_mean", "null_low", "null_high", "low", "high", "unit")
NONNEGATIVE = (0.0, np.inf)
SHARE = (0.0, 1.0)
NO_DRAWS = torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True)
class Quantity:
    """A number measured for the two classes of a layer.

    Attributes:
        name: value of the column `quantity`.
        unit: unit of the value; "AUC" for an area under the curve that is cross-fitted over folds.
        bounds: range of the quantity; intervals are clipped to it.
        scale: "linear", or "log" where the error is a factor, as for a variance.
        function: computes the value from H `[n_H, d]` and S `[n_S, d]`; None for built-in ones, which are
            computed together from one Gram matrix.
    """

    name: str
    unit: str
    bounds: tuple[float, float] = NONNEGATIVE
    scale: str = "linear"
    function: Callable[[Tensor, Tensor], float] | None = None

    def samples(self, sizes: tuple[int, int]) -> int:
        """Number of prompts behind a value: those of one class where the name ends with its label."""
        by_class = dict(zip(LABELS, sizes, strict=True))
        return next((n for label, n in by_class.items() if self.name.endswith(f"_{label}")), sum(sizes))

    def of(self, H: Tensor, S: Tensor) -> float:
        """Value of a registered diagnostic.

        Raises:
            OtLensTypeError: the function did not return one number.
        """
        if self.function is None:
            raise OtLensError(f"{self.name} is built in: diagnose computes it.")
        value = self.function(H, S)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OtLensTypeError(
                f"Diagnostic {self.name!r} must return one number, got {type(value).__name__}."
            ) from error

    def under(self, samples: Float64[Tensor, "N d"], draws: Resamples) -> Float64[Tensor, " R"]:
        """Value of a registered diagnostic under every draw."""
        pairs = zip(draws.source, draws.target, strict=True)
        values = [self.of(samples[source], samples[target]) for source, target in pairs]
        return torch.tensor(values, dtype=torch.float64)


def _of_each_class(name: str, unit: str, scale: str = "linear") -> tuple[Quantity, ...]:
    return tuple(Quantity(f"{name}_{label}", unit, scale=scale) for label in LABELS)


BUILT_IN = (
    Quantity("w2_squared", "activation²"),
    Quantity("w2_location", "activation²"),
    Quantity("w2_bures", "activation²"),
    Quantity("direction_norm", "activation"),
    Quantity("location_share_on_direction", "share", SHARE),
    Quantity("auc_direction", "AUC", SHARE),
    Quantity("fisher_ratio", "ratio"),
    Quantity("w2_on_direction", "activation²"),
    Quantity("sliced_w2", "activation²"),
    Quantity("empirical_w2", "activation²"),
    *_of_each_class("effective_rank", "dimensions", "log"),
    *_of_each_class("participation_ratio", "dimensions", "log"),
    *_of_each_class("condition_number", "ratio"),
    *_of_each_class("mardia_skewness", "statistic"),
    *_of_each_class("mardia_kurtosis", "statistic"),
    *_of_each_class("henze_zirkler", "statistic"),
)
DIAGNOSTICS: dict[str, Quantity] = {quantity.name: quantity for quantity in BUILT_IN}


def registered() -> tuple[Quantity, ...]:
    """Diagnostics of users, in the order in which they were registered."""
    return tuple(quantity for quantity in DIAGNOSTICS.values() if quantity.function is not None)


def register_diagnostic(
    name: str,
    function: Callable[[Tensor, Tensor], float],
    unit: str = "activation",
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    scale: str = "linear",
) -> Quantity:
    """Let `diagnose` measure your own quantity at every layer, with its null and its interval.

    The function is also called for every permutation of the labels and every bootstrap resample, so
    `1 + permutations + bootstrap` times per layer. Registering a name again replaces the function.

    Args:
        name: value of the column `quantity`.
        function: takes H `[n_H, d]` and S `[n_S, d]`, float64 on the CPU, and returns one number; NaN where
            the quantity is undefined.
        unit: unit of the value, for the table and the axis of a figure.
        bounds: range of the quantity; intervals are clipped to it.
        scale: "linear", or "log" for a positive quantity whose error is a factor, such as a variance.

    Returns:
        The quantity, as added to `DIAGNOSTICS`.

    Raises:
        OtLensError: an empty name, the name of a built-in quantity, the unit "AUC" (which is reserved for
            cross-fitted areas), an unknown scale, or bounds out of order.
    """
    if not name or (name in DIAGNOSTICS and DIAGNOSTICS[name].function is None):
        raise OtLensError(f"Diagnostic name {name!r} is empty or built in: choose another name.")
    if unit == "AUC":
        raise OtLensError("The unit 'AUC' is reserved for cross-fitted areas: choose another unit.")
    one_of("scale", scale, ("linear", "log"), OtLensError)
    if not bounds[0] < bounds[1]:
        raise OtLensError(f"bounds = {bounds} are not in order: give the lower one first.")
    DIAGNOSTICS[name] = Quantity(name, unit, bounds, scale, function)
    return DIAGNOSTICS[name]


def estimate(
    value: float,
    n: int,
    null: Float64[Tensor, " R"],
    resampled: Float64[Tensor, " B"],
    *,
    bounds: tuple[float, float] = UNBOUNDED,
    scale: str = "linear",
) -> dict[str, Any]:
    """What every row says of its value: n, interval and null."""
    interval = bootstrap_interval(value, resampled, n, bounds, scale=scale)
    return {"n": n, **interval, **null_band(null)}


def row(
    keys: Mapping[str, Any],
    quantity: Quantity,
    n: int,
    measured: Iterable[Mapping[str, Tensor]],
    *,
    labels: Resamples | None = None,
    retrained: bool = True,
) -> dict[str, Any]:
    """One of the `measured` values with its null and its resamples; `labels` has the folds of an AUC."""
    observed, null, resampled = (values.get(quantity.name, NO_DRAWS) for values in measured)
    value = float(observed)
    known = estimate(value, n, null, resampled, bounds=quantity.bounds, scale=quantity.scale)
    if quantity.unit == "AUC" and labels is not None and len(resampled) and not np.isnan(value):
        # Resamples of classes that do not overlap never overlap, however few prompts there are: the interval
        # holds Newcombe's as well. Unless every resample is trained anew, it does not show the effect of
        # training on overlapping prompts either (Nadeau & Bengio 2003, Machine Learning 52).
        inflation = 1.0 if retrained else 1 + labels.folds / (labels.folds - 1)
        low, high = auc_interval(value, labels.sizes, labels.folds, inflation)
        known |= {"low": float(np.fmin(known["low"], low)), "high": float(np.fmax(known["high"], high))}
    return {**keys, "quantity": quantity.name, "value": value, **known, "unit": quantity.unit}
