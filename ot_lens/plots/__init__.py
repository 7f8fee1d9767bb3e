"""Figures: a table becomes a description, which is drawn on paper (matplotlib) or on a screen (plotly).

Every figure of the gallery is a function here that draws on paper: `w2_per_layer(geometry, style="icml")`.
Its plotly counterpart is in `ot_lens.plots.screen`, which is not imported here. Both take the tables and
options of the function in `ot_lens.plots.figures`, which returns the description. No statistic is computed
in this package.
"""

from ot_lens.plots.description import Description
from ot_lens.plots.figures.localization_curves import localization_curve as _localization_curve
from ot_lens.plots.gallery import GALLERY, Drawn, Entry, draw_all, entry_named, register_figure, save
from ot_lens.plots.measures import MEASURES, contenders
from ot_lens.plots.paper import STYLES, Style, canvas, drawing, rc, styled
from ot_lens.plots.style import CLASSES, METHODS, Mark, method_mark

localization_curve = drawing(_localization_curve)


# Without annotations: mypy would meet them unresolved, since the whole package is one import cycle to it.
def __getattr__(name):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The function that draws a figure of the gallery on paper."""
    for entry in GALLERY:
        if entry.name == name:
            return drawing(entry.describe)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CLASSES",
    "GALLERY",
    "MEASURES",
    "METHODS",
    "STYLES",
    "Description",
    "Drawn",
    "Entry",
    "Mark",
    "Style",
    "canvas",
    "contenders",
    "draw_all",
    "entry_named",
    "localization_curve",
    "method_mark",
    "rc",
    "register_figure",
    "save",
    "styled",
]
__all__ += [entry.name for entry in GALLERY]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
