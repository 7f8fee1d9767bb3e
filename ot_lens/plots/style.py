"""The visual language: one fixed colour, marker and dash for each class and method, on paper and screen.

Colours keep a contrast of 3:1 against white and against the report's dark page (WCAG 2.2, 1.4.11). Markers,
dashes and, for the classes, lightness repeat what colour says, so that a grey-scale print still tells them
apart. Heat maps are drawn in scales whose lightness rises evenly.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ot_lens import transport
from ot_lens.transport import find_method
from ot_lens.transport.methods import MODIFIERS

# name -> (matplotlib, plotly)
MARKERS = {
    "circle": ("o", "circle"),
    "square": ("s", "square"),
    "diamond": ("D", "diamond"),
    "up": ("^", "triangle-up"),
    "down": ("v", "triangle-down"),
    "left": ("<", "triangle-left"),
    "right": (">", "triangle-right"),
    "plus": ("P", "cross"),
    "cross": ("X", "x"),
    "pentagon": ("p", "pentagon"),
    "hexagon": ("h", "hexagon"),
    "star": ("*", "star"),
}
DASHES: dict[str, tuple[Any, str]] = {
    "solid": ("-", "solid"),
    "dash": ((0, (4.0, 1.4)), "dash"),
    "dot": ((0, (1.2, 1.2)), "dot"),
    "dashdot": ((0, (4.0, 1.2, 1.2, 1.2)), "dashdot"),
}


@dataclass(frozen=True)
class Mark:
    """How one class or one method looks everywhere."""

    label: str
    color: str
    marker: str
    dash: str = "solid"
    family: str = ""


CLASSES = {
    "harmful": Mark("harmful", "#E8702A", "circle", "solid"),
    "harmless": Mark("harmless", "#2066A8", "square", "dash"),
}
PARTS = {
    "w2_squared": Mark("total", "#7B5AA6", "circle", "solid"),
    "w2_location": Mark("location (means)", "#4C72B0", "square", "solid"),
    "w2_bures": Mark("Bures (shapes)", "#B5762A", "diamond", "dash"),
}
# Controls of a sweep: where an edit that knows nothing of the classes lands.
CONTROLS = {
    "random_subspace": Mark("random subspaces", "#5F7F9C", "circle", "dot"),
    "permuted_labels": Mark("fits on permuted labels", "#A08A4F", "square", "dashdot"),
}
REFERENCE = Mark("", "#555B65", "circle", "dot")
NULL = Mark("permuted labels", "#8A8F98", "circle", "dot")
MISSING = "#ECEDEF"
# of the best cell of a heat map, and the most rows that are all named and numbered
OUTLINE, MOST_NAMES = "#D4006A", 12
# the colour of the dot on cells that the null does not explain, and what it means
DOT, SIGNIFICANT = "#222222", "beyond chance"
# matplotlib and plotly, perceptually even; from -1 to 1 a diverging one
SEQUENTIAL = ("cividis", "Cividis")
DIVERGING = ("RdBu_r", "RdBu_r")
BASELINE = Mark("no intervention", "#767B84", "pentagon", "dash", "baseline")
METHODS = transport.METHODS
PROJECTION, TRANSPORT, OTHER = "Projection", METHODS["pca_ot"].group, transport.Method.group
# Groups of the built-in methods, in order; other methods come last.
FAMILIES = (*dict.fromkeys(known.group for known in METHODS.values()), OTHER)
# PCA-OT keeps one hue; k moves it from light to dark and changes marker and dash as well.
RANKS = {
    1: ("#2F9E99", "circle", "dot"),
    2: ("#159A6F", "square", "dash"),
    4: ("#2E8540", "up", "dashdot"),
    8: ("#3F7A1F", "diamond", "solid"),
}
SPARE = ("#6A7F93", "#8A7A55", "#77808F", "#7D8471")
# What is done to the maps of a method: the same look for every method, with the marker of the modifier.
VARIANTS = {"": "#7B5AA6", "null_space": "#2F78B7", "gated": "#C2591F", "gated_threshold": "#12876A",
            "norm_preserving": "#B0518F"}  # fmt: skip


def method_mark(method: str, k: Any = None) -> Mark:
    """Mark of a method, of a (method, k) pair, or of a label such as `"pca_ot (k = 2)"`."""
    name, rank = split_label(method, k)
    mark = _mark(name)
    if name.startswith("pca_ot") and rank is not None:
        color, marker, dash = RANKS[max(key for key in RANKS if key <= max(rank, 1))]
        mark = replace(mark, color=color)
        mark = replace(mark, marker=marker, dash=dash) if name == "pca_ot" else mark
    inside = method[len(name) :].strip(" ()") or (f"k = {rank}" if rank is not None else "")
    return replace(mark, label=f"{mark.label} ({inside})") if inside else mark


def variant_mark(modifiers: Sequence[str]) -> Mark:
    """Mark of what is done to the maps of a method; the look of several modifiers depends on their names."""
    label, name = ", ".join(MODIFIERS[name].label for name in modifiers), "_".join(modifiers)
    if name in VARIANTS:
        return Mark(label or "plain", VARIANTS[name], MODIFIERS[name].marker if name else "circle")
    used = {BASELINE.marker, "circle", *(modifier.marker for modifier in MODIFIERS.values())}
    return replace(_spare(name, [marker for marker in MARKERS if marker not in used]), label=label)


def split_label(method: str, k: Any = None) -> tuple[str, int | None]:
    """Name and rank of a label: `("pca_ot", 2)` of `"pca_ot (k = 2)"` or of `("pca_ot", 2)`."""
    name, _, inside = method.partition(" (")
    if k is not None and not pd.isna(k):
        return name, int(k)
    found = re.search(r"\bk = (\d+)", inside)
    return name, int(found.group(1)) if found else None


def method_order(method: str, k: Any = None) -> tuple[int, str, int]:
    """Sort key: the baseline, projections, shifts, transport by rank, then what is not known here by name."""
    name, rank = split_label(method, k)
    known = find_method(name)
    order = -1 if name == "none" else transport.Method.order + 10 if known is None else known.order
    return (order, name, rank or 0)


def _mark(name: str) -> Mark:
    """The mark of a method by name; an unknown one has a fixed look that depends on its name."""
    if name == "none":
        return BASELINE
    known = find_method(name)
    if known is not None:
        return Mark(known.label, known.colour, known.marker, known.dash, known.group)
    return _spare(name, list(MARKERS))


def _spare(name: str, markers: Sequence[str]) -> Mark:
    number = zlib.crc32(name.encode())
    return Mark(name, SPARE[number % len(SPARE)], markers[number % len(markers)], "dashdot", OTHER)
