"""Figures at print size: nothing overlaps, nothing is cut, type is legible, and they look as they did."""

import os
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from PIL import Image

from ot_lens import plots
from ot_lens.plots import gallery
from tests import generators_tables as tables_of

ENTRIES = {entry.name: entry for entry in plots.GALLERY}
LAYERS = {"icml": 8, "neurips, eighty layers": 80}
CASES = ["icml", pytest.param("neurips, eighty layers", marks=pytest.mark.campaign)]
BASELINE = Path(__file__).parent / "plots" / "baseline"
DOTS = 72


@cache
def tables(layers):
    return tables_of.tables(layers=layers)


@cache
def on_paper(name, case):
    """A figure with everything in its place, and the renderer that put it there."""
    needed, own = gallery.inputs(ENTRIES[name], tables(LAYERS[case]))
    figure = ENTRIES[name].draw(*needed, **own, style=case.split(",")[0])
    return figure, laid_out(figure)


def laid_out(figure):
    """The renderer, once every text has its place."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    return canvas.get_renderer()


def texts_of(figure):
    """Every text: titles, axis titles, tick labels, legends, numbers in cells."""
    found = [text for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        if ax.get_visible() and ax.axison:
            axes = (ax.xaxis, ax.yaxis)
            ticks = [tick for axis in axes for tick in axis._update_ticks()]
            found += [label for tick in ticks for label in (tick.label1, tick.label2)]
            found += [ax._left_title, *(axis.label for axis in axes), *(axis.offsetText for axis in axes)]
            found += ax.texts
        found += ax.get_legend().get_texts() if ax.get_legend() else []
    return [text for text in found if text.get_text().strip() and text.get_visible()]


def overlaps(a, b, slack=0.5):
    """Whether two boxes share more than `slack` pixels both ways."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack


def boxes_of(figure, renderer):
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts_of(figure)]


def clashes(boxes):
    return [(a, b) for (a, x), (b, y) in combinations(boxes, 2) if overlaps(x, y)]


def cut(boxes, page):
    outside = [
        min(box.x0, box.y0) < -0.5 or box.x1 > page.x1 + 0.5 or box.y1 > page.y1 + 0.5 for _, box in boxes
    ]
    return [text for (text, _), out in zip(boxes, outside, strict=True) if out]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", list(ENTRIES))
def test_nothing_overlaps_and_nothing_is_cut(name, case):
    figure, renderer = on_paper(name, case)
    boxes = boxes_of(figure, renderer)
    assert len(boxes) > 5
    assert cut(boxes, figure.bbox) == []
    assert clashes(boxes) == []


def test_the_checks_for_overlap_and_for_what_is_cut_can_fail():
    figure = Figure(figsize=(4, 4))
    ax = figure.subplots()
    ax.set_xlabel("under the tick labels", labelpad=-9)
    ax.set_ylabel("out of the page", labelpad=90)
    boxes = boxes_of(figure, laid_out(figure))
    assert cut(boxes, figure.bbox) == ["out of the page"]
    assert {b for _, b in clashes(boxes)} == {"under the tick labels"}


@pytest.mark.parametrize("highest", [0.02, 0.09, 0.3, 1.1, 8.0, 60.0])
def test_ticks_of_costs_stand_apart_in_narrow_panels_and_leave_a_scale(highest):
    sweep = tables(8)["localization"].copy()
    ends = ["value", "low", "high"]
    costs = sweep["measure"] == "kl"
    sweep.loc[costs, ends] *= highest / sweep.loc[costs & (sweep["prompts"] == "harmless"), ends].max().max()
    figure = ENTRIES["method_intervals"].draw(sweep)
    renderer = laid_out(figure)
    [ax] = [ax for ax in figure.axes if ax.get_xlabel() == "KL (nats)"]
    named = [tick.label1 for tick in ax.xaxis._update_ticks() if tick.label1.get_text()]
    boxes = [label.get_window_extent(renderer) for label in named]
    assert all(b.x0 - a.x1 > 0.04 * figure.dpi for a, b in pairwise(boxes))  # inches
    assert {float(label.get_text()) for label in named} > {0.0}


@pytest.mark.parametrize("case", CASES)
def test_type_is_between_seven_and_nine_points_at_the_width_of_the_venue(case):
    look = plots.STYLES[case.split(",")[0]]
    for name in ENTRIES:
        figure, _ = on_paper(name, case)
        sizes = {text.get_fontsize() for text in texts_of(figure)}
        assert 7 <= min(sizes) <= max(sizes) <= 9, name
        assert figure.get_size_inches()[0] <= look.text + 1e-9, name
        assert figure.get_size_inches()[1] <= 8.0, name  # a page with its caption


@pytest.mark.parametrize("name", list(ENTRIES))
def test_a_figure_looks_as_it_did(name, tmp_path):
    """Against tests/plots/baseline; OT_LENS_BASELINE=1 draws those again, to be looked at before a commit."""
    figure, _ = on_paper(name, "icml")
    fresh = tmp_path / f"{name}.png"
    with plots.styled("icml"):
        figure.savefig(fresh, dpi=DOTS)
    if os.environ.get("OT_LENS_BASELINE"):
        BASELINE.mkdir(parents=True, exist_ok=True)
        with Image.open(fresh) as image:
            image.convert("RGB").quantize(64).convert("RGB").save(BASELINE / fresh.name, optimize=True)
    assert compare_images(str(BASELINE / fresh.name), str(fresh), tol=6.0) is None


def test_a_changed_figure_is_noticed(tmp_path):
    figure, _ = on_paper("class_angles", "icml")
    [line] = figure.findobj(lambda artist: artist.get_gid() == "line:class_angle_1")
    color = line.get_color()
    line.set_color("#FFFFFF")
    with plots.styled("icml"):
        figure.savefig(tmp_path / "changed.png", dpi=DOTS)
    line.set_color(color)
    assert compare_images(str(BASELINE / "class_angles.png"), str(tmp_path / "changed.png"), tol=6.0)


def test_every_baseline_belongs_to_a_figure():
    assert {path.stem for path in BASELINE.glob("*.png")} == set(ENTRIES)
