"""The report in a real browser: drawn, reachable by keyboard, no sideways scrolling, no error, no network."""

import pytest

from ot_lens.plots import GALLERY
from ot_lens.plots.gallery import entry_named
from ot_lens.report import write_report
from tests import generators_tables as tables_of

pytestmark = pytest.mark.browser
PHONE, TABLET, DESK = ({"width": w, "height": h} for w, h in ((390, 844), (820, 1180), (1200, 900)))
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tables = tables_of.tables()
    tables["localization"].loc[tables["localization"]["method"] == "ace", "method"] = HOSTILE
    return write_report(folder, tables, tables_of.MANIFEST, ["A finding.", HOSTILE], folder / "report.html")


@pytest.fixture(scope="module")
def shown(browser, report):
    """The report with every figure drawn, and what went wrong: errors, messages, requests, dialogs."""
    context = browser.new_context(offline=True, viewport=DESK)
    page, trouble = context.new_page(), []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda asked: trouble.append(asked.url) if asked.url.startswith("http") else None)
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.emulate_media(color_scheme="light")
    page.goto(report.as_uri())
    yield page, trouble
    context.close()


@pytest.fixture
def page(shown):
    """The report, opened once, on a desk's screen; any trouble fails the test."""
    shown[0].set_viewport_size(DESK)
    yield shown[0]
    assert shown[1] == []


def drawn(page, *figures):
    """Draw figures by scrolling to them."""
    for figure in figures:
        plot = page.locator(f"[data-figure={figure}]")
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for(state="attached")
    return page


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def check_figures(page, width):
    drawn(page, *(entry.name for entry in GALLERY))
    for entry in GALLERY:
        plot = page.locator(f"[data-figure={entry.name}]")
        assert plot.locator(".main-svg").count() >= 2
        shapes = plot.locator(".scatterlayer path, .heatmaplayer image").count()
        assert shapes > 0, entry.name
        box = plot.bounding_box()
        assert box["width"] <= width
        assert box["height"] > 200
    assert overflow(page) == 0
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert overflow(page) == 0


def test_every_figure_is_drawn_and_nothing_scrolls_sideways_or_overlaps(page):
    for window in (DESK, TABLET):
        page.set_viewport_size(window)
        check_figures(page, window["width"])
        # Beside its labels, of which one is hostile and long, there is little room.
        overlapping = [texts for figure, *texts in page.evaluate(OVERLAPPING) if figure != "method_intervals"]
        assert overlapping == []


# Titles that lie on other text, and titles and ticks that lie on a panel: their figures, and what they say.
OVERLAPPING = """() => [...document.querySelectorAll("[data-figure]")].flatMap((figure) => {
  const boxOf = (e) => e.getBoundingClientRect();
  const crosses = (low, high, start, end) => low < end - 1 && start < high - 1;
  const on = (a, b) => crosses(a.left, a.right, b.left, b.right) && crosses(a.top, a.bottom, b.top, b.bottom);
  const texts = [...figure.querySelectorAll("text")].filter(
    (e) => e.textContent && !e.closest(".annotation"));
  const titles = texts.filter((e) => /title/.test(e.getAttribute("class")));
  const outside = texts.filter((e) => titles.includes(e) || e.closest("[class$=tick]"));
  const panels = [...figure.querySelectorAll(".nsewdrag")].map(boxOf);
  return [
    ...titles.flatMap((e) => texts.filter((other) => other !== e && on(boxOf(e), boxOf(other)))
      .map((other) => [figure.dataset.figure, e.textContent, other.textContent])),
    ...outside.filter((e) => panels.some((panel) => on(boxOf(e), panel)))
      .map((e) => [figure.dataset.figure, e.textContent]),
  ];
})"""


def test_a_legend_button_hides_a_method_in_every_panel_by_keyboard(page):
    figure = drawn(page, "localization_curves").locator("#figure-localization_curves")
    button = figure.get_by_role("button", name="Mean shift", exact=True)
    lines = figure.locator(".scatterlayer .trace.scatter")
    before = lines.count()
    button.focus()
    for pressed, shown in (("false", "< n"), ("true", "== n")):
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == pressed
        count = "document.querySelectorAll('#figure-localization_curves .trace').length"
        page.wait_for_function(f"n => {count} {shown}", arg=before)


def test_the_slider_moves_through_the_layers_by_keyboard_and_keeps_what_is_hidden(page):
    figure = drawn(page, "covariance_spectra").locator("#figure-covariance_spectra")
    slider, layer = figure.get_by_role("slider"), figure.locator("output")
    data = "document.querySelector('[data-figure=covariance_spectra]').data"
    visible = f"() => {data}.filter(t => t.visible === true && t.mode)"
    start = int(layer.inner_text())
    figure.get_by_role("button", name="harmless").click()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert layer.inner_text() == str(start + 1)
    assert slider.get_attribute("aria-valuetext") == f"layer {start + 1}"
    assert page.evaluate(f"({visible})().map(t => t.legendgroup)") == ["harmful", "harmful"]


def test_dots_mark_the_cells_beyond_chance_and_their_legend_button_hides_them(page):
    description = entry_named("interchange_map").describe(tables_of.tables()["interchange"])
    maps = [panel.cells for panel in description.panels]
    figure = drawn(page, "interchange_map").locator("#figure-interchange_map")
    axes = "document.querySelector('[data-figure=interchange_map]')._fullLayout"
    names = [page.evaluate(f"{axes}.{axis}axis._categories") for axis in "xy"]
    assert names == [list(maps[0].columns), list(maps[0].rows)]  # dots add none
    dots = figure.locator(".scatterlayer .points path")
    assert dots.count() == sum(int(cells.significant.sum()) for cells in maps) > 0
    for count in (0, dots.count()):
        figure.get_by_role("button", name="beyond chance").click()
        page.wait_for_function(
            "n => document.querySelectorAll('#figure-interchange_map .points path').length === n", arg=count
        )
    assert figure.locator(".legend button").all_inner_texts() == ["beyond chance"]


def test_hostile_names_are_shown_as_text(page):
    assert page.get_by_text(HOSTILE).first.is_visible()
    assert page.locator("img[onerror]").count() == 0


def test_figures_are_rearranged_when_the_window_narrows_to_a_phone(page):
    before = drawn(page, "localization_curves").locator("[data-figure=localization_curves]").bounding_box()
    page.set_viewport_size(PHONE)
    height = "document.querySelector('[data-figure=localization_curves]').offsetHeight"
    page.wait_for_function(f"before => {height} > 1.5 * before", arg=before["height"])
    assert overflow(page) == 0
    links = page.locator("nav.contents a")
    assert links.count() > 5
    page.locator("nav.contents a[href='#plane']").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#plane"
    page.wait_for_function(
        "() => Math.abs(document.querySelector('#plane').getBoundingClientRect().top) < 60"
    )


def test_a_page_has_the_colours_of_the_system(page):
    def colours():
        text = drawn(page, "w2_per_layer").locator("[data-figure=w2_per_layer] .xtick text").first
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), text.evaluate(
            "e => e.style.fill"
        )

    light = colours()
    assert light[0] == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert all(one != other for one, other in zip(light, colours(), strict=True))


@pytest.mark.campaign
def test_a_phone_draws_every_figure(page):
    page.set_viewport_size(PHONE)
    page.reload()
    check_figures(page, PHONE["width"])
