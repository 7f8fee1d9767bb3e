"""The list of figures, and drawing all of them from the tables of a run, each with its caption file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ot_lens.errors import NothingToDrawError, OtLensError, TableError, one_of
from ot_lens.io.files import atomic_path, write_bytes, write_text
from ot_lens.plots import paper
from ot_lens.plots.description import Description
from ot_lens.plots.measures import sweep_rows
from ot_lens.plots.paper import painters, style_named, styled
from ot_lens.plots.rows import going_together, layers_of
from ot_lens.progress import Stage, silent
from ot_lens.tables import most_effective_layer, select

FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class Entry:
    """One figure: its name, the heading on a page, the tables it needs, and functions of those.

    `describe` turns the tables into a description, on screens with the options `on_screen`. `caption` turns
    them into text; it takes the options of `describe`, and `screen`.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    describe: Callable[..., Description]
    caption: Callable[..., str]
    on_screen: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, *tables: pd.DataFrame, **options: Any) -> Figure:
        """The figure on paper, with options of `describe`, `style` and `axes`."""
        return paper.drawing(self.describe)(*tables, **options)


def _entry(name: str, title: str, *tables: str, **on_screen: Any) -> Entry:
    """The figure of a file: file, function and figure have one name."""
    module = import_module(f"ot_lens.plots.figures.{name}")
    return Entry(name, title, tables, getattr(module, name), module.caption, on_screen)


def _claim(name: str) -> Entry:
    """A figure of one of the paper's claims."""
    module = import_module("ot_lens.plots.figures.claims")
    return Entry(name, module.SHOWN[name].title, ("claims",), getattr(module, name), module.caption_of(name))


# The only list of figures: file, title, tables, options for screens.
GALLERY: list[Entry] = [
    _entry("localization_curves", "Where refusal can be changed", "localization", by_family=False),
    _entry("localizers", "Which blocks make refusal", "localizers"),
    _entry("contributions", "Which heads and MLPs write refusal", "contributions"),
    _entry("ablated_heads", "Without the heads that write refusal", "ablated_heads"),
    _entry("interchange_map", "Where the answer follows another prompt", "interchange"),
    _entry("localization_controls", "Against edits that ignore the classes", "controls"),
    _entry("pair_matrix", "Pairs of layers", "localization"),
    _entry("rank_by_layer", "Rank of the transport by layer", "localization"),
    _entry("strength_by_layer", "Strength of the edit by layer", "localization"),
    _entry("method_comparison", "What it costs", "localization"),
    _entry("method_intervals", "Methods side by side", "localization"),
    _entry("selectivity", "With and without a constraint or a gate", "localization"),
    _entry("restored_refusals", "Refusal restored", "defence"),
    _entry("readout", "What directions and maps write", "readout"),
    _entry("harm_and_refusal", "Harm apart from refusal", "harm"),
    _entry("across_languages", "From one language to another", "languages"),
    _entry("principal_plane", "Transport against projection", "plane", "plane_ellipses", slider=True),
    _entry("plane_by_depth", "Transport against projection over the depth", "plane", "plane_ellipses"),
    _entry("map_quality", "Quality of the maps", "map_quality"),
    _entry("visibility_to_monitor", "Visibility to a monitor", "visibility"),
    _entry("w2_per_layer", "Distance between the classes", "geometry"),
    _entry("effective_rank", "Dimensions of the classes", "geometry"),
    _entry("massive_activations", "Massive activations", "massive"),
    _entry("covariance_spectra", "Covariance spectra", "spectra", slider=True),
    _entry("spectra_by_depth", "Covariance spectra over the depth", "spectra"),
    _entry("direction_cosines", "Refusal direction across layers", "cosines"),
    _entry("run_cosines", "Refusal direction against another run", "run_cosines"),
    _entry("class_angles", "Angles between the classes", "class_angles"),
    _entry("layer_angles", "Angles between layers", "layer_angles"),
    _entry("layer_similarity", "Similarity of layers", "layer_similarity"),
    _entry("model_similarity", "Similarity before and after", "model_similarity"),
    _entry("ground_truth", "Known by construction and measured", "ground_truth"),
    _claim("claim_layers"),
    _claim("claim_depth"),
    _claim("claim_gain"),
    _entry("perplexity_frontier", "Success against cost along the strengths", "localization", "variants"),
    _claim("claim_sensitivity"),
    _claim("claim_capability"),
    _claim("claim_success"),
    _entry("diagnostics", "Registered diagnostics", "geometry"),
]


def entry_named(name: str) -> Entry:
    """The figure of that name, which must exist."""
    known = {entry.name: entry for entry in GALLERY}
    one_of("figure", name, list(known), OtLensError)
    return known[name]


def register_figure(
    name: str,
    describe: Callable[..., Description],
    *,
    tables: Sequence[str],
    title: str,
    caption: Callable[..., str] | str = "",
) -> None:
    """Add a figure to the gallery: it is drawn, captioned, reported and explored like the others.

    Args:
        name: Name of the figure and of its files.
        describe: Takes the tables and returns a `Description`. It raises a TableError (such as
            NothingToDrawError) if the tables hold nothing to draw.
        tables: Names of the tables, such as "geometry", in the order of the arguments of `describe`.
        title: Heading on a page.
        caption: What the figure shows: text, or a function of the tables that returns it.

    Raises:
        OtLensError: If the name is not an identifier, or belongs to another figure.
    """
    if not name.isidentifier():
        raise OtLensError(f"Figure name {name!r} is not an identifier: use letters, digits and underscores.")
    other = next((entry for entry in GALLERY if entry.name == name), None)
    if other is not None and _source(other.describe) != _source(describe):
        raise OtLensError(f"A figure named {name!r} exists: choose another name.")
    if other is not None:
        GALLERY.remove(other)
    text = caption
    function = (lambda *_, **__: text) if isinstance(text, str) else lambda *needed, **_: text(*needed)
    GALLERY.append(Entry(name, title, tuple(tables), describe, function))


def _source(function: Callable[..., Any]) -> tuple[str, str]:
    """Where a function is defined: a module that is imported again may register it again."""
    return function.__module__, function.__qualname__


class Drawn(tuple[Path, ...]):
    """Files written; `skipped` has the reason for each figure that was left out."""

    skipped: Mapping[str, str]

    def __new__(cls, paths: Iterable[Path], skipped: Mapping[str, str] | None = None) -> "Drawn":
        """The paths written, and the reasons by figure."""
        drawn = super().__new__(cls, paths)
        drawn.skipped = skipped or {}
        return drawn


def draw_all(
    tables: Mapping[str, pd.DataFrame],
    out: Path,
    formats: Sequence[str] = ("png", "pdf"),
    style: str = "icml",
    layer: int | None = None,
    about: str = "",
    *,
    processes: int = 1,
    stage: Stage = silent,
) -> Drawn:
    """Draw every figure for which there are tables, and write it with a caption file.

    Args:
        tables: Tables of a run by name ("localization", "geometry", ...).
        out: Folder, created if missing; figures of the same name are replaced.
        formats: Any of "png", "pdf", "svg".
        style: "icml", "neurips" or "wide".
        layer: Layer of the principal plane; the most effective one if None.
        about: Last sentence of every caption: the model, the seed, the version.
        processes: How many processes draw; the bytes do not depend on it.
        stage: Shows progress.

    Raises:
        OtLensError: If a format or the style is unknown.
    """
    for suffix in formats:
        one_of("figure format", suffix, FORMATS, OtLensError)
    style_named(style)
    out.mkdir(parents=True, exist_ok=True)
    with painters.painters(processes, len(GALLERY)) as helpers:
        described, skipped = _described(tables, layer, about)
        jobs = [(description, formats, style) for description, _ in described.values()]
        painted, paths = painters.painted(helpers, jobs), []
        with stage("figures", len(jobs)) as step:
            for (name, (description, caption)), pictures in zip(described.items(), painted, strict=True):
                try:
                    paths += _written(out / name, description, pictures, formats, style)
                    paths.append(out / f"{name}.txt")
                    write_text(paths[-1], caption + "\n")
                except TableError as error:
                    skipped[name] = str(error)
                step(1)
    return Drawn(paths, skipped)


def _described(
    tables: Mapping[str, pd.DataFrame], layer: int | None, about: str
) -> tuple[dict[str, tuple[Description, str]], dict[str, str]]:
    """Description and caption of each figure that there are tables for, and why others cannot be drawn."""
    described, skipped = {}, {}
    for entry in GALLERY:
        try:
            with going_together(entry.name):
                needed, options = inputs(entry, tables, layer)
                caption = f"{entry.caption(*needed, **options)} {about}".strip()
                described[entry.name] = entry.describe(*needed, **options), caption
        except TableError as error:
            skipped[entry.name] = str(error)
    return described, skipped


def _written(
    stem: Path,
    description: Description,
    pictures: painters.Pictures | None,
    formats: Sequence[str],
    style: str,
) -> list[Path]:
    """Write the pictures of a figure, or draw it here."""
    if pictures is None:
        with going_together(stem.name):
            figure = painters.laid_out(description, style)
        return save(figure, stem, formats, style=style)
    for suffix, content in pictures.items():
        write_bytes(stem.with_suffix(f".{suffix}"), content)
    return [stem.with_suffix(f".{suffix}") for suffix in formats]


def inputs(
    entry: Entry, tables: Mapping[str, pd.DataFrame], layer: int | None = None
) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Tables and options for an entry's functions; a NothingToDrawError if a table is missing."""
    absent = [name for name in entry.tables if tables.get(name) is None]
    if absent:
        raise NothingToDrawError(f"The {absent[0]} table is missing.")
    needed = [tables[name] for name in entry.tables]
    if entry.name != "principal_plane":
        return needed, {}
    sweep, points = tables.get("localization"), tables["plane"]
    if layer is None and sweep is not None and not sweep.empty and not points.empty:
        layer = most_effective_layer(select(sweep_rows(sweep), layer=layers_of(points)))
    return needed, {"layer": layer}


def save(
    figure: Figure, stem: str | Path, formats: Sequence[str] = ("png", "pdf"), *, style: str = "icml"
) -> list[Path]:
    """Write a figure in each format, fonts embedded, no time stamp: the same figure gives the same bytes."""
    paths = [Path(stem).with_suffix(f".{suffix}") for suffix in formats]
    with styled(style):
        for path in paths:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, metadata=painters.STAMPS[path.suffix[1:]])
    return paths
