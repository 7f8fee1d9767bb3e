"""The figures on screen show what the tables hold, as the paper figures do."""

import re
from functools import cache
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from ot_lens.errors import NothingToDrawError
from ot_lens.plots import GALLERY
from ot_lens.plots.measures import sweep_rows
from ot_lens.plots.rows import Curve, curve
from ot_lens.plots.screen import SCREEN, stacked
from ot_lens.plots.screen.panels import cost_position
from ot_lens.plots.screen.traces import band_outline
from ot_lens.plots.style import METHODS, method_mark
from tests import generators_tables as tables_of

TABLES = tables_of.tables()


@cache
def of_depth(layers):
    """Tables of a model of that depth, which no test changes."""
    return TABLES if layers == 8 else tables_of.tables(layers=layers)


def traces(figure, **wanted):
    return [t for t in figure.data if all(getattr(t, name) == value for name, value in wanted.items())]


@pytest.mark.parametrize(("panel", "key"), [("x", "refusal_rate/harmful"), ("x4", "kl/harmless")])
def test_screen_curves_are_the_tables(panel, key):
    figure = SCREEN["localization_curves"](TABLES["localization"])
    sweep = sweep_rows(TABLES["localization"])
    name, prompts = key.split("/")
    for method, k, _ in tables_of.METHODS:
        mine = sweep[(sweep["method"] == method) & (sweep["measure"] == name) & (sweep["prompts"] == prompts)]
        mine = mine[mine["layer"].notna() & (mine["k"].isna() if k is None else mine["k"] == k)]
        label = method_mark(method, k).label
        drawn = [
            t
            for t in traces(figure, name=label, mode="lines+markers")
            if t.xaxis in {panel, "x1"[: len(panel)]}
        ]
        [line] = [t for t in drawn if (t.xaxis or "x").replace("x1", "x") == panel]
        value = curve(mine).value
        np.testing.assert_allclose(line.y, cost_position(value) if name == "kl" else value)
        assert line.line.color == method_mark(method, k).color
        assert line.marker.symbol == method_mark(method, k).symbol


def test_a_band_is_outlined_and_broken_where_nothing_was_measured():
    x = np.arange(5.0)
    low, high = np.array([0.0, 1, np.nan, 3, 4]), np.array([1.0, 2, np.nan, 4, 5])
    xs, ys = band_outline(Curve(x, (low + high) / 2, low, high))
    np.testing.assert_array_equal(xs, [0, 1, 1, 0, np.nan, 3, 4, 4, 3])
    np.testing.assert_array_equal(ys, [1, 2, 1, 0, np.nan, 4, 5, 4, 3])


def test_a_method_has_one_colour_on_every_screen():
    for name in ("localization_curves", "method_comparison", "method_intervals"):
        figure = SCREEN[name](TABLES["localization"])
        for trace in figure.data:
            if trace.name == METHODS["ace"].label and trace.marker.color is not None:
                assert trace.marker.color == METHODS["ace"].colour


@pytest.mark.parametrize("layers", [1, 8, 80])
@pytest.mark.parametrize("entry", GALLERY, ids=lambda entry: entry.name)
def test_every_screen_figure_is_made_for_every_depth(entry, layers):
    tables = of_depth(layers)
    if entry.name == "pair_matrix" and layers == 1:
        with pytest.raises(NothingToDrawError):
            SCREEN[entry.name](tables["localization"])
        return
    figure = SCREEN[entry.name](*(tables[name] for name in entry.tables))
    assert isinstance(figure, go.Figure)
    domains = [axis["domain"] for name, axis in stacked(figure).items() if re.match("yaxis", name)]
    for above, below in pairwise(domains):
        assert below[1] < above[0]  # under each other, with a gap


def test_a_slider_shows_one_layer_at_a_time():
    figure = SCREEN["spectra"](TABLES["spectra"], layer=3)
    [slider] = figure.layout.sliders
    assert slider.steps[slider.active].label == "3"
    for step in slider.steps:
        assert sum(step.args[0]["visible"]) == 4  # a line and a band for each class
    assert sum(trace.visible for trace in figure.data) == 4


def test_the_plane_on_screen_has_the_tables_points_and_one_scale():
    figure = SCREEN["principal_plane"](TABLES["plane"], TABLES["plane_ellipses"], layer=4)
    here = TABLES["plane"].query("layer == 4")
    ace = here[(here["class"] == "harmful") & (here["state"] == "directional_ablation")]
    shown = [t for t in traces(figure, name="Directional ablation", mode="markers") if t.visible]
    np.testing.assert_allclose(
        np.stack([shown[0].x, shown[0].y]), ace[["pc1", "pc2"]].to_numpy().T, rtol=1e-6
    )
    assert figure.layout.yaxis.scaleanchor in {"x", "x1"}


def test_screen_and_paper_name_the_same_figures():
    assert set(SCREEN) == {entry.name for entry in GALLERY}
