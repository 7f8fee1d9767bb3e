"""Views of complete tables: every figure of the gallery that does not follow the chosen layer and edits."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import State
from ot_lens.explorer.view import Drawing, View, read
from ot_lens.plots.gallery import GALLERY, Entry, entry_named
from ot_lens.tables import select


def gallery_view(entry: Entry) -> View:
    """A figure as a view, with its caption as the note."""
    return View(entry.name, entry.title, "", (), partial(_captioned, entry))


def _captioned(entry: Entry, run: OpenRun, _state: State) -> Drawing:
    drawing = _complete(entry.name, run)
    return replace(drawing, note=entry.caption(*drawing.tables.values(), screen=True))


def _complete(figure: str, run: OpenRun, _state: State | None = None) -> Drawing:
    names = entry_named(figure).tables
    return Drawing(figure, {name: run.table(name) for name in names}, map(read, names))


def _spectra(run: OpenRun, state: State) -> Drawing:
    here = select(run.table("spectra"), layer=state.layer)
    if here.empty:
        raise NothingToDrawError(f"The spectra table does not contain layer {state.layer}.")
    options, note = {"layers": [state.layer]}, f"Layer {state.layer}."
    return Drawing("covariance_spectra", {"spectra": here}, [read("spectra")], options, note)


DISTANCES = View(
    "distances",
    "Distance between the classes",
    "Squared 2-Wasserstein distance between Gaussians, and its two parts. Grey: the same under permuted "
    "labels; only values above it count.",
    (),
    partial(_complete, "w2_per_layer"),
    depth=True,
)
SPECTRA = View(
    "spectra",
    "Covariance spectra",
    "Eigenvalues of each class at the chosen layer, with 95 % bootstrap bands.",
    ("layers",),
    _spectra,
    wide=False,
)
COSINES = View(
    "cosines",
    "Refusal direction across layers",
    "Cosine between the difference-in-means directions of two layers; bold where permuted labels do not "
    "explain it.",
    (),
    partial(_complete, "direction_cosines"),
    wide=False,
)
# These have views of their own, here or in the modules of the sweep and of the plane.
ELSEWHERE = (
    "localization_curves",
    "method_intervals",
    "principal_plane",
    "w2_per_layer",
    "direction_cosines",
    "covariance_spectra",
)


def gallery_views() -> Iterator[View]:
    """One view for each other figure, those registered later included."""
    return (gallery_view(entry) for entry in GALLERY if entry.name not in ELSEWHERE)
