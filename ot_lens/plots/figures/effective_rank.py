"""How many dimensions each class occupies, by layer."""

import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, described
from ot_lens.plots.rows import counts, curve, null_of, rows_of
from ot_lens.plots.style import CLASSES
from ot_lens.tables import select

TITLES = {"effective_rank": "effective rank", "participation_ratio": "participation ratio"}


def effective_rank(geometry: pd.DataFrame, *, position: int | str | None = None) -> Description:
    """Effective rank and participation ratio of each class covariance by layer.

    Args:
        geometry: The table of `diagnose`.
    """
    rows = rows_of(geometry, "geometry", position)
    return described([_panel(rows, name) for name in TITLES], "geometry", columns=2)


def _panel(rows: pd.DataFrame, name: str) -> Panel:
    classes = {label: select(rows, quantity=f"{name}_{label}") for label in CLASSES}
    bands = [band for k, part in classes.items() for band in null_of(part, f"{name}_{k}")]
    lines = [Line(f"{name}_{k}", CLASSES[k], curve(part)) for k, part in classes.items()]
    return Panel(TITLES[name], LAYER, Axis("dimensions"), (*bands, *lines))


def caption(geometry: pd.DataFrame, **_: object) -> str:
    """What `effective_rank` shows."""
    names = [f"{name}_{label}" for name in TITLES for label in CLASSES]
    return (
        "Dimensions that the activations of each class occupy, by layer: the effective rank, exp(entropy of "
        "the normalized covariance spectrum), and the participation ratio, (sum l)^2 / sum l^2. Coloured "
        "bands: 95 % bootstrap intervals over prompts. Grey: mean (dotted) and 95 % band under permuted "
        "class labels, one band per class. Neither can exceed n - 1. n = "
        f"{counts(geometry[geometry['quantity'].isin(names)])} prompts per class."
    )
