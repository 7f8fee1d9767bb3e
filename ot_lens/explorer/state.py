"""The state of a page as one value: read from a request and checked against the run."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import TableError
from ot_lens.explorer.runs import OpenRun, method_key, split_key
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.localization.settings import AUTO, SCOPES
from ot_lens.plots import MEASURES, contenders, method_mark
from ot_lens.plots.measures import REFUSES, RIGHT, Contender, interval, present, sweep_rows
from ot_lens.plots.rows import layers_of
from ot_lens.plots.style import PROJECTION, method_order
from ot_lens.tables import edits_of, single_layers

MOST_LAYERS = 512


@dataclass(frozen=True)
class State:
    """The choices made on the page."""

    layers: tuple[int, ...]  # views of a single layer show the first one
    ot: str  # key of the map on the left, a transport
    by: str  # key of the map on the right, a projection
    measure: str  # shown in the strip along the depth
    strength: float = 1.0  # t of T_t(x) = x + t (T(x) - x), in [0, 1]
    tokens: str = "all"  # token scope
    site: str = ""  # token of the interchange map

    @property
    def layer(self) -> int:
        """The layer of views that show one; -1, which no run has, if none is chosen."""
        return self.layers[0] if self.layers else -1

    @property
    def keys(self) -> tuple[str, ...]:
        """Both methods, without repetition."""
        return tuple(dict.fromkeys(key for key in (self.ot, self.by) if key))


@dataclass(frozen=True)
class Choices:
    """The choices a run offers, and the initial ones."""

    run: OpenRun

    @cached_property
    def layers(self) -> list[int]:
        """Layers of the run's tables, or else of its stored activations."""
        tables = (self.run.tables.get(name) for name in ("localization", "geometry", "spectra", "plane"))
        layers = {n for table in tables if table is not None and "layer" in table for n in layers_of(table)}
        if not layers and self.run.activations is not None:
            layers = set(self.run.activations.layers)
        return sorted(layers)[:MOST_LAYERS]

    @cached_property
    def _sweep(self) -> pd.DataFrame | None:
        """The real edits of the sweep; None without a sweep."""
        try:
            return sweep_rows(self.run.table("localization"))
        except TableError:
            return None

    @cached_property
    def methods(self) -> list[str]:
        """Keys of all methods with a measurement or a map, in the order of the figures."""
        keys = set(self.run.map_folders)
        if self._sweep is not None:
            pairs = edits_of(self._sweep)[["method", "k"]].drop_duplicates()
            keys |= {method_key(str(method), k) for method, k in pairs.itertuples(index=False)}
        return sorted(keys, key=lambda key: method_order(*split_key(key)))

    @cached_property
    def measures(self) -> dict[str, str]:
        """What the strip can show, with labels: measures of the sweep, then quantities of the geometry."""
        labels: dict[str, str] = {}
        if self._sweep is not None:
            rows = single_layers(edits_of(self._sweep))
            labels |= {key: f"{m.prompts}: {m.label}" for key, m in MEASURES.items() if present(rows, m)}
        geometry = self.run.tables.get("geometry")
        if geometry is not None and {"quantity", "layer", "value"} <= set(geometry.columns):
            finite = geometry[np.isfinite(geometry["value"].to_numpy(np.float64, na_value=np.nan))]
            names = map(str, finite["quantity"].unique())
            labels |= {f"geometry/{name}": name.replace("_", " ") for name in names}
        return labels

    @cached_property
    def tokens(self) -> list[str]:
        """Token scopes that the sweep holds; "auto" where each method has one of its own."""
        swept = self.swept("tokens")
        scopes = [scope for scope in TOKEN_SCOPES if scope in swept]
        return [AUTO] if len(scopes) > 1 and len(self._own_scopes) == len(self._scopes) else scopes

    @cached_property
    def _scopes(self) -> pd.DataFrame:
        """Every method of the sweep with each of its token scopes."""
        edits = edits_of(self.run.table("localization"))
        return edits[["method", "tokens"]].drop_duplicates()

    @cached_property
    def _own_scopes(self) -> dict[str, str]:
        """The token scope of each method, of the first rows."""
        return {str(method): str(scope) for method, scope in reversed(self._scopes.to_numpy().tolist())}

    def scope(self, key: str, tokens: str) -> str:
        """The token scope of a method's edits at the scope of a state; "auto" is the one of the sweep."""
        if tokens != AUTO:
            return tokens
        swept = self._own_scopes.get(split_key(key)[0]) if key and self.swept("tokens") else None
        return swept if swept in TOKEN_SCOPES else "all"

    @cached_property
    def sites(self) -> list[str]:
        """Tokens of the interchange map, in their order."""
        table = self.run.tables.get("interchange")
        if table is None or "position" not in table:
            return []
        return list(dict.fromkeys(map(str, table["position"])))

    @cached_property
    def strengths(self) -> list[float]:
        """Strengths that the sweep holds."""
        return sorted(map(float, self.swept("strength")))

    def swept(self, setting: str) -> set[Any]:
        """Values of a setting that the sweep's edits have."""
        sweep = self.run.tables.get("localization")
        if sweep is None or not {"method", setting} <= set(sweep.columns):
            return set()
        return set(edits_of(sweep)[setting].dropna())

    @cached_property
    def first(self) -> State:
        """The initial state: the best transport against a projection."""
        best = self._best_layers()
        projections = [key for key in self.methods if method_mark(*split_key(key)).family == PROJECTION]
        others = [key for key in self.methods if key not in projections]
        ranked = (key for key in best if key in others and key.startswith("pca_ot"))
        ot = next(ranked, next(iter(others or self.methods), ""))
        by = next(iter(projections or [key for key in self.methods if key != ot]), "")
        layers = self.layers
        layer = best.get(ot, layers[len(layers) // 2] if layers else None)
        tokens = self.tokens
        return State(
            layers=() if layer is None else (layer,),
            ot=ot,
            by=by,
            measure=next(iter(self.measures), ""),
            strength=max(self.strengths, default=1.0),
            tokens="all" if "all" in tokens or not tokens else tokens[0],
            site=next(iter(reversed(self.sites)), ""),
        )

    def _best_layers(self) -> dict[str, int]:
        """The most effective layer of each method that has one, the best method first."""
        if self._sweep is None or edits_of(self._sweep).empty:
            return {}

        def merit(contender: Contender) -> tuple[float, float]:
            right, refuses = (interval(contender.best, measure)[0] for measure in (RIGHT, REFUSES))
            return -np.nan_to_num(right), np.nan_to_num(refuses)

        keys = {method_mark(*split_key(key)).label: key for key in self.methods}
        ordered = [(c.mark.label, c.layer) for c in sorted(contenders(self._sweep), key=merit)]
        return {keys[label]: layer for label, layer in ordered if layer is not None and label in keys}

    def read(self, fields: Mapping[str, Any], *, strict: bool = False) -> State:
        """A state from the fields of a request; invalid ones fall back to the initial state.

        With `strict`, for a second run, layers and methods that it lacks are kept, so that its views say so.
        """
        first = self.first
        requested = tuple(dict.fromkeys(_layers(fields.get("layers"))))
        layers = requested if strict else tuple(n for n in requested if n in self.layers)
        methods = [*self.methods, *(_words(fields.get("ot"), fields.get("by")) if strict else [])]
        return State(
            layers=layers or first.layers,
            ot=_one(fields.get("ot"), methods, first.ot),
            by=_one(fields.get("by"), methods, first.by),
            measure=_one(fields.get("measure"), self.measures, first.measure),
            strength=_strength(fields.get("strength"), first.strength),
            tokens=_one(fields.get("tokens"), SCOPES, first.tokens),
            site=_one(fields.get("site"), self.sites, first.site),
        )


def _words(*values: Any) -> list[str]:
    """The values that look like keys of methods."""
    pattern = r"[a-z_]{1,40}(:\d{1,5})?"
    return [value for value in values if isinstance(value, str) and re.fullmatch(pattern, value)]


def _one(value: Any, known: Iterable[str], otherwise: str) -> str:
    return value if isinstance(value, str) and value in known else otherwise


def _layers(value: Any) -> list[int]:
    parts = value.split(",") if isinstance(value, str) else value
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


def choices_of(run: OpenRun) -> Choices:
    """What a run offers, read from its tables once."""
    return run.kept("choices", lambda: Choices(run))
