"""What the page's script knows about a run: the choices, the initial state, and all labels."""

from typing import Any

import pandas as pd

from ot_lens.explorer.live import MOST_CHARACTERS, LiveModel, examples
from ot_lens.explorer.runs import OpenRun, method_key, split_key
from ot_lens.explorer.state import Choices, State
from ot_lens.explorer.views import VIEWS
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.plots import method_mark
from ot_lens.tables import verdict


def facts(choices: list[Choices], live: LiveModel | None) -> dict[str, Any]:
    """The facts of the first run, and the names of all runs."""
    first = choices[0]
    return {
        "runs": [{"name": c.run.name} for c in choices],
        "layers": first.layers,
        "methods": [_method(key) for key in first.methods],
        "measures": [{"key": key, "label": label} for key, label in first.measures.items()],
        "scopes": list(TOKEN_SCOPES),
        "first": fields(first.first),
        "views": {view.name: {"fields": view.fields, "wide": view.wide} for view in VIEWS.values()},
        "localized": localized(first.run),
        "live": {"ready": live is not None, "most": MOST_CHARACTERS, "examples": list(examples(first.run))},
        "texts": [c.run.texts for c in choices],
    }


def fields(state: State) -> dict[str, Any]:
    """A state as JSON values."""
    return {
        "layers": list(state.layers),
        "ot": state.ot,
        "by": state.by,
        "measure": state.measure,
        "strength": state.strength,
        "tokens": state.tokens,
    }


def _method(key: str) -> dict[str, Any]:
    name, k = split_key(key)
    mark = method_mark(name, k)
    return {
        "key": key,
        "name": name,
        "k": k,
        "label": method_mark(name).label,
        "full": mark.label,
        "color": mark.color,
    }


def localized(run: OpenRun) -> dict[str, list[int]]:
    """Localized layers by method; empty if the sweep cannot tell."""
    sweep = run.tables.get("localization")
    needed = {"set", "measure", "prompts", "control", "transport", "method", "k", "layer", "p_holm"}
    if sweep is None or not needed <= set(sweep.columns):
        return {}
    found = verdict(sweep)
    rows = found[found["localized"].fillna(value=False)]
    if rows.empty:
        return {}
    keyed = pd.Series([method_key(m, k) for m, k in zip(rows["method"], rows["k"], strict=True)], rows.index)
    return {str(key): sorted(map(int, part)) for key, part in rows["layer"].groupby(keyed)}
