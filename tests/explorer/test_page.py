"""The explorer in headless Chromium: what users do, and what must never happen."""

from pathlib import Path
from urllib.parse import quote

import pytest

from ot_lens.errors import PromptError
from ot_lens.explorer.live import Answer, LiveModel, NextToken
from tests import generators_tables
from tests.explorer.conftest import LAYERS, served

pytestmark = pytest.mark.browser
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
LINK = "<a href='javascript:window.hacked=1'>x</a><b>y</b>"


def drawn(page, view="plane", run=0):
    """Wait until a view is on the screen and return it."""
    place = f".of-run[data-view={view}][data-run='{run}']"
    node = page.locator(place)
    node.scroll_into_view_if_needed()
    node.locator(".main-svg").first.wait_for(state="attached")
    page.wait_for_function(
        "at => document.querySelector(`${at} .js-plotly-plot`)?._fullData?.length > 0", arg=place
    )
    return node


def ready(page):
    drawn(page, "depth")
    drawn(page, "plane")
    page.evaluate("scrollTo(0, 0)")
    return page


def asked_for(page):
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.search))")


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def wait_for_layers(page, layers):
    page.wait_for_function("n => new URLSearchParams(location.search).get('layers') == n", arg=layers)


def wait_for_note(page, text, view="spectra"):
    """Until the note of a view holds a text, of every run."""
    page.wait_for_function(
        "([view, text]) => [...document.querySelectorAll(`.of-run[data-view=${view}] .note`)]"
        ".every(note => note.textContent.includes(text))",
        arg=[view, text],
    )


def harmless(page):
    """Whether no script has run, and no image, script or link of a run's content is on the page."""
    found = page.locator("main img, main script, main a[href^=javascript]")
    return page.evaluate("window.hacked") is None and found.count() == 0


def test_the_page_is_reached_by_keyboard_with_labels(home):
    page = ready(home)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, textarea, a[href]')]
        .filter(e => e.offsetParent)
        .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
        .map(e => e.outerHTML)"""
    )
    assert unnamed == []
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"ruler", "measure", "ot", "k", "by", "strength", "tokens"} <= reached


def test_the_page_opens_with_every_view_and_its_code(home):
    page = ready(home)
    assert page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 10_000
    for name in ("localization", "methods", "distances", "spectra", "cosines"):
        drawn(page, name)
    assert page.locator(".missing:visible").count() == 0
    assert overflow(page) == 0
    card = page.locator("#view-plane")
    card.locator("summary").click()
    assert "otl.principal_plane(" in card.locator("pre code").inner_text()
    assert card.get_by_role("button", name="Copy").is_visible()


def test_layers_are_chosen_with_the_keyboard_and_the_back_button_undoes_it(home):
    page = ready(home)
    page.locator("#ruler").focus()
    page.keyboard.press("Home")
    assert asked_for(page)["layers"] == "2"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert asked_for(page)["layers"] == "5,7"
    assert page.locator("#ruler [aria-selected=true]").count() == 2
    drawn(page, "spectra")
    wait_for_note(page, "Layer 5.")
    page.go_back()
    page.go_back()
    assert asked_for(page)["layers"] == "2"
    drawn(page, "spectra")  # the browser has scrolled back to where it was, too
    wait_for_note(page, "Layer 2.")
    assert page.locator("#ruler [aria-selected=true]").inner_text() == "2"


def test_a_click_and_a_drag_on_the_row_and_on_the_strip_choose_layers(home):
    page = ready(home)

    def drag(start, end, y):
        page.mouse.move(start, y)
        page.mouse.down()
        page.mouse.move(end, y, steps=8)
        page.mouse.up()

    page.locator("#layer-2").click()
    assert asked_for(page)["layers"] == "2"
    page.locator("#layer-5").click(modifiers=["Control"])
    assert asked_for(page)["layers"] == "2,5"
    row = page.locator("#ruler").bounding_box()
    drag(row["x"] + 5, row["x"] + row["width"] - 5, row["y"] + 9)
    assert asked_for(page)["layers"] == "2,5,7"
    plot = page.locator(".of-run[data-view=depth] .nsewdrag").first.bounding_box()
    at = {layer: plot["x"] + plot["width"] * (layer - 1.5) / 6 for layer in LAYERS}
    middle = plot["y"] + plot["height"] / 2
    page.mouse.move(at[5] - 3, middle)
    page.mouse.move(at[5], middle)
    page.mouse.click(at[5], middle)
    wait_for_layers(page, "5")
    drag(at[5] - 25, at[7] + 15, middle)
    wait_for_layers(page, "5,7")


def test_a_prompt_is_followed_through_both_panels(home, opened):
    page = ready(home)
    text = opened.run.texts["harmful"][3]
    page.locator("#plane-prompt").fill("3")
    assert page.locator("#plane-reader .prompt").inner_text() == text
    rings = page.evaluate(
        "document.querySelector('.of-run[data-view=plane] .js-plotly-plot')._fullData"
        ".filter(t => t.meta == 'highlight').map(t => [...t.x])"
    )
    assert len(rings) == 2
    assert rings[0][0] == pytest.approx(rings[1][0])
    assert rings[0][1] != pytest.approx(rings[1][1])
    box = page.locator(".of-run[data-view=plane] .points path.point").nth(2).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "old => document.querySelector('#plane-reader .prompt').textContent != old", arg=text
    )
    known = {*opened.run.texts["harmful"], *opened.run.texts["harmless"]}
    assert page.locator("#plane-reader .prompt").inner_text() in known


def test_downloads_follow_the_state(home, opened):
    page = ready(home)
    page.locator("#layer-5").click()
    table = opened.run.tables["spectra"]
    rows = table[table["layer"] == 5].to_csv(index=False).encode()
    for suffix, start in {"csv": rows, "png": b"\x89PNG", "svg": b"<?xml"}.items():
        with page.expect_download() as caught:
            page.locator(f"#view-spectra a.export[href*='.{suffix}']").click()
        assert Path(caught.value.path()).read_bytes().startswith(start)
        assert caught.value.suggested_filename == f"run-spectra.{suffix}"


def live_answers(page):
    return page.locator("#live-answers blockquote").all_inner_texts()


def live_score(page, column):
    return page.locator("#live-tokens tfoot tr").first.locator("td").nth(column).inner_text()


def live_done(page):
    page.locator("#view-live").scroll_into_view_if_needed()
    page.wait_for_function(
        "() => document.querySelector('#view-live').getAttribute('aria-busy') == 'false'"
        " && document.querySelectorAll('#live-answers article').length == 3"
    )


def test_live_edits_change_with_the_slider_and_leave_the_model_as_it_was(home):
    page = ready(home)
    live_done(page)
    before = live_score(page, 0), live_score(page, 1)
    second = "document.querySelectorAll('#live-tokens tfoot tr td')[1].textContent"
    page.locator("#live-strength").fill("0")
    page.wait_for_function(f"old => {second} != old", arg=before[1])
    live_done(page)
    assert live_score(page, 0) == live_score(page, 1) == before[0]
    assert len(set(live_answers(page))) == 1
    page.locator("#live-strength").fill("1")
    page.wait_for_function(f"old => {second} == old", arg=before[1])


def test_further_edits_have_their_own_columns_and_every_answer_its_tokens(home):
    page = ready(home)
    live_done(page)
    page.locator("#live-further > summary").click()
    page.get_by_label("Mean shift", exact=True).check()
    page.get_by_label("Also apply all edits together").check()
    page.wait_for_function(
        "() => document.querySelectorAll('#live-answers article').length == 5"
        " && document.querySelectorAll('#live-tokens thead th').length == 6"
    )
    heads = page.locator("#live-tokens thead th").all_inner_texts()
    assert [head.strip() for head in heads[-2:]] == ["Mean shift", "All edits together"]
    last = page.locator("#live-answers article").last
    last.get_by_text("Token by token").click()
    assert last.locator("caption").inner_text() == "All edits together, in nats"
    assert last.locator("tbody tr").count() >= 1
    assert overflow(page) == 0
    page.get_by_label("Mean shift", exact=True).uncheck()
    page.get_by_label("Also apply all edits together").uncheck()
    live_done(page)


def test_a_click_on_the_map_of_layers_and_tokens_chooses_what_the_other_views_show(home, opened):
    page = ready(home)
    node = drawn(page, "interchange")
    plot = node.locator(".nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    layers = sorted({*map(int, opened.run.tables["interchange"]["layer"])})
    x = box["x"] + box["width"] * 0.5 / len(opened.sites)  # the first token
    y = box["y"] + box["height"] * (1 - (layers.index(5) + 0.5) / len(layers))
    page.mouse.move(x - 2, y)
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    wait_for_layers(page, "5")
    assert asked_for(page)["site"] == opened.sites[0]
    wait_for_note(page, f"Layer 5, token {opened.sites[0]}", "interchange")
    for view in ("readout", "contributions"):
        drawn(page, view)
        wait_for_note(page, "ayer 5", view)
    page.locator("#site").select_option(opened.sites[-1])
    wait_for_note(page, f"token {opened.sites[-1]}", "interchange")


@pytest.mark.trust
def test_edits_and_measures_are_chosen_and_the_link_restores_all_that_there_is(visit, home, address):
    page = ready(home)
    page.locator("#layer-5").click()
    page.locator("#k").select_option("pca_ot:1")
    page.locator("#by").select_option("rfa")
    page.locator("#measure").select_option("refusal_score/harmful")
    page.locator("#tokens").select_option("last")
    page.locator("#strength").fill("0.5")
    wanted = {
        "layers": "5", "ot": "pca_ot:1", "by": "rfa", "measure": "refusal_score/harmful", "strength": "0.5",
        "tokens": "last", "site": "-1",
    }  # fmt: skip
    page.wait_for_function("() => location.search.includes('strength=0.5')")
    assert asked_for(page) == wanted
    wait_for_note(page, "not last", "depth")
    again = ready(visit(page.url))
    assert asked_for(again) == wanted
    assert again.locator("#k").input_value() == "pca_ot:1"
    assert again.locator("#strength").input_value() == "0.5"
    titles = drawn(again, "plane").locator(".infolayer .annotation").all_text_contents()
    assert sorted(titles) == ["PCA-OT (k = 1)", "RFA (every block)"]
    link = again.locator("#view-plane a.permalink").get_attribute("href")
    assert link.endswith("#view-plane")
    assert "ot=pca_ot:1" in link
    other = visit(address + "?layers=99,x&ot=nothing&strength=NaN&tokens=%3Cb%3E&measure=__proto__")
    fallen = asked_for(ready(other))
    assert fallen["layers"] in map(str, LAYERS)
    assert fallen["ot"].startswith("pca_ot")
    assert (fallen["strength"], fallen["tokens"]) == ("1", "auto")


def test_script_in_a_prompt_in_an_answer_in_tokens_and_in_trouble_is_text(home, monkeypatch):
    """Whatever a model says: its answer, its tokens, and errors that quote them."""
    said = HOSTILE + LINK
    column = NextToken((0.5,), 1.0, 0.0)

    def fails(*_):
        raise PromptError(said)

    monkeypatch.setattr(LiveModel, "answers", lambda *_: [Answer(said, True, False)] * 3)
    monkeypatch.setattr(LiveModel, "next_tokens", lambda *_: ([said], [True], [column] * 3))
    page = ready(home)
    page.locator("#live-prompt").fill(LINK)
    page.locator("#live-answers blockquote").get_by_text(said).first.wait_for()
    live_done(page)
    assert live_answers(page) == [said] * 3
    assert page.locator("#live-tokens tbody code").inner_text() == said
    monkeypatch.setattr(LiveModel, "answers", fails)
    page.locator("#live-prompt").fill(said)
    page.locator("#live-answers .missing").wait_for()
    assert page.locator("#live-answers .missing").inner_text() == said
    assert harmless(page)


def test_a_hostile_unfinished_run_without_model_is_text_and_says_what_is_missing(
    visit, from_tables, tmp_path
):
    """Plotly interprets some HTML in titles and hover labels, and Dash inserts the page title unescaped."""
    tables = generators_tables.tables()
    sweep, geometry = tables["localization"], tables["geometry"]
    sweep.loc[sweep["method"] == "ace", "method"] = HOSTILE
    geometry["unit"] = tables["spectra"]["unit"] = LINK
    geometry["quantity"] = geometry["quantity"].replace(geometry["quantity"].iloc[-1], LINK)
    del tables["cosines"]
    run = from_tables(tables, finished=False).rename(tmp_path / "<title><script>window.hacked=1<")
    with served(run) as url:
        page = ready(visit(f"{url}?by={quote(HOSTILE)}&measure=geometry/{quote(LINK)}"))
        assert page.title() == f"ot_lens: {run.name}"
        assert page.locator("#by").input_value() == HOSTILE
        drawn(page, "methods")
        for view in ("depth", "distances", "spectra"):
            figure = drawn(page, view).locator(".js-plotly-plot")
            assert figure.locator("a[*|href*=javascript], a[href]").count() == 0
            assert "<a href=" in figure.locator(".ytitle").first.text_content()
        assert "unfinished" in page.locator(".warning").first.inner_text()
        page.locator("#view-cosines").scroll_into_view_if_needed()
        page.locator("#view-cosines .missing:visible").wait_for()
        assert "cosines" in page.locator("#view-cosines .missing").inner_text()
        assert "--model" in page.locator("#view-live").inner_text()
        assert page.locator("#live-prompt").count() == 0
        assert harmless(page)
        page.close()  # before the server stops


def test_two_runs_are_shown_side_by_side(visit, finished_run, copied_run):
    with served(finished_run, copied_run) as url:
        page = visit(url)
        names = [drawn(page, "plane", run).locator("h3").inner_text() for run in (0, 1)]
        assert names == [str(finished_run), str(copied_run)]
        page.locator("#layer-2").click()
        for run in (0, 1):
            drawn(page, "spectra", run)
        wait_for_note(page, "Layer 2.")
        assert overflow(page) == 0
        page.close()  # before the server stops


@pytest.mark.trust
def test_a_phone_shows_one_column_in_the_colours_of_the_system_or_of_the_button(visit, address):
    page = ready(visit(address, **PHONE, color_scheme="dark"))
    for name in ("localization", "spectra", "cosines"):
        drawn(page, name)
    live_done(page)
    assert overflow(page) == 0
    assert all(card.bounding_box()["width"] <= 390 for card in page.locator("main > section").all())
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('.of-run[data-view=plane] .xtick text').style.fill"
    dark = page.evaluate(ground), page.evaluate(ink)
    page.get_by_role("button", name="Switch to light colours").click()
    page.wait_for_function(f"old => {ink} != old", arg=dark[1])
    assert page.evaluate(ground) != dark[0]
    page.reload()
    ready(page)
    assert page.evaluate(ground) != dark[0]
