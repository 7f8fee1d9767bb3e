"""Every figure of `ot_lens.plots` on a screen, with plotly: the same tables and colours as on paper."""

from collections.abc import Callable

import plotly.graph_objects as go

from ot_lens.plots.gallery import GALLERY
from ot_lens.plots.screen.layout import stacked
from ot_lens.plots.screen.render import draw, showing


def __getattr__(name: str) -> Callable[..., go.Figure]:
    """The function that draws a figure of the gallery on a screen."""
    for entry in GALLERY:
        if entry.name == name:
            return showing(entry)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["draw", "showing", "stacked"]
__all__ += [entry.name for entry in GALLERY]
