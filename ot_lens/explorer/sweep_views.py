"""Views of the sweep: localization by depth with its controls, and every method at the chosen layer."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import Choices, State
from ot_lens.explorer.view import Drawing, View, read
from ot_lens.plots.rows import checked
from ot_lens.tables import edits_of, single_layers, with_baseline


def swept(
    run: OpenRun, state: State, keys: Sequence[str] | None = None, **criteria: Any
) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the unedited model and of some (or all) methods at a state, and the code that selects them."""
    sweep = checked(run.table("localization"), "localization", ("method", "k", "measure", "prompts", "value"))
    criteria = _held_settings(sweep, state) | criteria
    if keys is not None:
        criteria = {"methods": list(map(split_key, keys))} | criteria
    code = [read("localization")]
    if criteria:
        arguments = ", ".join(f"{name}={value!r}" for name, value in criteria.items())
        code.append(f"localization = with_baseline(localization, {arguments})")
    return with_baseline(sweep, **criteria), code


def _held_settings(sweep: pd.DataFrame, state: State) -> dict[str, Any]:
    """Token scope and strength of the state, if the sweep holds these and others."""
    edits = edits_of(sweep)
    wanted = {"tokens": state.tokens, "strength": state.strength}
    held = {name: set(edits[name].dropna()) for name in wanted if name in edits}
    return {name: wanted[name] for name, known in held.items() if len(known) > 1 and wanted[name] in known}


def sweep_note(run: OpenRun, state: State) -> str:
    """What the sweep holds instead, if it was not run at the state's strength or token scope."""
    choices, parts = Choices(run), []
    if choices.tokens and state.tokens not in choices.tokens:
        parts.append(f"token scope {', '.join(choices.tokens)}, not {state.tokens}")
    if choices.strengths and state.strength not in choices.strengths:
        held = ", ".join(f"{strength:g}" for strength in choices.strengths)
        parts.append(f"strength {held}, not {state.strength:g}")
    return f"The sweep was measured at {' and at '.join(parts)}; showing those rows." if parts else ""


def _localization(run: OpenRun, state: State) -> Drawing:
    rows, code = swept(run, state, state.keys)
    return Drawing("localization_curves", {"localization": rows}, code, note=sweep_note(run, state))


def _methods(run: OpenRun, state: State) -> Drawing:
    rows, code = swept(run, state, layer=state.layer)
    if single_layers(rows).empty:
        raise NothingToDrawError(f"The sweep has no single-layer edit at layer {state.layer}.")
    return Drawing("method_intervals", {"localization": rows}, code, note=sweep_note(run, state))


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
