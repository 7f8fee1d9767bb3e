"""What the page's script knows about the runs: the choices, the initial state, and all labels."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ot_lens.explorer.live import MOST_CHARACTERS, LiveModel, examples
from ot_lens.explorer.runs import OpenRun, method_key, split_key
from ot_lens.explorer.state import Choices
from ot_lens.explorer.views import views
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.plots import method_mark
from ot_lens.tables import verdict

VERDICT_COLUMNS = {"set", "measure", "prompts", "control", "transport", "method", "k", "layer", "p_holm"}


def facts(choices: Sequence[Choices], live: LiveModel | None) -> dict[str, Any]:
    """The facts of the first run, and the names of all runs."""
    first = choices[0]
    return {
        "runs": [{"name": c.run.name} for c in choices],
        "layers": first.layers,
        "methods": [_method(key) for key in first.methods],
        "measures": [{"key": key, "label": label} for key, label in first.measures.items()],
        "scopes": list(TOKEN_SCOPES),
        "first": asdict(first.first),
        "views": {name: {"fields": view.fields, "wide": view.wide} for name, view in views().items()},
        "localized": _localized(first.run),
        "live": {"ready": live is not None, "most": MOST_CHARACTERS, "examples": examples(first.run)},
        "texts": [c.run.texts for c in choices],
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


def _localized(run: OpenRun) -> dict[str, list[int]]:
    """Localized layers by method; empty if the sweep cannot tell."""
    sweep = run.tables.get("localization")
    if sweep is None or not set(sweep.columns) >= VERDICT_COLUMNS:
        return {}
    rows = verdict(sweep)
    rows = rows[rows["localized"].fillna(value=False)].sort_values("layer")
    layers: dict[str, list[int]] = {}
    for method, k, layer in zip(rows["method"], rows["k"], rows["layer"], strict=True):
        layers.setdefault(method_key(method, k), []).append(int(layer))
    return layers
