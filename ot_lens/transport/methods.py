"""One record per method: its fit and everything else that is known about it by name.

Each method is defined in the file of its fit (see `defines_method`); `register_method` adds a user's own.
Sweeps, tables, figures, the report and the explorer read these records only.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from ot_lens.errors import FitError, one_of

if TYPE_CHECKING:
    from ot_lens.transport.affine import AffineMap

PROJECTION, TRANSPORT, ERASURE = FAMILIES = ("projection", "transport", "erasure")
# What other methods must add to, to have shown more than a shift or more than single coordinates can do.
REFERENCES = ("mean_shift", "linear_act")
# Looks of methods that name none; a method keeps its look for as long as the order of registration stays.
SPARE_COLOURS = ("#6A7F93", "#8A7A55", "#4F7F7A", "#8B6F9E")
SPARE_MARKERS = ("star", "plus", "pentagon", "hexagon")

Fit = Callable[..., "AffineMap"]
BatchFit = Callable[..., list["AffineMap"]]


@dataclass(frozen=True)
class Method:
    """A method of the sweep.

    Attributes:
        name: Name in configurations and tables.
        label: Name in figures and reports.
        family: "projection", "transport" or "erasure".
        fit: `fit(H, S, **parameters)` for one layer, H `[n_H, d]` and S `[n_S, d]`; None in a process that
            knows the method only from the records of a run.
        batch: The same for many layers at once, from `[L, n_H, d]` and `[L, n_S, d]`; None: layer by layer.
        formula: T(x).
        source: Paper or author.
        tokens: Token scope of its edits in a sweep at scope "auto"; "auto": that of its family, where it was
            fitted for transport, else all tokens.
        reversible: Whether it can also be fitted from the harmless to the harmful class.
        everywhere: Whether the map of one layer edits every block's input, attention output and MLP output.
        group: Heading under which figures show it.
        colour: Colour in figures, "#RRGGBB".
        marker: Marker in figures, a key of `ot_lens.plots.style.MARKERS`.
        dash: Line style in figures, a key of `ot_lens.plots.style.DASHES`.
        order: Position in tables and figures.
    """

    name: str
    label: str
    family: str
    fit: Fit | None = None
    batch: BatchFit | None = None
    formula: str = ""
    source: str = ""
    tokens: str = "auto"
    reversible: bool = False
    everywhere: bool = False
    group: str = "Other"
    colour: str = SPARE_COLOURS[0]
    marker: str = SPARE_MARKERS[0]
    dash: str = "dashdot"
    order: int = 1000


METHODS: dict[str, Method] = {}


def method_named(name: str) -> Method:
    """The method of that name."""
    one_of("method", name, list(METHODS), FitError)
    return METHODS[name]


def method_label(name: str, k: Any = None) -> str:
    """The label of a method of a table and its rank, which may be missing: "PCA-OT (k = 4)"."""
    label = METHODS[name].label if name in METHODS else name
    return label if pd.isna(k) else f"{label} (k = {k})"


def register_method(
    name: str,
    fit: Fit,
    *,
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
        fit: `fit(H, S, **parameters) -> AffineMap`, from float64 samples H `[n_H, d]` (harmful) and S
            `[n_S, d]` (harmless) of one layer.
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
        FitError: If the name is empty or built in, or the family is unknown.
    """
    one_of("family", family, FAMILIES, FitError)
    if not name.isidentifier() or (name in METHODS and METHODS[name].order < Method.order):
        raise FitError(f"Method name {name!r} is taken or not an identifier: choose another name.")
    spare = [known for known in METHODS.values() if known.order == Method.order and known.name != name]
    number = len(spare) % len(SPARE_COLOURS)
    known = Method(
        name,
        label or name,
        family,
        fit,
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
    """A method as JSON values, without its fit, for the manifest of a run."""
    return {name: value for name, value in asdict(known).items() if name not in ("fit", "batch")}


def restore(records: Iterable[Mapping[str, Any]]) -> None:
    """Add methods known from a run only, so that they keep their labels and looks; registered ones stay."""
    for record in records:
        METHODS.setdefault(record["name"], Method(**record))
