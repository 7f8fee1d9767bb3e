"""Views of the sweep: localization by depth with its controls, and every method at the chosen layer."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.code import program, sweep_lines, sweep_settings
from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import Choices, State
from ot_lens.explorer.view import PAPER_STYLE, Tables, View
from ot_lens.plots import localization_curves, method_intervals
from ot_lens.plots.rows import checked
from ot_lens.plots.screen import SCREEN

IMPORTS = ("import pandas as pd", "from ot_lens import plots")


def sweep_rows_of(run: OpenRun, state: State, keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows of the unedited model and of some (or all) methods at the state's strength and token scope."""
    sweep = checked(run.table("localization"), "localization", ("method", "k", "measure", "prompts", "value"))
    keep = pd.Series(data=True, index=sweep.index)
    for name, value in sweep_settings(run, state).items():
        keep &= sweep[name].eq(value)
    if keys is not None:
        chosen = pd.Series(data=False, index=sweep.index)
        for method, k in map(split_key, keys):
            here = sweep["method"].eq(method)
            chosen |= here if k is None else here & sweep["k"].eq(k).fillna(value=False)
        keep &= chosen
    return sweep[sweep["method"].eq("none") | keep]


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
    return SCREEN["localization_curves"](tables["localization"])


def _localization_paper(tables: Tables, _run: OpenRun, _state: State) -> Figure:
    return localization_curves(tables["localization"], style=PAPER_STYLE)


def _localization_code(run: OpenRun, state: State) -> str:
    draw = f'figure = plots.localization_curves(localization, style="{PAPER_STYLE}")'
    return program(run, "localization", IMPORTS, [*sweep_lines(run, state, state.keys), draw])


def _at_layer(run: OpenRun, state: State) -> Tables:
    rows = sweep_rows_of(run, state)
    here = rows[rows["method"].eq("none") | rows["layer"].eq(state.layer).fillna(value=False)]
    if here["layer"].notna().sum() == 0:
        raise NothingToDrawError(f"The sweep has no single-layer edit at layer {state.layer}.")
    return {"localization": here}


def _methods_screen(tables: Tables, _run: OpenRun, _state: State) -> go.Figure:
    return SCREEN["method_intervals"](tables["localization"])


def _methods_paper(tables: Tables, _run: OpenRun, _state: State) -> Figure:
    return method_intervals(tables["localization"], style=PAPER_STYLE)


def _methods_code(run: OpenRun, state: State) -> str:
    here = f'here = localization["layer"].eq({state.layer}).fillna(False)'
    body = [
        *sweep_lines(run, state, None),
        here,
        'localization = localization[localization["method"].eq("none") | here]',
        f'figure = plots.method_intervals(localization, style="{PAPER_STYLE}")',
    ]
    return program(run, "methods", IMPORTS, body)


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
