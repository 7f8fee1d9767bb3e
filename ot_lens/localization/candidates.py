"""The interventions of a sweep: single layers, pairs, all layers, both directions, and controls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ot_lens.errors import HookError
from ot_lens.interventions import Edits, everywhere
from ot_lens.localization.domain import Domain
from ot_lens.localization.methods import MethodSpec
from ot_lens.localization.settings import SweepSettings
from ot_lens.prompts import CLASSES
from ot_lens.tables import (
    ALL,
    INDEPENDENT,
    INDUCE,
    LISTED,
    NOT_A_CONTROL,
    PAIR,
    REMOVE,
    SINGLE,
    layers_label,
)
from ot_lens.transport import ActivationMap, method_named

Layers = tuple[int, ...]
NOTHING_CHOSEN = "the fit chose no layer"
Maps = Mapping[MethodSpec, Mapping[int, ActivationMap]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One intervention of the sweep; the first fields are columns of its table."""

    layer_set: str
    layers: Layers  # where the maps were fitted
    method: MethodSpec
    edits: Edits  # what is active in the model
    k: int | None
    tokens: str  # token scope of the edits
    strength: float = 1.0
    transport: str = REMOVE
    control: str = NOT_A_CONTROL
    draw: int | None = None
    fitting: str = INDEPENDENT
    prompts: tuple[str, ...] = CLASSES  # the classes it is measured on
    generates: bool = True  # whether answers are generated, or only the next token is read
    chosen_at: float | None = None  # mean refusal score of a searched set on the validation prompts, in nats
    note: str = ""
    variant: str = ""  # what else tells it from another candidate with the same columns, such as its scope
    domains: Mapping[int, Domain] = field(default_factory=dict)  # what the maps of each layer were fitted on

    @property
    def unedited(self) -> bool:
        """Whether every map is the identity, as at layer 0 if all prompts end in the same token."""
        return all(edit.is_identity for edit in self.edits.values())

    @property
    def at_one_layer(self) -> bool:
        """Whether it is one layer's, swept or named; a searched set counts as a set, whatever its size."""
        return self.layer_set == SINGLE or (self.layer_set == LISTED and len(self.layers) == 1)

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
        return "|".join([*parts, self.variant] if self.variant else parts)


def candidates(
    maps: Maps,
    settings: SweepSettings,
    sets: Sequence[str] = (SINGLE, ALL),
    strengths: Sequence[float] = (1.0,),
    transport: str = REMOVE,
    *,
    generates: bool = True,
    **fields: Any,
) -> list[Candidate]:
    """The interventions to measure, by set, method and strength; `fields` are those of all of them.

    A joint fit of all layers is measured as one set, of the layers that it chose, whatever the `sets`.
    For pairs, and without `generates` for all sets, only the next token is read: generating answers for each
    of L (L - 1) / 2 pairs would cost too much. Edits that should induce refusal are measured only on harmless
    prompts.
    """
    fields = {"prompts": ("harmless",) if transport == INDUCE else CLASSES, "transport": transport, **fields}
    return [
        candidate_at(
            layer_set,
            layers,
            method,
            scaled,
            settings,
            strength=strength,
            generates=generates and layer_set != PAIR,
            note=note,
            **fields,
        )
        for method, strength, scaled in _scaled(maps, strengths)
        for layer_set, layers, note in _layer_sets(method, maps[method], sets)
    ]


def listed(
    maps: Maps,
    settings: SweepSettings,
    layer_sets: Sequence[Sequence[int]],
    strengths: Sequence[float] = (1.0,),
) -> list[Candidate]:
    """Sets of layers that were named one by one, each measured with answers.

    "rfa" edits every layer with the direction of one, and so takes only the sets of one layer; a joint fit
    has its own set.
    """
    chosen = [_checked_set(layers, maps) for layers in layer_sets]
    return [
        candidate_at(LISTED, layers, method, scaled, settings, strength=strength)
        for method, strength, scaled in _scaled(maps, strengths)
        for layers in chosen
        if not method.joint and (not method.everywhere or len(layers) == 1)
    ]


def candidate_at(
    layer_set: str,
    layers: Layers,
    method: MethodSpec,
    by_layer: Mapping[int, ActivationMap],
    settings: SweepSettings,
    **fields: Any,
) -> Candidate:
    """The candidate that edits a set of layers with a method's maps."""
    edits = edits_at(method, by_layer, layers, settings.n_layers)
    k = method.k([by_layer[layer] for layer in layers])
    return Candidate(layer_set, layers, method, edits, k, settings.scope(method.name), **fields)


def edits_at(
    method: MethodSpec, by_layer: Mapping[int, ActivationMap], layers: Sequence[int], n_layers: int
) -> Edits:
    """The edits of a method at a set of layers; "rfa" uses one layer's direction everywhere."""
    place = method_named(method.name).place
    if place is not None:
        return place(by_layer, layers, n_layers, **method.params)
    if method.everywhere:
        return everywhere(by_layer[layers[0]], range(n_layers))
    return {layer: by_layer[layer] for layer in layers}


def _checked_set(layers: Sequence[int], maps: Maps) -> Layers:
    chosen = tuple(sorted(layers))
    if not chosen or len(set(chosen)) < len(chosen):
        raise HookError(f"A layer set needs at least one layer, and none twice; got {list(layers)}.")
    for layer in chosen:
        if any(layer not in by_layer for by_layer in maps.values()):
            raise HookError(f"Layer {layer} of the layer set {list(layers)} is not swept: add it to layers.")
    return chosen


def _scaled(
    maps: Maps, strengths: Sequence[float]
) -> Iterator[tuple[MethodSpec, float, dict[int, ActivationMap]]]:
    for method, by_layer in maps.items():
        for strength in strengths:
            scaled = {layer: edit if strength == 1 else edit.at(strength) for layer, edit in by_layer.items()}
            yield method, strength, scaled


def _layer_sets(
    method: MethodSpec, by_layer: Mapping[int, ActivationMap], sets: Sequence[str]
) -> Iterator[tuple[str, Layers, str]]:
    """Each set with its layers and a note."""
    layers = tuple(by_layer)
    if method.joint:
        chosen = tuple(layer for layer, edit in by_layer.items() if not edit.is_identity)
        among = f"the fit chose among layers {layers_label(layers)}" if chosen else NOTHING_CHOSEN
        yield ALL, chosen or layers, among
        return
    if SINGLE in sets:
        yield from ((SINGLE, (layer,), "") for layer in method.single_layers(layers))
    if PAIR in sets and not method.everywhere:
        yield from ((PAIR, pair, "") for pair in combinations(sorted(layers), 2))
    if ALL in sets and len(layers) > 1 and method.has_sets:
        yield ALL, layers, ""
