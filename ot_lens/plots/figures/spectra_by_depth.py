"""Covariance spectra of both classes over the whole depth."""

import pandas as pd

from ot_lens.plots.description import Axis, Cells, ColorScale, Description, Panel, described
from ot_lens.plots.figures.covariance_spectra import positive
from ot_lens.plots.rows import counts, layers_of, matrix_of, unit_of
from ot_lens.plots.style import CLASSES
from ot_lens.tables import select

SHOWN_DECADES = 1e-5


def spectra_by_depth(spectra: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Heat maps of both class spectra by layer (x) and component (y), in one logarithmic scale of colour.

    Args:
        spectra: The table of `geometry.spectra`.
    """
    rows = positive(spectra, position)
    largest = float(rows["eigenvalue"].max())
    low = max(float(rows["eigenvalue"].min()), SHOWN_DECADES * largest)
    scale = ColorScale(f"eigenvalue ({unit_of(rows)})", low, largest, log=True, numbered=False)
    layers, ranks = layers_of(rows), sorted({int(rank) for rank in rows["rank"]})
    panels = []
    for label in CLASSES:
        if len(own := select(rows, **{"class": label})):
            matrix = matrix_of(own, "rank", "layer", "eigenvalue", (ranks, layers))
            cells = Cells(matrix, list(map(str, layers)), list(map(str, ranks)), scale, square=False)
            panels.append(Panel(f"{label} activations", Axis("layer"), Axis("component"), (cells,)))
    return described(panels, "spectra", columns=2, height=1.45)


def caption(spectra: pd.DataFrame, **_: object) -> str:
    """What `spectra_by_depth` shows."""
    rows = positive(spectra)
    return (
        "Eigenvalues of the covariance of harmful and of harmless activations at every layer, the largest "
        f"component at the bottom; colour is logarithmic and the same in both panels ({unit_of(rows)}), its "
        "darkest tone holds everything below a hundred-thousandth of the largest. Grey: no positive "
        f"eigenvalue. n = {counts(rows)} prompts per class; the table holds the bootstrap intervals."
    )
