"""Views of the sweep: localization by depth with its controls, and every method at the chosen layer."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.code import SWEEP_IMPORTS, program, sweep_lines, sweep_settings
from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import Choices, State
from ot_lens.explorer.view import PAPER_STYLE, Tables, View
from ot_lens.plots import localization_curves, method_intervals, screen
from ot_lens.plots.rows import checked
from ot_lens.tables import single_layers, with_baseline


def sweep_rows_of(run: OpenRun, state: State, keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows of the unedited model and of some (or all) methods at the state's strength and token scope."""
    sweep = checked(run.table("localization"), "localization", ("method", "k", "measure", "prompts", "value"))
    methods = None if keys is None else list(map(split_key, keys))
    return with_baseline(sweep, methods, **sweep_settings(run, state))


def sweep_note(run: OpenRun, state: State) -> str:
    """What the sweep holds instead, if it was not run at the state's strength or token scope."""
    choices, parts = Choices(run), []
    if choices.tokens and state.tokens not in choices.tokens:
        parts.append(f"token scope {', '.join(choices.tokens)}, not {state.tokens}")
    if choices.strengths and state.strength not in choices.strengths:
        held = ", ".join(f"{strength:g}" for strength in choices.strengths)
        parts.append(f"strength {held}, not {state.strength:g}")
    return f"The sweep was measured at {' and at '.join(parts)}; showing those rows." if parts else ""


def _chosen(run: OpenRun, state: State) -> Tables:
    return {"localization": sweep_rows_of(run, state, state.keys)}


def _localization_screen(tables: Tables, _run: OpenRun, _state: State) -> go.Figure:
    return screen.localization_curves(tables["localization"])


def _localization_paper(tables: Tables, _run: OpenRun, _state: State) -> Figure:
    return localization_curves(tables["localization"], style=PAPER_STYLE)


def _localization_code(run: OpenRun, state: State) -> str:
    draw = f'figure = plots.localization_curves(localization, style="{PAPER_STYLE}")'
    return program(run, "localization", SWEEP_IMPORTS, [*sweep_lines(run, state, state.keys), draw])


def _at_layer(run: OpenRun, state: State) -> Tables:
    rows = with_baseline(sweep_rows_of(run, state), layer=state.layer)
    if single_layers(rows).empty:
        raise NothingToDrawError(f"The sweep has no single-layer edit at layer {state.layer}.")
    return {"localization": rows}


def _methods_screen(tables: Tables, _run: OpenRun, _state: State) -> go.Figure:
    return screen.method_intervals(tables["localization"])


def _methods_paper(tables: Tables, _run: OpenRun, _state: State) -> Figure:
    return method_intervals(tables["localization"], style=PAPER_STYLE)


def _methods_code(run: OpenRun, state: State) -> str:
    draw = f'figure = plots.method_intervals(localization, style="{PAPER_STYLE}")'
    return program(run, "methods", SWEEP_IMPORTS, [*sweep_lines(run, state, None, state.layer), draw])


LOCALISATION = View(
    "localization",
    "Localization",
    "The effect of the two edits at each single layer and, at the right edge, at all layers together. Bands: "
    "95 % intervals over prompts; dashed grey: no intervention.",
    ("ot", "by", "strength", "tokens"),
    _chosen,
    _localization_screen,
    _localization_paper,
    _localization_code,
    sweep_note,
    depth=True,
)
METHODS = View(
    "methods",
    "Every method at this layer",
    "Filled markers: the edit at the chosen layer, with 95 % intervals; dashed: the unedited model.",
    ("layers", "strength", "tokens"),
    _at_layer,
    _methods_screen,
    _methods_paper,
    _methods_code,
    sweep_note,
)
