"""Every figure of `ot_lens.plots` on a screen, with plotly: the same tables and colours as on paper."""

from ot_lens.plots.gallery import GALLERY
from ot_lens.plots.screen.layout import stacked
from ot_lens.plots.screen.render import draw, showing


# Without annotations: mypy would meet them unresolved, since the whole package is one import cycle to it.
def __getattr__(name):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The function that draws a figure of the gallery on a screen."""
    for entry in GALLERY:
        if entry.name == name:
            return showing(entry)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["draw", "showing", "stacked"]
__all__ += [entry.name for entry in GALLERY]
