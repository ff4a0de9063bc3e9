"""The page of evidence, driven by a browser: what is pointed at, or chosen by keyboard, is what is drawn."""

from __future__ import annotations

import pytest
from showing import CELLS, PEAKS, report

from longview.evidence.report import write

pytestmark = pytest.mark.browser

PEAK = """number => {
  const canvas = document.querySelector(`.card[data-picture="${number}"] canvas[data-layer=heat]`);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const opacity = [...Array(canvas.width * canvas.height).keys()].map(place => data[4 * place + 3]);
  const place = opacity.indexOf(Math.max(...opacity));
  return [canvas.height, canvas.width, Math.floor(place / canvas.width), place % canvas.width];
}"""


@pytest.fixture
def shown(browser, tmp_path):
    """Opens a page of reports; yields a function, whose keywords are those of a browser's context."""
    contexts = []

    def opened(*reports, **settings):
        write(tmp_path / "why.html", reports)
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.mistakes, page.asked = [], []
        page.on("pageerror", lambda error: page.mistakes.append(str(error)))
        page.on("console", lambda line: page.mistakes.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((tmp_path / "why.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


def test_each_token_shows_its_own_map_when_it_is_pointed_at_or_chosen_by_keyboard(shown):
    page = shown(report(frames=2), viewport={"width": 1280, "height": 1600})  # all of it is in view
    tokens = page.get_by_role("radio")
    assert tokens.count() == 1 + len(PEAKS)
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.getAttribute('role')") != "radio":
        page.keyboard.press("Tab")
    for number, peak in enumerate(PEAKS, 1):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.dataset.token") == str(number)
        assert tokens.nth(number).get_attribute("aria-checked") == "true"
        for picture in (1, 2, 3, 4):
            assert page.evaluate(PEAK, picture) == [*CELLS, *peak]
    tokens.nth(1).hover()
    assert page.evaluate(PEAK, 1)[2:] == list(PEAKS[0])
    assert "“red”" in page.locator(".now").inner_text()
    page.locator("h1").hover()
    assert page.evaluate(PEAK, 1)[2:] == list(PEAKS[2]), "the chosen one comes back"
    page.keyboard.press("Home")
    assert tokens.nth(0).get_attribute("aria-checked") == "true"
    assert page.mistakes == []
    assert not [address for address in page.asked if not address.startswith(("file:", "data:"))]


def test_layers_are_switched_and_a_visual_word_has_its_colour_on_every_picture(shown):
    page = shown(report(family="words"))
    heat = page.locator('.card canvas[data-layer="heat"]').first
    assert heat.is_visible()
    page.get_by_label("Heat map", exact=True).uncheck()
    assert not heat.is_visible()
    colours = page.locator('.word[data-word="1234"]').evaluate_all(
        "chips => chips.map(chip => getComputedStyle(chip.querySelector('i')).backgroundColor)"
    )
    assert len(colours) == 3
    assert len(set(colours)) == 1
    page.locator('.word[data-word="1234"]').first.click()
    assert page.get_by_label("Visual words", exact=True).first.is_checked()
    drawn = page.evaluate(
        "() => [...document.querySelectorAll('.card canvas[data-layer=words]')].map(canvas => {"
        " const [wide, high] = [canvas.width, canvas.height], context = canvas.getContext('2d');"
        " const at = (x, y) => [...context.getImageData(x * wide, y * high, 1, 1).data];"
        " return [at(.2, .75), at(.2, .25)] })"
    )
    assert drawn[0] == drawn[1]
    (marked, other) = drawn[0]
    assert marked[3] > 5 * other[3] > 0, "the third patch has the word"


def test_mined_windows_are_drawn_at_their_place(shown):
    page = shown(report(family="mined"))
    page.get_by_label("Mined windows").check()
    opacity = page.evaluate(
        "() => { const canvas = document.querySelector('canvas[data-layer=mined]'), found = [];"
        " for (const [x, y] of [[34, 23], [41, 23], [20, 10]]) found.push(canvas.getContext('2d')"
        ".getImageData(x / 60 * canvas.width, y / 40 * canvas.height, 1, 1).data[3]); return found }"
    )
    assert opacity[0] > 3 * opacity[1] > opacity[2] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_two_answers_below_one_another(shown, scheme):
    page = shown(report(frames=40), report(family="words"), viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    first, second = (each.bounding_box() for each in page.locator("article").all())
    assert first["y"] + first["height"] <= second["y"]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert dark == (scheme == "dark")
    page.get_by_text("18 pictures with lower shares").click()
    assert page.locator("details .card").first.is_visible()
    assert page.mistakes == []
