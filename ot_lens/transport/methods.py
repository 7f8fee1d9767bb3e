"""One record per method: its fit and everything else that is known about it by name.

Each method is defined in the file of its fit (see `defines_method`); `register_method` adds a user's own.
Sweeps, tables, figures, the report and the explorer read these records only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from ot_lens.errors import FitError, one_of

if TYPE_CHECKING:
    from ot_lens.transport.maps import ActivationMap

PROJECTION, TRANSPORT, ERASURE = FAMILIES = ("projection", "transport", "erasure")
# What other methods must add to, to have shown more than a shift or more than single coordinates can do.
REFERENCES = ("mean_shift", "linear_act")
# Looks of methods that name none; a method keeps its look for as long as the order of registration stays.
SPARE_COLOURS = ("#6A7F93", "#8A7A55", "#4F7F7A", "#8B6F9E")
SPARE_MARKERS = ("star", "plus", "pentagon", "hexagon")

Fit = Callable[..., "ActivationMap"]
BatchFit = Callable[..., Sequence["ActivationMap"]]
Learn = Callable[..., Mapping[int, "ActivationMap"]]
Place = Callable[..., Mapping[tuple[int, str], "ActivationMap"]]


@dataclass(frozen=True)
class Method:
    """A method of the sweep.

    Attributes:
        name: Name in configurations and tables.
        label: Name in figures and reports.
        family: "projection", "transport" or "erasure".
        fit: `fit(H, S, **parameters)` for one layer, H `[n_H, d]` and S `[n_S, d]`; None in a process that
            knows the method only from the records of a run, and for methods with `learn`.
        batch: The same for many layers at once, from `[L, n_H, d]` and `[L, n_S, d]`; None: layer by layer.
        learn: Instead of `fit`, for methods trained through the model: `learn(model, prompts, acts, *,
            layers, position, hook, batch_size, seed, progress, **parameters) -> {layer: map}`, with the
            training prompts (a `Contrast`) and their unedited `Activations` at those layers; `progress` is
            called with the number of steps just done. A parameter `refusal_tokens` gets those of the sweep.
        joint: Whether `learn` trains all layers together; otherwise it is called for each layer by itself.
        formula: T(x).
        source: Paper or author.
        tokens: Token scope of its edits in a sweep at scope "auto"; "auto": that of its family, where it was
            fitted for transport, else all tokens.
        reversible: Whether it can also be fitted from the harmless to the harmful class.
        everywhere: Whether the map of one layer edits every block: its input, attention output and MLP
            output, unless `place` says where.
        place: `place(maps, layers, n_layers, **parameters)`, for methods that act elsewhere than at their
            layer: the edits by (block, hook point), from the map of each layer and the layers of a set.
        group: Heading under which figures show it.
        colour: Colour in figures, "#RRGGBB".
        marker: Marker in figures, a key of `ot_lens.plots.style.MARKERS`.
        dash: Line style in figures, a key of `ot_lens.plots.style.DASHES`.
        order: Position in tables and figures.
        modifiers: Names in `MODIFIERS` of what is done to each map after its fit, in this order.
    """

    name: str
    label: str
    family: str
    fit: Fit | None = None
    batch: BatchFit | None = None
    learn: Learn | None = None
    joint: bool = False
    formula: str = ""
    source: str = ""
    tokens: str = "auto"
    reversible: bool = False
    everywhere: bool = False
    place: Place | None = None
    group: str = "Other"
    colour: str = SPARE_COLOURS[0]
    marker: str = SPARE_MARKERS[0]
    dash: str = "dashdot"
    order: int = 1000
    modifiers: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """Name of the method without its modifiers."""
        return self.name.removesuffix("".join(f"_{modifier}" for modifier in self.modifiers))

    @property
    def is_local(self) -> bool:
        """Whether its maps know only activations like those they were fitted on."""
        return self.family == TRANSPORT or any(MODIFIERS[name].is_local for name in self.modifiers)


@dataclass(frozen=True)
class Modifier:
    """What can be done to the map of any method after its fit.

    Attributes:
        option: Parameter of a method that asks for it.
        value: Value of that parameter.
        label: Added to the method's label.
        options: Further parameters.
        is_local: Whether the map then knows only activations like those it was fitted on.
        marker: Marker in figures, on the line and in the colour of the method.
        dash: Line style in figures.
    """

    option: str
    value: Any
    label: str
    options: tuple[str, ...] = ()
    is_local: bool = True
    marker: str = "hexagon"
    dash: str = "dot"


# In the order in which they are applied; the name is added to that of the method.
MODIFIERS: dict[str, Modifier] = {
    "null_space": Modifier("within", "null_space", "null space", ("variance",)),
    "gated": Modifier("gate", "logistic", "gated", ("false_positive_rate",), marker="star", dash="dash"),
    "gated_threshold": Modifier(
        "gate", "threshold", "hard gate", ("false_positive_rate",), marker="plus", dash="dashdot"
    ),
    "norm_preserving": Modifier(
        "norm_preserving", True, "norm kept", is_local=False, marker="cross", dash="solid"
    ),
}
METHODS: dict[str, Method] = {}
TRAINED = "ot_lens.learned"


def method_named(name: str) -> Method:
    """The method of that name."""
    known = find_method(name)
    if known is None:
        import_module(TRAINED)  # built in as well, but brings in the model libraries
        known = find_method(name)
    if known is None:
        reasons = [reason for named in _bases(name) if (reason := _why_not_modified(*named))]
        if reasons:
            raise FitError(reasons[0])
        one_of("method", name, list(METHODS), FitError)
    return cast("Method", known)


def find_method(name: str) -> Method | None:
    """The method of that name, also a modified one such as "pca_ot_null_space"; None if there is none."""
    if name in METHODS:
        return METHODS[name]
    for base, modifier in _bases(name):
        if _why_not_modified(base, modifier) is None:
            return _modified(base, modifier)
    return None


def _bases(name: str) -> Iterator[tuple[Method, str]]:
    """The methods of which a name may be a modified form, with the modifier."""
    for modifier in MODIFIERS:
        base = name.removesuffix(f"_{modifier}")
        if base != name and (known := find_method(base)) is not None:
            yield known, modifier


def resolved(name: str, parameters: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """A method with the modifiers that its parameters ask for, and the other parameters.

    Raises:
        FitError: If there is no such method or modifier, or the method takes none.
    """
    known, others = method_named(name), dict(parameters)
    for option in dict.fromkeys(modifier.option for modifier in MODIFIERS.values()):
        value = others.pop(option, None)
        if value is None or value is False:
            continue
        named = {m.value: key for key, m in MODIFIERS.items() if m.option == option}
        if value not in named:
            raise FitError(f"{option} = {value!r} is unknown: choose from {', '.join(map(str, named))}.")
        known = method_named(f"{known.name}_{named[value]}")
    return known, others


def _why_not_modified(known: Method, modifier: str) -> str | None:
    if known.everywhere and MODIFIERS[modifier].is_local:
        return (
            f"{known.name} edits every block with the map of one layer, which no gate or constraint of that "
            "layer fits: modify directional_ablation instead."
        )
    if known.learn is not None:
        return f"{known.name} is trained through the model as it is: modify a fitted method instead."
    return None


def _modified(known: Method, modifier: str) -> Method:
    added = MODIFIERS[modifier]
    return replace(
        known,
        name=f"{known.name}_{modifier}",
        label=f"{known.label}, {added.label}",
        formula=f"{known.formula or known.label} ({added.label})",
        marker=added.marker,
        dash=added.dash,
        order=known.order + 1 + list(MODIFIERS).index(modifier),
        modifiers=(*known.modifiers, modifier),
    )


def method_label(name: str, k: Any = None) -> str:
    """The label of a method of a table and its rank, which may be missing: "PCA-OT (k = 4)"."""
    known = find_method(name)
    label = known.label if known is not None else name
    return label if pd.isna(k) else f"{label} (k = {k})"


def register_method(
    name: str,
    fit: Fit | None = None,
    *,
    learn: Learn | None = None,
    joint: bool = False,
    label: str | None = None,
    family: str = TRANSPORT,
    formula: str = "",
    source: str = "",
    tokens: str = "auto",
    reversible: bool = False,
    group: str = "Other",
    colour: str | None = None,
    marker: str | None = None,
) -> Method:
    """Add your own method: it is swept, tabulated, drawn, reported and explored like the built-in ones.

    Registering a name again replaces the method, except for built-in names. For a study from a configuration,
    register it in a module and name that: `methods: [{name: NAME, module: MODULE}]`, with `--allow-code`.

    Args:
        name: Name in `methods=` and in tables.
        fit: `fit(H, S, **parameters)` returns a map, such as an `AffineMap`, of float64 samples H
            `[n_H, d]` (harmful) and S `[n_S, d]` (harmless) of one layer.
        learn: Instead of `fit`, a function that trains maps through the model; see `Method`.
        joint: Whether `learn` trains all layers together, not each by itself.
        label: Name in figures and reports; default: the name.
        family: "projection", "transport" or "erasure".
        formula: T(x), for people.
        source: Paper or author.
        tokens: Token scope of its edits in a sweep at scope "auto"; "auto": that of its family, where it was
            fitted for transport, else all tokens.
        reversible: Whether it can also be fitted from the harmless to the harmful class.
        group: Heading under which figures show it.
        colour: "#RRGGBB"; default: a spare colour.
        marker: A key of `ot_lens.plots.style.MARKERS`; default: a spare marker.

    Raises:
        FitError: If the name is empty or built in, the family is unknown, or not exactly one of `fit` and
            `learn` is given.
    """
    one_of("family", family, FAMILIES, FitError)
    if not name.isidentifier() or (name in METHODS and METHODS[name].order < Method.order):
        raise FitError(f"Method name {name!r} is taken or not an identifier: choose another name.")
    if (fit is None) == (learn is None):
        given = "neither" if fit is None else "both"
        raise FitError(f"Method {name!r} needs either fit or learn, got {given}: give one of them.")
    spare = [known for known in METHODS.values() if known.order == Method.order and known.name != name]
    number = len(spare) % len(SPARE_COLOURS)
    known = Method(
        name,
        label or name,
        family,
        fit,
        learn=learn,
        joint=joint,
        formula=formula,
        source=source,
        tokens=tokens,
        reversible=reversible,
        group=group,
        colour=colour or SPARE_COLOURS[number],
        marker=marker or SPARE_MARKERS[number],
    )
    register(known)
    return known


def register(known: Method) -> None:
    """Add a method; METHODS stays in the order of the records."""
    METHODS[known.name] = known
    ordered = sorted(METHODS.values(), key=lambda other: other.order)
    METHODS.clear()
    METHODS.update((other.name, other) for other in ordered)


def as_record(known: Method) -> dict[str, Any]:
    """A method as JSON values, without its functions, for the manifest of a run."""
    functions = ("fit", "batch", "learn", "joint", "place")
    return {name: value for name, value in asdict(known).items() if name not in functions}


def restore(records: Iterable[Mapping[str, Any]]) -> None:
    """Add methods known from a run only, so that they keep their labels and looks; registered ones stay."""
    for record in records:
        if find_method(record["name"]) is None:
            known = Method(**{**record, "modifiers": tuple(record.get("modifiers", ()))})
            METHODS[known.name] = known
