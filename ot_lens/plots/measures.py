"""The measured quantities of a sweep, as axes, and their values in a form that is quick to look up."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.errors import NothingToDrawError, OtLensError
from ot_lens.plots.description import Axis, Curve
from ot_lens.plots.rows import checked, layers_of, marked_methods, numbers
from ot_lens.plots.style import Mark
from ot_lens.tables import baseline_of, by_depth, every_layer, measured, most_effective_layer, single_layers

COLUMNS = ("set", "layer", "method", "k", "measure", "prompts", "value")
# asinh scale of costs: linear below the knee, logarithmic above, with a place for zero
COST_KNEE = 0.01
COST_TICKS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
# value and both ends of its interval, by the key of a measure
Values = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Measure:
    """One measured quantity as an axis: its name in the table, the prompts, the label, the kind of scale."""

    name: str
    prompts: str
    label: str
    scale: str  # "share", "linear", "log" or "cost"
    better: str  # what a defender's eye should read: which way means "refusal is gone" or "model intact"

    @property
    def key(self) -> str:
        """Name for gids: `refusal_rate/harmful`."""
        return f"{self.name}/{self.prompts}"


MEASURES = {
    m.key: m
    for m in (
        Measure("refusal_rate", "harmful", "refuses (%)", "share", "low: refusal gone"),
        Measure("attack_success_rate", "harmful", "attack success (%)", "share", "high: refusal gone"),
        Measure(
            "exact_answer_rate",
            "harmful",
            "answered correctly (%)",
            "share",
            "high: refusal gone, model intact",
        ),
        Measure("refusal_score", "harmful", "refusal score (nats)", "linear", "low: refusal gone"),
        Measure("kl", "harmless", "KL (nats)", "cost", "low: model intact"),
        Measure("exact_answer_rate", "harmless", "answered correctly (%)", "share", "high: model intact"),
        Measure("refusal_rate", "harmless", "refuses (%)", "share", "low: no over-refusal"),
        Measure("perplexity", "harmless", "perplexity", "log", "low: model intact"),
    )
}
REFUSES, RIGHT = MEASURES["refusal_rate/harmful"], MEASURES["exact_answer_rate/harmful"]
SUCCESS = MEASURES["attack_success_rate/harmful"]
KL, RIGHT_HARMLESS = MEASURES["kl/harmless"], MEASURES["exact_answer_rate/harmless"]
PERPLEXITY = MEASURES["perplexity/harmless"]


def measure_named(key: str) -> Measure:
    """The measure of a key such as `"kl/harmless"`.

    Raises:
        OtLensError: no such measure.
    """
    if key not in MEASURES:
        raise OtLensError(f"unknown measure {key!r}: choose from {', '.join(MEASURES)}")
    return MEASURES[key]


def sweep_rows(localization: pd.DataFrame) -> pd.DataFrame:
    """The real edits of a sweep at one setting each (see `ot_lens.tables.by_depth`).

    Raises:
        TableError: a column is missing, or the table is empty.
    """
    return by_depth(checked(localization, "localization", COLUMNS))


@dataclass(frozen=True)
class Contender:
    """One method: its values at its best single layer, at all layers together, and at every single layer."""

    mark: Mark
    layer: int | None
    best: Values
    together: Values
    layers: Mapping[int, Values]

    @property
    def others(self) -> dict[int, Values]:
        """Values at the single layers that are not the best one."""
        return {layer: values for layer, values in self.layers.items() if layer != self.layer}


def contenders(sweep: pd.DataFrame) -> list[Contender]:
    """Every method of a sweep with its most effective layer (see `most_effective_layer`).

    Raises:
        NothingToDrawError: the sweep holds the baseline only.
    """
    found = []
    for mark, rows in marked_methods(sweep):
        layers = values_by_layer(single_layers(rows))
        layer = most_effective_layer(rows)
        best = layers[layer] if layer is not None else {}
        found.append(Contender(mark, layer, best, values(every_layer(rows)), layers))
    if not found:
        raise NothingToDrawError("the localization table holds no method")
    return found


def baseline(sweep: pd.DataFrame) -> Values:
    """Values without an intervention; a KL that is not in the table is 0 by definition."""
    return {KL.key: (0.0, 0.0, 0.0)} | dict(values(baseline_of(sweep)))


def positions(methods: list[Contender], x: Measure, y: Measure) -> Float[np.ndarray, "points 2"]:
    """Values (x, y) of every method at each layer and at all layers together, where both are known."""
    found = [values for method in methods for values in (method.together, *method.layers.values())]
    pairs = np.array([[interval(one, x)[0], interval(one, y)[0]] for one in found]).reshape(-1, 2)
    return pairs[np.isfinite(pairs).all(axis=1)]


def front(points: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "kept 2"]:
    """The points that no other beats: none costs less (x) and reaches as much (y). Ordered by x."""
    ordered = points[np.lexsort((-points[:, 1], points[:, 0]))]
    best = np.maximum.accumulate(np.concatenate([[-np.inf], ordered[:, 1]]))[:-1]
    return ordered[ordered[:, 1] > best]


def values(rows: pd.DataFrame) -> Values:
    """Value and interval of each measure, of rows of one intervention."""
    names = (rows["measure"] + "/" + rows["prompts"]).tolist()
    missing = np.full(len(rows), np.nan)
    ends = [numbers(rows[end]) if end in rows else missing for end in ("value", "low", "high")]
    return dict(zip(names, zip(*(end.tolist() for end in ends), strict=True), strict=True))


def values_by_layer(single: pd.DataFrame) -> dict[int, Values]:
    """Value and interval of each measure at each layer, ascending, of rows of one method."""
    needed = [name for name in ("layer", "measure", "prompts", "value", "low", "high") if name in single]
    # Without the other columns: slicing all of a sweep's for each layer takes most of the time of a figure.
    groups = (values(rows) for _, rows in single[needed].groupby("layer"))
    return dict(zip(layers_of(single), groups, strict=True))


def interval(found: Values, measure: Measure) -> tuple[float, float, float]:
    """Value and both ends of the interval of one measure, NaN where it was not measured."""
    return found.get(measure.key, (np.nan, np.nan, np.nan))


def present(sweep: pd.DataFrame, measure: Measure) -> bool:
    """Whether the sweep holds a finite value of a measure."""
    rows = measured(sweep, measure.name, measure.prompts)
    return bool(np.isfinite(numbers(rows["value"])).any())


def extent(sweep: pd.DataFrame, measure: Measure) -> tuple[float, float]:
    """The smallest and the largest end of an interval, or value, of a measure in a sweep.

    Raises:
        NothingToDrawError: there is no finite one.
    """
    rows = measured(sweep, measure.name, measure.prompts)
    ends = np.concatenate([numbers(rows[name]) for name in ("value", "low", "high") if name in rows])
    if not np.isfinite(ends).any():
        raise NothingToDrawError(
            f"no value of {measure.label} on {measure.prompts} prompts for these methods"
        )
    return float(np.nanmin(ends)), float(np.nanmax(ends))


def axis_of(measure: Measure, ends: tuple[float, float], title: str | None = None, step: float = 0.5) -> Axis:
    """The axis of a measure whose smallest and largest values are given."""
    name = measure.label if title is None else title
    if measure.scale == "share":
        return Axis(name, "share", (-0.04, 1.04), step=step)
    if measure.scale == "cost":
        ticks = tuple((tick, _tick_label(tick, ends[1])) for tick in cost_ticks(ends[1]))
        return Axis(name, "cost", (-COST_KNEE / 3, _cost_limit(ends[1])), ticks)
    if measure.scale != "log" or not 0 < 10 * ends[0] < ends[1]:
        return Axis(name)
    first, last = int(np.floor(np.log10(ends[0]))), int(np.floor(np.log10(ends[1])))
    powers = range(first, last + 1, 1 + (last - first) // 3)
    return Axis(name, "log", ticks=tuple((10.0**power, f"{10.0**power:g}") for power in powers))


def _cost_limit(largest: float) -> float:
    """The upper end of a cost axis."""
    return max(1.25 * largest, 3 * COST_KNEE)


def cost_ticks(largest: float) -> list[float]:
    """Ticks of a cost axis: 1 and 3 of each decade while there are few of them, else every decade."""
    ticks = COST_TICKS if largest < 1 else COST_TICKS[:1] + COST_TICKS[1::2]
    return [tick for tick in ticks if tick <= _cost_limit(largest)]


def _tick_label(tick: float, largest: float) -> str:
    """The number at a tick; the knee's would touch the zero's where the axis spans many decades."""
    return "" if tick == COST_KNEE and largest >= 2 else f"{tick:g}"


def point(values_of: Values, x: Measure, y: Measure) -> Curve | None:
    """One edit as a point with its intervals along two measures; None where either was not measured."""
    (vx, lx, hx), (vy, ly, hy) = interval(values_of, x), interval(values_of, y)
    if not np.isfinite([vx, vy]).all():
        return None
    at, value, low, high, start, end = (np.array([number]) for number in (vx, vy, ly, hy, lx, hx))
    return Curve(at, value, low, high, None, start, end)
