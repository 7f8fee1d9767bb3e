"""Each figure for the page: data and both layouts as JSON with a caption, or the reason it is missing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from ot_lens.errors import TableError
from ot_lens.plots.gallery import GALLERY, Entry, inputs
from ot_lens.plots.rows import going_together
from ot_lens.plots.screen import showing, stacked

# Figures of each section, in the order of the page.
SECTIONS = {
    "where": (
        "localization_curves", "localizers", "interchange_map", "contributions", "ablated_heads",
        "localization_controls", "rank_by_layer", "strength_by_layer", "pair_matrix",
    ),
    "cost": ("method_comparison", "method_intervals", "selectivity", "restored_refusals", "across_languages"),
    "claims": (
        "claim_layers", "claim_depth", "claim_gain", "perplexity_frontier", "claim_sensitivity",
        "claim_capability", "claim_success",
    ),
    "plane": ("principal_plane", "plane_by_depth", "map_quality", "visibility_to_monitor"),
    "geometry": (
        "w2_per_layer", "readout", "harm_and_refusal", "massive_activations", "effective_rank",
        "direction_cosines", "run_cosines", "class_angles", "layer_angles", "layer_similarity",
        "model_similarity", "covariance_spectra", "spectra_by_depth", "ground_truth",
    ),
}  # fmt: skip
# Formats that a run draws; svg is drawn on request.
DRAWN_BY_RUN = ("png", "pdf")


@dataclass(frozen=True)
class PageFigure:
    """One figure of the page; `missing` says why it was not drawn."""

    name: str
    title: str
    caption: str = ""
    json: str = ""
    missing: str = ""
    files: tuple[str, ...] = ()


def page_figures(tables: Mapping[str, pd.DataFrame], run: Path) -> dict[str, list[PageFigure]]:
    """Every figure of the gallery by section; "other" has those that a user registered."""
    figures = {entry.name: _page_figure(entry, tables, run) for entry in GALLERY}
    sections = {section: [figures.pop(name) for name in names] for section, names in SECTIONS.items()}
    return sections | {"other": list(figures.values())}


def _page_figure(entry: Entry, tables: Mapping[str, pd.DataFrame], run: Path) -> PageFigure:
    try:
        with going_together(entry.name):
            needed, options = inputs(entry, tables)
            figure = showing(entry)(*needed, **options)
            caption = entry.caption(*needed, **options, screen=True)
    except TableError as error:
        return PageFigure(entry.name, entry.title, missing=str(error))
    content = {"figure": json.loads(figure.to_json()), "narrow": stacked(figure)}
    files = tuple(
        f"figures/{entry.name}.{suffix}"
        for suffix in DRAWN_BY_RUN
        if (run / f"figures/{entry.name}.{suffix}").is_file()
    )
    return PageFigure(entry.name, entry.title, caption, script_json(content), files=files)


def script_json(content: Any) -> Markup:
    """JSON that is safe inside a script element: none of its characters can open or close a tag."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped just above
