"""How much an edit, and what a model learnt since its base, changes representations of the test prompts."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ot_lens import geometry
from ot_lens.activations import Activations, capture
from ot_lens.execution import Executor
from ot_lens.localizers import base_of
from ot_lens.prompts import Contrast
from ot_lens.transport import ActivationMap

BASE, EDIT = "base", "edit"
# Dimensions of the subspaces that are compared.
SUBSPACE = 4


def components_of(acts: Activations) -> int:
    """Dimensions of the subspaces: fewer where a class or the model has fewer."""
    return min(SUBSPACE, acts.n_harmful - 1, acts.n_harmless - 1, acts.d_model)


def against_base(
    executor: Executor,
    contrast: Contrast,
    own: Activations,
    base: str,
    loading: Mapping[str, Any],
    capturing: Mapping[str, Any],
    draws: Mapping[str, Any],
) -> pd.DataFrame:
    """The model compared with its base, layer by layer."""
    before = executor.call(_captured_base, contrast, base, dict(loading), dict(capturing))
    return _by_layer(own, before, draws).assign(comparison=BASE, method=base, edited_layer=None)


def against_edit(
    executor: Executor,
    contrast: Contrast,
    own: Activations,
    edit: ActivationMap,
    named: tuple[str, int],
    tokens: str,
    capturing: Mapping[str, Any],
    draws: Mapping[str, Any],
) -> pd.DataFrame:
    """The model compared with itself under an edit, `named` by method and layer."""
    method, layer = named
    edits = {(layer, own.hook): edit}
    after = executor.call(capture, contrast, **capturing, edits=edits, tokens=tokens)
    return _by_layer(own, after, draws).assign(comparison=EDIT, method=method, edited_layer=layer)


def _captured_base(
    _model: Any, contrast: Contrast, base: str, loading: dict[str, Any], capturing: dict[str, Any]
) -> Activations:
    return capture(base_of(base, loading), contrast, **capturing)


def _by_layer(own: Activations, other: Activations, draws: Mapping[str, Any]) -> pd.DataFrame:
    k = components_of(own) if own.d_model == other.d_model else None
    table = geometry.similarity(own, other, k=k, **draws)
    return table.drop(columns="layer_b").rename(columns={"layer_a": "layer"})
