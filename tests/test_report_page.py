"""The report in a real browser: drawn, reachable by keyboard, no sideways scrolling, no error, no network."""

import pytest

from ot_lens.plots import GALLERY
from ot_lens.report import write_report
from tests import generators_tables as tables_of

pytestmark = pytest.mark.browser
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tables = tables_of.tables()
    tables["localization"].loc[tables["localization"]["method"] == "ace", "method"] = HOSTILE
    return write_report(folder, tables, tables_of.MANIFEST, ["A finding.", HOSTILE], folder / "report.html")


@pytest.fixture
def opened(page, report):
    """Open the report, draw some of its figures by scrolling to them, and collect console messages."""
    messages = []
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    page.on("dialog", lambda dialog: (messages.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def go(size, *figures, scheme="light"):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        page.goto(report.as_uri())
        for figure in figures:
            plot = page.locator(f"[data-figure={figure}]")
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg").first.wait_for(state="attached")
        return page

    yield go
    assert messages == []


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["1280 px", "390 px"])
def test_every_figure_is_drawn_and_nothing_scrolls_sideways(opened, size, scheme):
    page = opened(size, *(entry.name for entry in GALLERY), scheme=scheme)
    for entry in GALLERY:
        plot = page.locator(f"[data-figure={entry.name}]")
        assert plot.locator(".main-svg").count() >= 2
        shapes = plot.locator(".scatterlayer path, .heatmaplayer image").count()
        assert shapes > 0, entry.name
        box = plot.bounding_box()
        assert box["width"] <= size["width"]
        assert box["height"] > 200
    assert overflow(page) == 0
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert overflow(page) == 0


@pytest.mark.trust
def test_the_page_follows_the_colour_scheme(opened):
    def colours(page):
        text = page.locator("[data-figure=w2_per_layer] .xtick text").first.evaluate("e => e.style.fill")
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), text

    light, dark = (colours(opened(DESK, "w2_per_layer", scheme=scheme)) for scheme in ("light", "dark"))
    assert light[0] == "rgb(255, 255, 255)"
    assert all(one != other for one, other in zip(light, dark, strict=True))


@pytest.mark.trust
def test_figures_are_rearranged_when_the_window_narrows(opened):
    page = opened(DESK, "localization_curves")
    before = page.locator("[data-figure=localization_curves]").bounding_box()["height"]
    page.set_viewport_size(PHONE)
    height = "document.querySelector('[data-figure=localization_curves]').offsetHeight"
    page.wait_for_function(f"before => {height} > 1.5 * before", arg=before)
    assert overflow(page) == 0


@pytest.mark.trust
def test_a_legend_button_hides_a_method_in_every_panel_by_keyboard(opened):
    page = opened(DESK, "localization_curves")
    figure = page.locator("#figure-localization_curves")
    button = figure.get_by_role("button", name="Mean shift")
    lines = figure.locator(".scatterlayer .trace.scatter")
    before = lines.count()
    button.focus()
    for pressed, drawn in (("false", "< n"), ("true", "== n")):
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == pressed
        count = "document.querySelectorAll('#figure-localization_curves .trace').length"
        page.wait_for_function(f"n => {count} {drawn}", arg=before)


def test_the_slider_moves_through_the_layers_by_keyboard_and_keeps_what_is_hidden(opened):
    page = opened(DESK, "covariance_spectra")
    figure = page.locator("#figure-covariance_spectra")
    slider, layer = figure.get_by_role("slider"), figure.locator("output")
    data = "document.querySelector('[data-figure=covariance_spectra]').data"
    drawn = f"() => {data}.filter(t => t.visible === true && t.mode)"
    start = int(layer.inner_text())
    figure.get_by_role("button", name="harmless").click()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert layer.inner_text() == str(start + 1)
    assert slider.get_attribute("aria-valuetext") == f"layer {start + 1}"
    assert page.evaluate(f"({drawn})().map(t => t.legendgroup)") == ["harmful", "harmful"]


def test_hostile_names_are_shown_as_text(opened):
    page = opened(DESK)
    assert page.get_by_text(HOSTILE).first.is_visible()
    assert page.locator("img[onerror]").count() == 0


def test_the_table_of_contents_leads_to_its_sections(opened):
    page = opened(PHONE)
    links = page.locator("nav.contents a")
    assert links.count() > 5
    links.nth(3).focus()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#plane"
    page.wait_for_function(
        "() => Math.abs(document.querySelector('#plane').getBoundingClientRect().top) < 60"
    )
