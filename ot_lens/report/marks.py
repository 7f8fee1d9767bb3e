"""Markers of methods and classes as inline SVG, the same as in the figures."""

from markupsafe import Markup

from ot_lens.plots.style import Mark

# In a box from -6 to 6, y pointing down.
SHAPES = {
    "circle": "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z",
    "square": "M-4.4 -4.4H4.4V4.4H-4.4Z",
    "diamond": "M0 -5.6L5.6 0L0 5.6L-5.6 0Z",
    "up": "M0 -5.2L5.2 4.2H-5.2Z",
    "down": "M0 5.2L5.2 -4.2H-5.2Z",
    "left": "M-5.2 0L4.2 -5.2V5.2Z",
    "right": "M5.2 0L-4.2 -5.2V5.2Z",
    "plus": "M-1.8 -5.2H1.8V-1.8H5.2V1.8H1.8V5.2H-1.8V1.8H-5.2V-1.8H-1.8Z",
    "cross": "M0 -2.5L2.5 -5L5 -2.5L2.5 0L5 2.5L2.5 5L0 2.5L-2.5 5L-5 2.5L-2.5 0L-5 -2.5L-2.5 -5Z",
    "pentagon": "M0 -5.4L5.1 -1.7L3.2 4.4H-3.2L-5.1 -1.7Z",
    "hexagon": "M0 -5.4L4.7 -2.7V2.7L0 5.4L-4.7 2.7V-2.7Z",
    "star": "M0 -5.8L1.5 -1.9L5.6 -1.8L2.4 0.8L3.5 4.8L0 2.5L-3.5 4.8L-2.4 0.8L-5.6 -1.8L-1.5 -1.9Z",
}


def mark_svg(mark: Mark) -> Markup:
    """The marker in the mark's colour, hidden from screen readers because the label follows it."""
    return Markup(
        '<svg class="mark" viewBox="-6 -6 12 12" aria-hidden="true"><path d="{}" fill="{}"/></svg>'
    ).format(SHAPES[mark.marker], mark.color)
