"""Views of the sweep: a strip along the depth, localization, and every method at the chosen layer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import State, choices_of
from ot_lens.explorer.view import Drawing, View, read
from ot_lens.plots import screen
from ot_lens.plots.description import LAYER, Axis, Band, Curve, Description, Line, Panel, Reference, Scale
from ot_lens.plots.figures.diagnostics import quantity_panel
from ot_lens.plots.measures import Measure, axis_of, measure_named, sweep_rows
from ot_lens.plots.rows import checked, curve, marked_methods, numbers, some, unit_of
from ot_lens.plots.screen.text import interval
from ot_lens.plots.style import BASELINE, CONTROLS
from ot_lens.tables import (
    baseline_of,
    controls_of,
    edits_of,
    measured,
    select,
    single_layers,
    with_baseline,
)

GEOMETRY = "geometry/"
STRIP = 120


def _swept(
    run: OpenRun, state: State, keys: Sequence[str] | None = None, **criteria: Any
) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the unedited model and of some (or all) methods at a state, and the code that selects them."""
    sweep = checked(run.table("localization"), "localization", ("method", "k", "measure", "prompts", "value"))
    wanted = {"tokens": state.tokens, "strength": state.strength}
    choices = choices_of(run)
    held: dict[str, list[Any]] = {"tokens": choices.tokens, "strength": choices.strengths}
    varied = {name: value for name, value in wanted.items() if len(held[name]) > 1 and value in held[name]}
    criteria = varied | criteria
    if keys is not None:
        criteria = {"methods": list(map(split_key, keys))} | criteria
    code = [read("localization")]
    if criteria:
        arguments = ", ".join(f"{name}={value!r}" for name, value in criteria.items())
        code.append(f"localization = with_baseline(localization, {arguments})")
    return with_baseline(sweep, **criteria), code


def _sweep_note(run: OpenRun, state: State) -> str:
    """What the sweep holds instead, if it was not run at the state's strength or token scope."""
    choices, parts = choices_of(run), []
    if choices.tokens and state.tokens not in choices.tokens:
        parts.append(f"token scope {', '.join(choices.tokens)}, not {state.tokens}")
    if choices.strengths and state.strength not in choices.strengths:
        held = ", ".join(f"{strength:g}" for strength in choices.strengths)
        parts.append(f"strength {held}, not {state.strength:g}")
    return f"The sweep was measured at {' and at '.join(parts)}; showing those rows." if parts else ""


def _localization(run: OpenRun, state: State) -> Drawing:
    rows, code = _swept(run, state, state.keys)
    return Drawing("localization_curves", {"localization": rows}, code, note=_sweep_note(run, state))


def _methods(run: OpenRun, state: State) -> Drawing:
    rows, code = _swept(run, state, layer=state.layer)
    if single_layers(rows).empty:
        raise NothingToDrawError(f"The sweep has no single-layer edit at layer {state.layer}.")
    return Drawing("method_intervals", {"localization": rows}, code, note=_sweep_note(run, state))


def _depth(run: OpenRun, state: State) -> Drawing:
    if state.measure.startswith(GEOMETRY):
        quantity = state.measure.removeprefix(GEOMETRY)
        rows = some(select(run.table("geometry"), quantity=quantity), f"{quantity} in the geometry")
        return Drawing("diagnostics", {"geometry": rows}, [read("geometry")], {"quantity": quantity})
    if not state.measure:
        raise NothingToDrawError("This run has neither a sweep nor a geometry table.")
    rows, code = _both(run, state)
    note = f"{_reading(run, state)} {_sweep_note(run, state)}".strip()
    return Drawing("localization_curve", {"localization": rows}, code, {"measure": state.measure}, note)


def _both(run: OpenRun, state: State) -> tuple[pd.DataFrame, list[str]]:
    """`_swept` of both methods; the same for every chosen layer, so kept."""
    key = ("rows of both", state.keys, state.strength, state.tokens)
    return run.kept(key, lambda: _swept(run, state, state.keys))


def _real_rows(run: OpenRun, state: State) -> pd.DataFrame:
    """Real edits by both methods; kept too."""
    key = ("real rows", state.keys, state.strength, state.tokens)
    return run.kept(key, lambda: sweep_rows(_both(run, state)[0]))


def _strip(drawing: Drawing, run: OpenRun, state: State) -> go.Figure:
    """A click or a drag across the strip chooses layers."""
    layers = choices_of(run).layers
    x = replace(LAYER, title="", limits=(layers[0] - 0.5, layers[-1] + 0.5))
    panel = replace(_panel(drawing, run, state), title="", x=x)
    figure = screen.draw(Description((panel,), columns=1))
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yref": "paper", "yanchor": "bottom"}
    figure.update_layout(margin={"l": 64, "r": 14, "t": 26, "b": 6}, height=STRIP + 32, dragmode="select")
    figure.update_layout(meta=dict(figure.layout.meta) | {"row": STRIP, "below": 0})
    figure.update_layout(selectdirection="h", clickmode="event", hovermode="x unified")
    figure.update_layout(legend=legend | {"font": {"size": 12}})
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False)
    return figure.update_yaxes(automargin=False, nticks=4)


def _panel(drawing: Drawing, run: OpenRun, state: State) -> Panel:
    (rows,) = drawing.tables.values()
    if drawing.figure == "diagnostics":
        return replace(quantity_panel(rows, drawing.options["quantity"]), y=Axis(unit_of(rows, "")))
    measure, real = measure_named(state.measure), _real_rows(run, state)
    own = measured(real, measure.name, measure.prompts)
    baseline = numbers(baseline_of(own)["value"])[:1]
    elements = (
        *_controls(rows, measure, state.ot),
        *(Reference(float(value), BASELINE.label, mark=BASELINE) for value in baseline),
        *(Line(mark.label, mark, curve(line)) for mark, line in marked_methods(single_layers(own))),
    )
    return Panel("", LAYER, axis_of(measure, edits_of(real), ""), elements)


def control_range(sweep: pd.DataFrame, measure: Measure, key: str, kind: str) -> tuple[Curve, int] | None:
    """The smallest and the largest control draw of a method by layer, and how many draws a layer has."""
    method, k = split_key(key)
    controls = single_layers(controls_of(measured(sweep, measure.name, measure.prompts), kind))
    rows = select(controls, method=method, **({} if k is None else {"k": k}))
    if rows.empty:
        return None
    ends = rows.groupby("layer")["value"].agg(["min", "mean", "max", "size"]).reset_index()
    return curve(ends, value="mean", band=("min", "max")), int(ends["size"].min())


def _controls(sweep: pd.DataFrame, measure: Measure, key: str) -> Iterator[Band]:
    """Where edits that ignore the classes land: the range of a method's controls."""
    for kind, mark in CONTROLS.items():
        limits = control_range(sweep, measure, key, kind)
        if limits is not None:
            yield Band(kind, replace(mark, label=f"{mark.label} ({limits[1]} draws)"), limits[0])


def _reading(run: OpenRun, state: State) -> str:
    """What the strip says at the chosen layer, in words: value, interval, n."""
    measure = measure_named(state.measure)
    scale: Scale = "share" if measure.scale == "share" else "linear"
    texts = []
    for label, here in _curves(run, state, measure):
        n = here.value if here.n is None else here.n
        for at in np.flatnonzero(here.x == state.layer):
            value = interval(here.value[at], here.low[at], here.high[at], scale)
            texts.append(f"{label} {value}, n = {n[at]:.0f}")
    return f"Layer {state.layer}: {'; '.join(texts)}." if texts else ""


def _curves(run: OpenRun, state: State, measure: Measure) -> list[tuple[str, Curve]]:
    """A measure along the depth under both methods; kept too."""

    def made() -> list[tuple[str, Curve]]:
        real = measured(_real_rows(run, state), measure.name, measure.prompts)
        return [(mark.label, curve(own)) for mark, own in marked_methods(single_layers(real))]

    return run.kept(("curves", state.keys, state.strength, state.tokens, measure.key), made)


DEPTH = View(
    "depth",
    "Depth",
    "",
    ("layers", "ot", "by", "measure", "strength", "tokens"),
    _depth,
    _strip,
    depth=True,
    told=("layers",),
)
LOCALIZATION = View(
    "localization",
    "Localization",
    "The effect of the two edits at each single layer and, at the right edge, at all layers together. Bands: "
    "95 % intervals over prompts; dashed grey: no intervention.",
    ("ot", "by", "strength", "tokens"),
    _localization,
    depth=True,
)
METHODS = View(
    "methods",
    "Every method at this layer",
    "Filled markers: the edit at the chosen layer, with 95 % intervals; dashed: the unedited model.",
    ("layers", "strength", "tokens"),
    _methods,
)
