"""The interventions of a sweep: single layers, pairs, all layers, both directions, and controls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ot_lens.errors import HookError, one_of
from ot_lens.interventions import Edits, everywhere
from ot_lens.localization.methods import MethodSpec
from ot_lens.prompts import CLASSES
from ot_lens.tables import (
    ALL,
    INDEPENDENT,
    INDUCE,
    LISTED,
    NOT_A_CONTROL,
    PAIR,
    REMOVE,
    SETS,
    SINGLE,
    layers_label,
)
from ot_lens.transport import AffineMap

Maps = Mapping[MethodSpec, Mapping[int, AffineMap]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One intervention of the sweep.

    Attributes:
        layer_set: "single", "pair", "all", "listed" or "search".
        layers: The layers whose activations the maps were fitted on.
        method: The method.
        edits: The maps that are active in the model.
        k: Rank of the method, if it has one.
        strength: t of T_t(x) = x + t (T(x) - x).
        transport: REMOVE, harmful activations onto the harmless ones, or INDUCE, the other way.
        control: Name of the control, or "" for a real edit.
        draw: Number of the control's random draw.
        fitting: "independent", or "sequential" if each layer was fitted with the edits below it active.
        prompts: The classes it is measured on.
        generates: Whether answers are generated, or only the next token is read.
        chosen_at: Mean refusal score at which a searched set was chosen on the validation prompts, in nats.
        note: A remark for readers of the table.
    """

    layer_set: str
    layers: tuple[int, ...]
    method: MethodSpec
    edits: Edits
    k: int | None
    strength: float = 1.0
    transport: str = REMOVE
    control: str = NOT_A_CONTROL
    draw: int | None = None
    fitting: str = INDEPENDENT
    prompts: tuple[str, ...] = CLASSES
    generates: bool = True
    chosen_at: float | None = None
    note: str = ""

    @property
    def unedited(self) -> bool:
        """Whether every map is the identity, as at layer 0 if all prompts end in the same token."""
        return all(isinstance(e, AffineMap) and e.is_identity for e in self.edits.values())

    @property
    def key(self) -> str:
        """A name that no other candidate of the sweep has."""
        parts = (
            self.layer_set,
            layers_label(self.layers),
            self.method.label,
            f"{self.strength:g}",
            self.transport,
            self.control,
            "" if self.draw is None else str(self.draw),
            self.fitting,
        )
        return "|".join(parts)


def candidates(
    maps: Maps,
    n_layers: int,
    sets: Sequence[str] = ("single", "all"),
    strengths: Sequence[float] = (1.0,),
    transport: str = REMOVE,
    fitting: str = INDEPENDENT,
    *,
    generates: bool = True,
) -> list[Candidate]:
    """The interventions to measure, by set, method and strength.

    For pairs, and without `generates` for all sets, only the next token is read: generating answers for each
    of L (L - 1) / 2 pairs would cost too much. Edits that should induce refusal are measured only on harmless
    prompts.

    Raises:
        HookError: If a layer set is unknown.
    """
    if not sets:
        raise HookError(f"sets is empty: choose from {', '.join(SETS)}.")
    for layer_set in sets:
        one_of("layer set", layer_set, SETS, HookError)
    measured = ("harmless",) if transport == INDUCE else CLASSES
    return [
        replace(
            candidate,
            strength=strength,
            transport=transport,
            fitting=fitting,
            prompts=measured,
            generates=generates and candidate.generates,
        )
        for method, by_layer in maps.items()
        for strength in strengths
        for candidate in _of_method(method, _scaled(by_layer, strength), n_layers, sets)
    ]


def listed(
    maps: Maps, n_layers: int, layer_sets: Sequence[Sequence[int]], strengths: Sequence[float] = (1.0,)
) -> list[Candidate]:
    """Sets of layers that were named one by one, each measured with answers.

    "rfa" edits every layer with the direction of one, and so takes only the sets of one layer.

    Raises:
        HookError: If a set is empty, or names a layer twice or one without a map.
    """
    chosen = [_checked_set(layers, maps) for layers in layer_sets]
    found = []
    for method, by_layer in maps.items():
        for strength in strengths:
            scaled = _scaled(by_layer, strength)
            for layers in chosen:
                if not method.everywhere or len(layers) == 1:
                    edits = edits_at(method, scaled, layers, n_layers)
                    k = method.k([scaled[layer] for layer in layers])
                    found.append(Candidate(LISTED, layers, method, edits, k, strength))
    return found


def edits_at(
    method: MethodSpec, by_layer: Mapping[int, AffineMap], layers: Sequence[int], n_layers: int
) -> Edits:
    """The edits of a method at a set of layers; "rfa" uses one layer's direction everywhere."""
    if method.everywhere:
        return everywhere(by_layer[layers[0]], range(n_layers))
    return {layer: by_layer[layer] for layer in layers}


def _checked_set(layers: Sequence[int], maps: Maps) -> tuple[int, ...]:
    chosen = tuple(sorted(layers))
    if not chosen or len(set(chosen)) < len(chosen):
        raise HookError(f"A layer set needs at least one layer, and none twice; got {list(layers)}.")
    for layer in chosen:
        if any(layer not in by_layer for by_layer in maps.values()):
            raise HookError(f"Layer {layer} of the layer set {list(layers)} is not swept: add it to layers.")
    return chosen


def _scaled(by_layer: Mapping[int, AffineMap], strength: float) -> dict[int, AffineMap]:
    return {layer: edit if strength == 1 else edit.at(strength) for layer, edit in by_layer.items()}


def _of_method(
    method: MethodSpec, scaled: Mapping[int, AffineMap], n_layers: int, sets: Sequence[str]
) -> Iterator[Candidate]:
    if SINGLE in sets:
        for layer, edit in scaled.items():
            edits = edits_at(method, scaled, (layer,), n_layers)
            yield Candidate(SINGLE, (layer,), method, edits, method.k([edit]))
    if method.everywhere:
        return
    if PAIR in sets:
        for i, j in combinations(sorted(scaled), 2):
            both = {i: scaled[i], j: scaled[j]}
            yield Candidate(PAIR, (i, j), method, {**both}, method.k(list(both.values())), generates=False)
    if ALL in sets and len(scaled) > 1:
        yield Candidate(ALL, tuple(scaled), method, {**scaled}, method.k(list(scaled.values())))
