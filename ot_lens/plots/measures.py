"""The measured quantities of a sweep, as axes, and their values in a form that is quick to look up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError, OtLensError, one_of
from ot_lens.plots.description import Axis
from ot_lens.plots.rows import checked, finite, marked_methods, numbers
from ot_lens.plots.style import Mark
from ot_lens.tables import ALL, baseline_of, by_depth, measured, most_effective_layer, select, single_layers
from ot_lens.tables.effects import EFFECT

# asinh scale of costs: linear below the knee, logarithmic above, with a place for zero
COST_KNEE = 0.01
COST_TICKS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
ENDS = ("value", "low", "high")
# value and both ends of its interval, by the key of a measure
Values = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Measure:
    """One measured quantity as an axis: its name in the table, the prompts, the label, the kind of scale."""

    name: str
    prompts: str
    label: str
    scale: str  # "share", "linear", "log" or "cost"

    @property
    def key(self) -> str:
        """Name for gids: `refusal_rate/harmful`."""
        return f"{self.name}/{self.prompts}"


MEASURES = {
    m.key: m
    for m in (
        Measure("refusal_rate", "harmful", "refuses (%)", "share"),
        Measure("attack_success_rate", "harmful", "attack success (%)", "share"),
        Measure("coherent_success_rate", "harmful", "answered coherently (%)", "share"),
        Measure("exact_answer_rate", "harmful", "answered correctly (%)", "share"),
        Measure("degenerate_rate", "harmful", "empty or repetitive (%)", "share"),
        Measure("answer_nll", "harmful", "answer NLL (nats per token)", "linear"),
        Measure("refusal_score", "harmful", "refusal score (nats)", "linear"),
        Measure("kl", "harmless", "KL (nats)", "cost"),
        Measure("exact_answer_rate", "harmless", "answered correctly (%)", "share"),
        Measure("refusal_rate", "harmless", "refuses (%)", "share"),
        Measure("coherent_success_rate", "harmless", "answered coherently (%)", "share"),
        Measure("degenerate_rate", "harmless", "empty or repetitive (%)", "share"),
        Measure("perplexity", "harmless", "perplexity", "log"),
    )
}
SCORE, REFUSES_HARMLESS = MEASURES["refusal_score/harmful"], MEASURES["refusal_rate/harmless"]
REFUSES, RIGHT = MEASURES["refusal_rate/harmful"], MEASURES["exact_answer_rate/harmful"]
SUCCESS, COHERENT = MEASURES["attack_success_rate/harmful"], MEASURES["coherent_success_rate/harmful"]
# Columns that no figure reads: a page selects rows dozens of times, and every column costs.
UNREAD = ("key", "layers", "draw", "interval", "p_value", "p_holm", "test", "verified", "note")
# For captions.
COHERENT_MEANS = "neither refused nor repetitive, and likely enough to the unedited model"
KL, RIGHT_HARMLESS = MEASURES["kl/harmless"], MEASURES["exact_answer_rate/harmless"]
PERPLEXITY = MEASURES["perplexity/harmless"]


def measure_named(key: str) -> Measure:
    """The measure of a key such as `"kl/harmless"`."""
    one_of("measure", key, list(MEASURES), OtLensError)
    return MEASURES[key]


def sweep_rows(localization: pd.DataFrame) -> pd.DataFrame:
    """The real edits of a sweep at one setting each (see `ot_lens.tables.by_depth`), as far as drawn."""
    rows = checked(localization, "localization")
    return by_depth(rows.drop(columns=[name for name in UNREAD if name in rows]))


@dataclass(frozen=True)
class Contender:
    """One method: its values at its best single layer, at all layers together, and at every single layer."""

    mark: Mark
    layer: int | None
    best: Values
    together: Values
    layers: Mapping[int, Values]


def contenders(sweep: pd.DataFrame) -> list[Contender]:
    """Every method of a sweep with its most effective layer (see `most_effective_layer`).

    Raises:
        NothingToDrawError: If the sweep holds the baseline only.
    """
    methods = [_contender(mark, rows) for mark, rows in marked_methods(sweep)]
    if not methods:
        raise NothingToDrawError("The localization table holds no method.")
    return methods


def _contender(mark: Mark, rows: pd.DataFrame) -> Contender:
    single = single_layers(rows)
    # Without the other columns: slicing all of a sweep's for each layer takes most of the time of a figure.
    needed = [name for name in ("layer", "measure", "prompts", *ENDS) if name in single]
    groups: Any = single[needed].groupby("layer")
    layers = {int(layer): values(own) for layer, own in groups}
    best = most_effective_layer(rows) if len(layers) > 1 else _only_layer(layers)
    at_best = {} if best is None else layers[best]
    return Contender(mark, best, at_best, values(select(rows, set=ALL)), layers)


def _only_layer(layers: Mapping[int, Values]) -> int | None:
    """What `most_effective_layer` says of one layer: that one, if an effect was measured there."""
    effects = [f"{measure}/harmful" for measure, _ in EFFECT]
    nothing = (np.nan,)
    for layer, found in layers.items():
        if any(np.isfinite(found.get(effect, nothing)[0]) for effect in effects):
            return layer
    return None


def baseline(sweep: pd.DataFrame) -> Values:
    """Values without an intervention; a KL that is not in the table is 0 by definition."""
    return {KL.key: (0.0, 0.0, 0.0)} | dict(values(baseline_of(sweep)))


def values(rows: pd.DataFrame) -> Values:
    """Value and interval of each measure, of rows of one intervention."""
    names = (rows["measure"] + "/" + rows["prompts"]).tolist()
    missing = np.full(len(rows), np.nan)
    ends = [numbers(rows[end]) if end in rows else missing for end in ENDS]
    return dict(zip(names, zip(*(end.tolist() for end in ends), strict=True), strict=True))


def interval(found: Values, measure: Measure) -> tuple[float, float, float]:
    """Value and both ends of the interval of one measure, NaN where it was not measured."""
    return found.get(measure.key, (np.nan, np.nan, np.nan))


def present(sweep: pd.DataFrame, measure: Measure) -> bool:
    """Whether the sweep holds a finite value of a measure."""
    return bool(finite(measured(sweep, measure.name, measure.prompts), "value"))


def axis_of(
    measure: Measure,
    sweep: pd.DataFrame,
    title: str | None = None,
    step: float = 0.5,
    *,
    narrow: bool = False,
) -> Axis:
    """The axis of a measure, for its values in a sweep and their intervals; `narrow` has fewer ticks."""
    name = measure.label if title is None else title
    low, high = _extent(sweep, measure)
    if measure.scale == "share":
        return Axis(name, "share", (-0.04, 1.04), step=step)
    if measure.scale == "cost":
        end = max(1.25 * high, 3 * COST_KNEE)
        # 1 and 3 of each decade while there are few of them; the knee's label would touch the zero's if not.
        ticks = COST_TICKS if high < 1 and not narrow else COST_TICKS[:1] + COST_TICKS[1::2]
        names = {COST_KNEE: ""} if high >= (0.1 if narrow else 2) else {}
        named = tuple((tick, names.get(tick, f"{tick:g}")) for tick in ticks if tick <= end)
        return Axis(name, "cost", (-COST_KNEE / 3, end), named)
    if measure.scale != "log" or not 0 < 10 * low < high:
        return Axis(name)
    first, last = int(np.floor(np.log10(low))), int(np.floor(np.log10(high)))
    powers = range(first, last + 1, 1 + (last - first) // 3)
    return Axis(name, "log", ticks=tuple((10.0**power, f"{10.0**power:g}") for power in powers))


def _extent(sweep: pd.DataFrame, measure: Measure) -> tuple[float, float]:
    """The smallest and the largest end of an interval, or value; a NothingToDrawError without any."""
    rows = measured(sweep, measure.name, measure.prompts)
    ends = finite(rows, *ENDS)
    if not ends:
        raise NothingToDrawError(
            f"The sweep has no value of {measure.label} on {measure.prompts} prompts for these methods."
        )
    return min(ends), max(ends)
