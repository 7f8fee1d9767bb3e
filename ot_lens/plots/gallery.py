"""The full set of paper figures from the tables of a run, each with its caption file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError, OtLensError, TableError
from ot_lens.io.files import atomic_path, write_text
from ot_lens.plots import (
    angles,
    comparison,
    controls,
    depth,
    dimensions,
    directions,
    distances,
    embedded,
    grids,
    localization,
    other_run,
    plane,
    quality,
    spectra,
    visibility,
)
from ot_lens.plots.canvas import style_named, styled
from ot_lens.plots.measures import sweep_rows
from ot_lens.plots.rows import going_together, layers_of
from ot_lens.tables import most_effective_layer, select

FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class Entry:
    """One figure: its file name, the tables it needs, and the functions that draw and describe it."""

    name: str
    title: str
    tables: tuple[str, ...]
    draw: Callable[..., Figure]
    caption: Callable[..., str]


SWEEP = ("localization",)
GALLERY = (
    Entry(
        "localization_curves",
        "Where refusal lives",
        SWEEP,
        localization.localization_curves,
        localization.caption,
    ),
    Entry(
        "localization_controls",
        "Against edits that know nothing of refusal",
        ("controls",),
        controls.localization_controls,
        controls.caption,
    ),
    Entry("pair_matrix", "Pairs of layers", SWEEP, grids.pair_matrix, grids.caption_pairs),
    Entry("rank_by_layer", "Rank of the transport by layer", SWEEP, grids.rank_by_layer, grids.caption_ranks),
    Entry(
        "strength_by_layer",
        "Strength of the edit by layer",
        SWEEP,
        grids.strength_by_layer,
        grids.caption_strengths,
    ),
    Entry("method_comparison", "What it costs", SWEEP, comparison.method_comparison, comparison.caption),
    Entry(
        "method_intervals",
        "Methods side by side",
        SWEEP,
        comparison.method_intervals,
        comparison.caption_intervals,
    ),
    Entry(
        "principal_plane",
        "Transport against projection",
        ("plane", "plane_ellipses"),
        plane.principal_plane,
        plane.caption,
    ),
    Entry(
        "plane_by_depth",
        "Transport against projection over the depth",
        ("plane", "plane_ellipses"),
        depth.plane_by_depth,
        depth.caption,
    ),
    Entry("map_quality", "Quality of the maps", ("map_quality",), quality.map_quality, quality.caption),
    Entry(
        "visibility",
        "Visibility to a monitor",
        ("visibility",),
        visibility.visibility_to_monitor,
        visibility.caption,
    ),
    Entry(
        "w2_per_layer",
        "Distance between the classes",
        ("geometry",),
        distances.w2_per_layer,
        distances.caption,
    ),
    Entry(
        "effective_rank",
        "Dimensions of the classes",
        ("geometry",),
        dimensions.effective_rank,
        dimensions.caption,
    ),
    Entry("spectra", "Covariance spectra", ("spectra",), spectra.covariance_spectra, spectra.caption),
    Entry(
        "spectra_by_depth",
        "Covariance spectra over the depth",
        ("spectra",),
        spectra.spectra_by_depth,
        spectra.caption_depth,
    ),
    Entry(
        "direction_cosines",
        "Refusal direction across layers",
        ("cosines",),
        directions.direction_cosines,
        directions.caption,
    ),
    Entry(
        "run_cosines",
        "Refusal direction against another run",
        ("run_cosines",),
        other_run.run_cosines,
        other_run.caption,
    ),
    Entry(
        "class_angles",
        "Angles between the classes",
        ("class_angles",),
        angles.class_angles,
        angles.caption_classes,
    ),
    Entry(
        "layer_angles", "Angles between layers", ("layer_angles",), angles.layer_angles, angles.caption_layers
    ),
    Entry(
        "ground_truth",
        "Known by construction and measured",
        ("ground_truth",),
        embedded.ground_truth,
        embedded.caption,
    ),
)


@dataclass(frozen=True)
class Drawn(Sequence[Path]):
    """Files written, as a sequence of paths; `skipped` gives the reason for each figure left out."""

    paths: tuple[Path, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, index: Any) -> Any:
        return self.paths[index]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)


def draw_all(
    tables: Mapping[str, pd.DataFrame],
    out: Path,
    formats: Sequence[str] = ("png", "pdf"),
    style: str = "icml",
    layer: int | None = None,
    about: str = "",
) -> Drawn:
    """Draw every figure whose tables are there, and write it with a caption file beside it.

    Args:
        tables: tables of a run by name ("localization", "geometry", ...).
        out: folder, made when missing; figures of the same name are replaced.
        formats: of "png", "pdf", "svg".
        style: "icml", "neurips" or "wide".
        layer: layer of the principal plane; None takes the one at which an edit does best.
        about: a sentence that ends every caption: the model, the seed, the version.

    Raises:
        OtLensError: an unknown format or style.
    """
    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise OtLensError(
            f"unknown figure format {', '.join(sorted(unknown))}: choose from {', '.join(FORMATS)}"
        )
    style_named(style)
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    skipped: dict[str, str] = {}
    for entry in GALLERY:
        try:
            with going_together(entry.name):
                needed, options = inputs(entry, tables, layer)
                figure = entry.draw(*needed, style=style, **options)
                caption = f"{entry.caption(*needed, **options)} {about}".strip()
                _settle(figure)
        except TableError as error:
            skipped[entry.name] = str(error)
            continue
        paths += save(figure, out / entry.name, formats, style=style)
        paths.append(out / f"{entry.name}.txt")
        write_text(paths[-1], caption + "\n")
    return Drawn(tuple(paths), skipped)


def _settle(figure: Figure) -> None:
    """Give everything its place once, for all formats: finding it is half the time of a figure."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def inputs(
    entry: Entry, tables: Mapping[str, pd.DataFrame], layer: int | None = None
) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Tables and options for an entry's functions.

    Raises:
        NothingToDrawError: a table that it needs is missing.
    """
    absent = [name for name in entry.tables if tables.get(name) is None]
    if absent:
        raise NothingToDrawError(f"the {absent[0]} table is missing")
    needed = [tables[name] for name in entry.tables]
    own_layer = entry.name == "principal_plane"
    return needed, {"layer": plane_layer(tables) if layer is None else layer} if own_layer else {}


def plane_layer(tables: Mapping[str, pd.DataFrame]) -> int | None:
    """The most effective layer among those in the plane table; None without a sweep."""
    sweep, points = tables.get("localization"), tables.get("plane")
    if sweep is None or sweep.empty or points is None or points.empty:
        return None
    return most_effective_layer(select(sweep_rows(sweep), layer=layers_of(points)))


def save(
    figure: Figure, stem: Path, formats: Sequence[str] = ("png", "pdf"), *, style: str = "icml"
) -> list[Path]:
    """Write a figure in each format, fonts embedded, no time stamp: the same figure gives the same bytes."""
    stamps: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    paths = [stem.with_suffix(f".{suffix}") for suffix in formats]
    with styled(style):
        for path in paths:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, metadata=stamps[path.suffix[1:]])
    return paths
