"""The report as a document: complete, escaped, self-contained, and never the effect without the cost."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from ot_lens.plots import GALLERY, MEASURES, contenders
from ot_lens.report import figures, numbers, write_report
from ot_lens.report.figures import script_json
from ot_lens.tables import select
from tests import generators_tables as tables_of

TABLES = tables_of.tables()
SMALL = tables_of.tables(
    layers=2, methods=(*tables_of.METHODS[:2], *tables_of.METHODS[-3:-1])
)  # PCA-OT with variants
SUMMARY = ["Unedited, the model refuses 100 % of 64 held-out harmful prompts.", "Nothing else was found."]
HOSTILE = (
    "</script><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\u2028&amp;{{ 7*7 }}"
)
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes and text; fails on tags that do not match."""

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
    loading = [e for e in page.elements if e["tag"] in {"script", "img", "iframe", "source"} and "src" in e]
    assert loading == []
    assert all(e["href"].startswith("data:") for e in page.all("link"))
    styles = "".join(e["text"] for e in page.all("style"))
    assert "url(" not in styles
    assert "@import" not in styles
    [policy] = [e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert len(text.encode()) < 8_000_000
    [plotly] = [e["text"] for e in page.all("script") if "plotly.js v" in e["text"]]
    assert len(plotly) > 1_000_000


@pytest.mark.trust
def test_eighty_layers_of_nine_methods_are_drawn_and_stay_under_eleven_megabytes(tmp_path):
    text = written(
        tmp_path, tables_of.tables(layers=80, methods=tables_of.METHODS[2:-2])
    )  # and four variants
    assert all(f'data-figure="{entry.name}"' in text for entry in GALLERY)
    assert len(text.encode()) < 11_000_000


# ------------------------------------------------------------------ escaped
def test_hostile_strings_stay_text(tmp_path):
    sweep = SMALL["localization"].replace({"method": {"pca_ot": HOSTILE}})
    geometry = SMALL["geometry"].replace("auc_direction", HOSTILE)
    manifest = tables_of.MANIFEST | {"model": {"name": HOSTILE, HOSTILE: [HOSTILE]}, HOSTILE: HOSTILE}
    manifest["methods"] = [{"label": HOSTILE, "family": HOSTILE, "formula": HOSTILE}, HOSTILE]
    (tmp_path / "config.yaml").write_text(HOSTILE, encoding="utf-8")
    text = written(tmp_path, SMALL | {"localization": sweep, "geometry": geometry}, manifest, [HOSTILE])
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
    [findings] = page.all("ul", **{"class": "findings"})
    assert findings["text"] == "".join(SUMMARY)
    assert page.all("dl", **{"class": "facts"})[0]["text"].replace("\n", "").startswith("modelorganism:multi")
    assert "model: organism:multi  # &lt;the model&gt;" in text
    assert "ot-lens run config.yaml" in text
    assert len(page.all("h1")) == 1
    assert len(page.all("math")) > 8
    assert "counts.train.harmful" in text


def test_every_section_and_every_scrolling_table_can_be_reached(page):
    sections = [e["id"] for e in page.all("section")]
    inner = [e["href"][1:] for e in page.all("a") if e["href"].startswith("#")]
    assert set(sections) == set(inner)
    identifiers = [e["id"] for e in page.elements if "id" in e]
    assert len(identifiers) == len(set(identifiers))
    scrolling = page.all("div", **{"class": "scroll"})
    assert scrolling
    assert all(e["tabindex"] == "0" and e["aria-label"] and e["role"] == "region" for e in scrolling)


def test_every_figure_has_its_data_its_caption_and_a_text_for_screen_readers(page):
    for entry in GALLERY:
        [plot] = [e for e in page.all("div") if e.get("data-figure") == entry.name]
        assert plot["role"] == "img"
        assert "n = " in plot["aria-label"]
        [data] = page.all("script", id=f"data-{entry.name}")
        content = json.loads(data["text"])
        assert content["figure"]["data"]
        assert content["narrow"]["height"] >= content["figure"]["layout"]["height"] * 0.99
    files = [e["href"] for e in page.all("a") if e["href"].startswith("figures/")]
    assert files == ["figures/w2_per_layer.pdf"]


def test_figures_and_methods_that_a_user_registered_have_their_place(tmp_path, monkeypatch):
    own = replace(GALLERY[0], name="my_figure", title="My figure", tables=("mine",))
    monkeypatch.setattr(figures, "GALLERY", (*GALLERY, own))
    record = {"label": "Half shift", "family": "transport", "formula": "x + (S - H) / 2"}
    page = Page(written(tmp_path, SMALL, tables_of.MANIFEST | {"methods": [record]}))
    assert any("My figure" in e["text"] for e in page.all("section", id="figures"))
    assert any(e["text"] == "Half shift (transport): x + (S - H) / 2" for e in page.all("li"))


@pytest.mark.parametrize("missing", ["localization", "plane", "everything"])
def test_missing_tables_are_named_not_hidden(tmp_path, missing):
    tables = {name: table for name, table in SMALL.items() if missing not in (name, "everything")}
    page = Page(written(tmp_path, tables, {}, []))
    notes = [e["text"] for e in page.all("p", **{"class": "missing"})]
    drawn = {e["data-figure"] for e in page.all("div") if "data-figure" in e}
    needing = {entry.name for entry in GALLERY if missing == "everything" or missing in entry.tables}
    assert drawn == {entry.name for entry in GALLERY} - needing
    assert sum("table is missing" in note for note in notes) == len(needing)


def test_an_empty_run_and_one_of_unmeasured_values_still_give_a_page(tmp_path):
    Page(written(tmp_path, {name: table.iloc[:0] for name, table in SMALL.items()}))
    unmeasured = {n: t.assign(**dict.fromkeys(t.select_dtypes("float"), np.nan)) for n, t in SMALL.items()}
    text = written(tmp_path, unmeasured)
    Page(text)
    assert "no finite" in text


# ------------------------------------------------------------------ the effect never without the cost
def test_no_table_shows_refusal_without_correct_answers_and_harmless_cost():
    together = ["refusal_rate/harmful", "exact_answer_rate/harmful"]
    costs = {"exact_answer_rate/harmless", "kl/harmless"}
    heads = {key: (m.prompts, m.label.removesuffix(" (%)")) for key, m in MEASURES.items()}
    for table in (numbers.at_a_glance(TABLES["localization"]), *numbers.per_layer(TABLES["localization"])):
        start = table.columns.index(heads[together[0]])
        assert list(table.columns[start : start + 2]) == [heads[key] for key in together]
        assert {heads[key] for key in costs} <= set(table.columns)


def test_numbers_are_the_tables():
    sweep = TABLES["localization"]
    [table] = [t for t in numbers.per_layer(sweep) if t.title == "PCA-OT (k = 4)"]
    row = select(sweep, method="pca_ot", k=4, layer=5, measure="refusal_rate", prompts="harmful").iloc[0]
    cell = table.rows[5].cells[0]
    assert cell.text == f"{100 * row['value']:.1f}".removesuffix(".0") + " %"
    low, high = (float(end) for end in cell.interval.split(" to "))
    assert [low, high] == pytest.approx([100 * row["low"], 100 * row["high"]], abs=0.051)


def test_the_glance_has_the_baseline_each_most_effective_layer_and_all_layers():
    headings = [row.heading for row in numbers.at_a_glance(TABLES["localization"]).rows]
    methods = [(m.mark.label, m.layer) for m in contenders(TABLES["localization"])]
    rows = [f"{label}, {where}" for label, layer in methods for where in (f"layer {layer}", "all layers")]
    assert headings == ["no intervention", *rows]


def test_geometry_shows_value_interval_and_null():
    table = numbers.geometry_table(TABLES["geometry"])
    cell = table.rows[0].cells[[name for _, name in table.columns].index("w2 bures")]
    assert cell.interval
    assert cell.note.startswith("null ")


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [
        (0.125, True, "12.5 %"),
        (1.0, True, "100 %"),
        (-4.5, False, "\u22124.5"),
        (0.000083, False, "8.3\u00b710\u207b\u2075"),
        (2693.4, False, "2\u202f693"),
        (np.nan, False, "\u2013"),
    ],
)
def test_numbers_are_formatted_for_people(value, share, text):
    assert numbers.cell(value, share=share).text == text
