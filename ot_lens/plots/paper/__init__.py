"""Descriptions on paper, with matplotlib."""

from ot_lens.plots.paper.canvas import STYLES, Style, canvas, rc, style_named, styled
from ot_lens.plots.paper.render import draw, drawing

__all__ = ["STYLES", "Style", "canvas", "draw", "drawing", "rc", "style_named", "styled"]
