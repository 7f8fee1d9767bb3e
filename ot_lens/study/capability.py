"""Capability under the edits that the validation prompts chose, item by item."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ot_lens.behaviour.capability import capability_items
from ot_lens.interventions import Edits, intervene
from ot_lens.localization.candidates import edits_at
from ot_lens.models import backend
from ot_lens.study.subject import Study, Tables
from ot_lens.tables import UNEDITED, chosen_edits, layers_of_label

# Edits of one or two layers, which are said to keep what a model can do.
ROLES = ("single", "pair")


def capability_table(study: Study) -> Tables:
    """The score of every item without an edit and under each chosen one; the column key is the sweep's."""
    if study.executor is None or not study.config.capability:
        return {}
    edits: dict[str, Edits] = {UNEDITED: {}} | _chosen(study, study.executor.call(_count_layers))
    parts = []
    with study.stage("capability", len(edits)) as step:
        for key, edit in edits.items():
            name = f"capability|{key}"
            if name not in study.cache:
                study.cache[name] = study.executor.call(_scored, edit, _settings(study)).assign(key=key)
            parts.append(study.cache[name])
            step(1)
    return {"capability": pd.concat(parts, ignore_index=True)}


def _chosen(study: Study, n_layers: int) -> dict[str, Edits]:
    chosen = chosen_edits(study.folder.read_table("validation"))
    maps = {method.label: (method, by_layer) for method, by_layer in study.maps.items()}
    return {
        str(edit.key): edits_at(*maps[str(edit.label)], layers_of_label(str(edit.layers)), n_layers)
        for edit in chosen.itertuples(index=False)
        if edit.role in ROLES
    }


def _settings(study: Study) -> dict[str, Any]:
    config = study.config
    return {
        "tokens": config.tokens,
        "hook": config.hook,
        "tasks": config.capability,
        "limit": config.capability_limit,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def _count_layers(model: Any) -> int:
    return backend(model).n_layers


def _scored(model: Any, edits: Edits, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Scores of all items under an edit."""
    options = dict(settings)
    tasks: Sequence[Any] = options.pop("tasks")
    with intervene(model, edits, options.pop("tokens"), hook=options.pop("hook")):
        return capability_items(model, tasks, **options)
