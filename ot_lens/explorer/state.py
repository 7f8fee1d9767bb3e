"""The state of a page as one value: read from a request, checked against the run, written into a link."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

import numpy as np

from ot_lens.errors import TableError
from ot_lens.explorer.runs import OpenRun, method_key, split_key
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.plots import MEASURES, contenders, method_mark
from ot_lens.plots.measures import present, sweep_rows
from ot_lens.plots.rows import layers_of
from ot_lens.plots.style import PROJECTION, method_order
from ot_lens.tables import edits_of, single_layers

MOST_LAYERS = 512


@dataclass(frozen=True)
class State:
    """The choices made on the page.

    Attributes:
        layers: Chosen layers; views of a single layer show the first one.
        ot: Key of the map on the left, a transport.
        by: Key of the map on the right, a projection.
        measure: Quantity shown in the strip along the depth.
        strength: t of T_t(x) = x + t (T(x) - x), in [0, 1].
        tokens: Token scope.
    """

    layers: tuple[int, ...]
    ot: str
    by: str
    measure: str
    strength: float = 1.0
    tokens: str = "all"

    @property
    def layer(self) -> int:
        """The layer of views that show one; -1, which no run has, if none is chosen."""
        return self.layers[0] if self.layers else -1

    @property
    def keys(self) -> tuple[str, ...]:
        """Both methods, without repetition."""
        return tuple(dict.fromkeys(key for key in (self.ot, self.by) if key))

    @property
    def query(self) -> str:
        """The state as the query of a link."""
        fields = {
            "layers": ",".join(map(str, self.layers)),
            "ot": self.ot,
            "by": self.by,
            "measure": self.measure,
            "strength": f"{self.strength:g}",
            "tokens": self.tokens,
        }
        return urlencode(fields, safe=",:/")


@dataclass(frozen=True)
class Choices:
    """The choices a run offers, and the initial ones."""

    run: OpenRun

    @cached_property
    def layers(self) -> list[int]:
        """Layers of the run's tables, or else of its stored activations."""
        found: set[int] = set()
        for name in ("localization", "geometry", "spectra", "plane"):
            table = self.run.tables.get(name)
            if table is not None and "layer" in table.columns:
                found |= set(layers_of(table))
        if not found and self.run.activations is not None:
            found = set(self.run.activations.layers)
        return sorted(found)[:MOST_LAYERS]

    @cached_property
    def methods(self) -> list[str]:
        """Keys of all methods with a measurement or a map, in the order of the figures."""
        found = dict.fromkeys(self.run.map_folders)
        try:
            rows = sweep_rows(self.run.table("localization"))
        except TableError:
            return sorted(found, key=_order)
        acting = edits_of(rows)
        pairs = acting[["method", "k"]].drop_duplicates().itertuples(index=False)
        found |= dict.fromkeys(method_key(str(method), k) for method, k in pairs)
        return sorted(found, key=_order)

    @cached_property
    def measures(self) -> dict[str, str]:
        """What the strip can show, with labels: measures of the sweep, then quantities of the geometry."""
        found: dict[str, str] = {}
        try:
            rows = sweep_rows(self.run.table("localization"))
            acting = single_layers(edits_of(rows))
            found |= {k: f"{m.prompts}: {m.label}" for k, m in MEASURES.items() if present(acting, m)}
        except TableError:
            pass
        geometry = self.run.tables.get("geometry")
        if geometry is not None and {"quantity", "layer", "value"} <= set(geometry.columns):
            finite = geometry[np.isfinite(geometry["value"].to_numpy(np.float64, na_value=np.nan))]
            names = dict.fromkeys(map(str, finite["quantity"]))
            found |= {f"geometry/{name}": name.replace("_", " ") for name in names}
        return found

    @property
    def tokens(self) -> list[str]:
        """Token scopes that the sweep holds."""
        sweep = self.run.tables.get("localization")
        if sweep is None or "tokens" not in sweep.columns:
            return []
        return [scope for scope in TOKEN_SCOPES if scope in set(sweep["tokens"])]

    @property
    def strengths(self) -> list[float]:
        """Strengths that the sweep holds."""
        sweep = self.run.tables.get("localization")
        if sweep is None or "strength" not in sweep.columns:
            return []
        return sorted(map(float, edits_of(sweep)["strength"].dropna().unique()))

    @cached_property
    def first(self) -> State:
        """The initial state: the best transport against a projection."""
        best = self._best()
        projections = [key for key in self.methods if method_mark(*split_key(key)).family == PROJECTION]
        others = [key for key in self.methods if key not in projections]
        ranked = [key for key in best if key in others]
        ot = next((key for key in ranked if key.startswith("pca_ot")), next(iter(others or self.methods), ""))
        by = next(iter(projections or [key for key in self.methods if key != ot]), "")
        layers = self.layers
        layer = best.get(ot, layers[len(layers) // 2] if layers else None)
        tokens, strengths = self.tokens, self.strengths
        return State(
            layers=() if layer is None else (layer,),
            ot=ot,
            by=by,
            measure=next(iter(self.measures), ""),
            strength=strengths[-1] if strengths else 1.0,
            tokens="all" if "all" in tokens or not tokens else tokens[0],
        )

    def _best(self) -> dict[str, int]:
        """The most effective layer of each method that has one, the best method first."""
        try:
            found = contenders(sweep_rows(self.run.table("localization")))
        except TableError:
            return {}
        measured = [(c, c.layer) for c in found if c.layer is not None]
        right = {id(c): c.best.get("exact_answer_rate/harmful", (np.nan,))[0] for c, _ in measured}
        refuses = {id(c): c.best.get("refusal_rate/harmful", (np.nan,))[0] for c, _ in measured}
        order = sorted(
            measured,
            key=lambda pair: (-np.nan_to_num(right[id(pair[0])]), np.nan_to_num(refuses[id(pair[0])])),
        )
        keys = {method_mark(*split_key(key)).label: key for key in self.methods}
        return {keys[c.mark.label]: layer for c, layer in order if c.mark.label in keys}

    def read(self, fields: Mapping[str, Any], *, strict: bool = False) -> State:
        """A state from the fields of a request; invalid ones fall back to the initial state.

        With `strict`, for a second run, layers and methods that it lacks are kept, so that its views say so.
        """
        first = self.first
        requested = tuple(dict.fromkeys(_layers(fields.get("layers"))))
        layers = requested if strict else tuple(n for n in requested if n in self.layers)
        methods = [*self.methods, *(_keys(fields) if strict else [])]
        return State(
            layers=layers or first.layers,
            ot=_one(fields.get("ot"), methods, first.ot),
            by=_one(fields.get("by"), methods, first.by),
            measure=_one(fields.get("measure"), self.measures, first.measure),
            strength=_strength(fields.get("strength"), first.strength),
            tokens=_one(fields.get("tokens"), TOKEN_SCOPES, first.tokens),
        )


def _keys(fields: Mapping[str, Any]) -> list[str]:
    """Methods named in a request, if they are short words."""
    words = (fields.get("ot"), fields.get("by"))
    return [
        word for word in words if isinstance(word, str) and re.fullmatch(r"[a-z_]{1,40}(:\d{1,5})?", word)
    ]


def _order(key: str) -> tuple[int, str, int]:
    return method_order(*split_key(key))


def _one(value: Any, known: Any, otherwise: str) -> str:
    return value if isinstance(value, str) and value in known else otherwise


def _layers(value: Any) -> list[int]:
    parts = value.split(",")[:MOST_LAYERS] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return []
    texts = [str(part).strip() for part in parts[:MOST_LAYERS]]
    return [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 6]


def _strength(value: Any, otherwise: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return min(max(number, 0.0), 1.0) if np.isfinite(number) else otherwise
