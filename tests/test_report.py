"""The report as a document: complete, escaped, self-contained, and never the gain without the cost."""

import json
import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from ot_lens.errors import NothingToDrawError
from ot_lens.plots import GALLERY, MEASURES, contenders
from ot_lens.plots.measures import sweep_rows
from ot_lens.plots.rows import Curve, curve
from ot_lens.plots.screen import SCREEN, stacked
from ot_lens.plots.screen.panels import cost_position
from ot_lens.plots.screen.traces import band_outline
from ot_lens.plots.style import METHODS, method_mark
from ot_lens.report import numbers, write_report
from ot_lens.report.figures import script_json
from ot_lens.report.marks import SHAPES
from tests import generators_tables as tables_of

TABLES = tables_of.tables()
SMALL = tables_of.tables(layers=2, methods=(*tables_of.METHODS[:2], *tables_of.METHODS[-2:]))
SUMMARY = ["Unedited, the model refuses 100 % of 64 held-out harmful prompts.", "Nothing else was found."]
HOSTILE = (
    "</script><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\u2028&amp;{{ 7*7 }}"
)
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes and text; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e["tag"] == tag and attributes.items() <= e.items()]


@cache
def of_depth(layers):
    """Tables of a model of that depth, which no test changes."""
    return TABLES if layers == 8 else tables_of.tables(layers=layers)


def written(folder, tables=TABLES, manifest=tables_of.MANIFEST, summary=SUMMARY):
    out = folder / "report.html"
    assert write_report(folder, tables, manifest, summary, out) == out
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("model: organism:multi  # <the model>\n", encoding="utf-8")
    (folder / "figures").mkdir()
    (folder / "figures" / "w2_per_layer.pdf").touch()
    return written(folder)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


# ------------------------------------------------------------------ self-contained


def test_nothing_is_loaded_from_anywhere(page, text):
    assert [
        e for e in page.elements if e["tag"] in {"script", "img", "iframe", "source"} and "src" in e
    ] == []
    assert all(e["href"].startswith("data:") for e in page.all("link"))
    styles = "".join(e["text"] for e in page.all("style"))
    assert "url(" not in styles
    assert "@import" not in styles
    [policy] = [e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert len(text.encode()) < 8_000_000


def test_plotly_is_there_once_and_whole(page):
    code = [e["text"] for e in page.all("script") if "plotly.js v" in e["text"]]
    assert len(code) == 1
    assert len(code[0]) > 1_000_000


def test_eighty_layers_stay_under_ten_megabytes(tmp_path):
    assert len(written(tmp_path, of_depth(80)).encode()) < 10_000_000


# ------------------------------------------------------------------ escaped


def test_hostile_strings_stay_text(tmp_path):
    sweep = TABLES["localization"].copy()
    sweep.loc[sweep["method"] == "ace", "method"] = HOSTILE
    geometry = TABLES["geometry"].replace("auc_direction", HOSTILE)
    manifest = tables_of.MANIFEST | {"model": {"name": HOSTILE, HOSTILE: [HOSTILE]}, HOSTILE: HOSTILE}
    (tmp_path / "config.yaml").write_text(HOSTILE, encoding="utf-8")
    text = written(tmp_path, TABLES | {"localization": sweep, "geometry": geometry}, manifest, [HOSTILE])
    page = Page(text)
    assert "alert('x')</script>" not in text
    assert [e for e in page.elements if "onerror" in e or e["tag"] == "img"] == []
    assert not any("alert(" in e["text"] for e in page.all("script") if e.get("type") != "application/json")
    assert page.all("ul", **{"class": "findings"})[0]["text"].strip() == HOSTILE
    assert any(HOSTILE in e["text"] for e in page.all("code"))


def test_json_inside_a_script_comes_back_as_it_was():
    content = {"a": HOSTILE, "b": [1.5, None]}
    assert not set("<>&\u2028") & set(script_json(content))
    assert json.loads(script_json(content)) == content
    with pytest.raises(ValueError, match="Out of range float"):
        script_json({"a": float("nan")})


# ------------------------------------------------------------------ complete


def test_findings_facts_and_reproduction_are_there(page, text):
    assert [e["text"] for e in page.all("li")][9:11] == SUMMARY
    assert page.all("dl", **{"class": "facts"})[0]["text"].replace("\n", "").startswith("modelorganism:multi")
    assert "model: organism:multi  # &lt;the model&gt;" in text
    assert "ot-lens run config.yaml" in text
    assert len(page.all("h1")) == 1
    assert len(page.all("math")) > 8
    assert "counts.train.harmful" in text


def test_the_table_of_contents_leads_to_every_section(page):
    sections = [e["id"] for e in page.all("section")]
    inner = [e["href"][1:] for e in page.all("a") if e["href"].startswith("#")]
    assert set(sections) == set(inner)
    identifiers = [e["id"] for e in page.elements if "id" in e]
    assert len(identifiers) == len(set(identifiers))


def test_every_figure_has_its_data_its_caption_and_a_text_for_screen_readers(page):
    assert [e["data-figure"] for e in page.all("div") if "data-figure" in e] != []
    for entry in GALLERY:
        [plot] = [e for e in page.all("div") if e.get("data-figure") == entry.name]
        assert plot["role"] == "img"
        assert "n = " in plot["aria-label"]
        [data] = page.all("script", id=f"data-{entry.name}")
        content = json.loads(data["text"])
        assert content["figure"]["data"]
        assert content["narrow"]["height"] >= content["figure"]["layout"]["height"] * 0.99
    assert [e["href"] for e in page.all("a") if e["href"].startswith("figures/")] == [
        "figures/w2_per_layer.pdf"
    ]


def test_scrolling_tables_are_reached_by_keyboard(page):
    regions = page.all("div", **{"class": "scroll"})
    assert regions
    assert all(e["tabindex"] == "0" and e["aria-label"] and e["role"] == "region" for e in regions)


@pytest.mark.parametrize("missing", [*TABLES, "everything"])
def test_missing_tables_are_said_not_hidden(tmp_path, missing):
    tables = {k: t for k, t in SMALL.items() if missing not in (k, "everything")}
    page = Page(written(tmp_path, tables, {}, []))
    told = [e["text"] for e in page.all("p", **{"class": "missing"})]
    drawn = {e["data-figure"] for e in page.all("div") if "data-figure" in e}
    needing = {entry.name for entry in GALLERY if missing == "everything" or missing in entry.tables}
    assert drawn == {entry.name for entry in GALLERY} - needing
    assert sum("table is missing" in note for note in told) == len(needing)


def test_an_empty_run_and_one_of_unmeasured_values_still_give_a_page(tmp_path):
    empty = {name: table.iloc[:0] for name, table in SMALL.items()}
    Page(written(tmp_path, empty))
    unmeasured = {n: t.assign(**dict.fromkeys(t.select_dtypes("float"), np.nan)) for n, t in SMALL.items()}
    text = written(tmp_path, unmeasured)
    Page(text)
    assert "no finite" in text


# ------------------------------------------------------------------ the gain never without the cost


def every_table():
    return [numbers.at_a_glance(TABLES["localization"]), *numbers.per_layer(TABLES["localization"])]


def test_no_table_shows_refusal_without_right_answers_and_harmless_cost():
    for table in every_table():
        names = list(table.columns)
        assert names.index(("harmful", "answers rightly")) - names.index(("harmful", "refuses")) == 1
        assert {("harmless", "answers rightly"), ("harmless", "KL (nats)")} <= set(names)


def test_numbers_are_the_tables():
    sweep = TABLES["localization"]
    [table] = [t for t in numbers.per_layer(sweep) if t.title == "PCA-OT (k = 4)"]
    row = sweep[
        (sweep["method"] == "pca_ot") & (sweep["k"] == 4) & (sweep["layer"] == 5)
        & (sweep["measure"] == "refusal_rate") & (sweep["prompts"] == "harmful")
    ].iloc[0]  # fmt: skip
    cell = table.rows[5].cells[0]
    assert cell.text == f"{100 * row['value']:.1f}".removesuffix(".0") + " %"
    low, high = (float(end) for end in cell.interval.split(" to "))
    assert [low, high] == pytest.approx([100 * row["low"], 100 * row["high"]], abs=0.051)


def test_the_glance_holds_the_baseline_each_best_layer_and_all_layers():
    table = numbers.at_a_glance(TABLES["localization"])
    methods = contenders(TABLES["localization"])
    headings = [row.heading for row in table.rows]
    assert headings[0] == "no intervention"
    assert headings[1:] == [
        f"{m.mark.label}, {where}" for m in methods for where in (f"layer {m.layer}", "all layers")
    ]


def test_geometry_shows_value_interval_and_null():
    table = numbers.geometry_table(TABLES["geometry"])
    position = [name for _, name in table.columns].index("w2 bures")
    cell = table.rows[0].cells[position]
    assert cell.interval
    assert cell.note.startswith("null ")


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [
        (0.125, True, "12.5 %"),
        (1.0, True, "100 %"),
        (0.0, False, "0"),
        (1.23456, False, "1.23"),
        (-4.5, False, "\u22124.5"),
        (0.000083, False, "8.3\u00b710\u207b\u2075"),
        (2693.4, False, "2\u202f693"),
        (np.nan, False, "\u2013"),
    ],
)
def test_numbers_are_written_for_people(value, share, text):
    assert numbers.cell(value, share=share).text == text


# ------------------------------------------------------------------ the screen shows what the paper shows


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
                assert trace.marker.color == METHODS["ace"].color


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


def test_every_marker_of_the_language_has_a_shape_on_the_page():
    assert {mark.marker for mark in METHODS.values()} <= set(SHAPES)


def test_screen_and_paper_name_the_same_figures():
    assert set(SCREEN) == {entry.name for entry in GALLERY}
    assert set(numbers.GLANCE) <= set(MEASURES)
