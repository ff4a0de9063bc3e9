"""The page's search box, driven by a browser: what is found is shown with thumbnails, on a phone, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import noise
from serving import Server, running
from visiting import Visit

pytest.importorskip("lancedb", reason="the extra index is not installed")

from longview.index.index import update_index
from longview.models.similarity import DEMO, Similarity
from longview.world import Picture, Thing
from longview.world.render import write_picture

# a step of its own: a browser, a server and two models beside other tests are too much for two cores
pytestmark = pytest.mark.browser
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("indexed")
    things = folder / "things"
    things.mkdir()
    for number, (colour, shape) in enumerate((("red", "star"), ("blue", "circle"), ("green", "heart"))):
        write_picture(Picture((Thing(colour, shape, "large", 0.5, 0.5),)), things / f"{number}-{shape}.png")
    (things / "clip.mp4").write_bytes((EXAMPLES / "clip.mp4").read_bytes())
    noise(1).save(things / "gone.png")
    text = "The red star is called <b>tea</b>."
    (things / "knowledge.jsonl").write_text(json.dumps({"text": text, "source": "a.org"}))
    update_index(folder / "index", [things], Similarity.open(DEMO), DEMO)
    (things / "gone.png").unlink()
    with running("--index", f"things={folder / 'index'}", page=True) as started:
        yield started


def search(visit: Visit, text: str) -> None:
    visit.page.locator("#lv-search textarea, #lv-search input").fill(text)
    visit.page.keyboard.press("Enter")


@pytest.mark.parametrize(
    "look", [{}, {"viewport": {"width": 390, "height": 844}}, {"color_scheme": "dark"}], ids=["light", "phone", "dark"]
)
def test_what_is_found_is_shown_with_thumbnails(browser, indexed, look):
    visit = Visit(browser, indexed.address, **look)
    visit.tab("Search")
    search(visit, "a red star")
    visit.page.wait_for_selector("#lv-found li")
    cards = visit.page.locator("#lv-found li")
    first = {cards.nth(place).inner_text().split("\n")[-1] for place in range(3)}
    assert "0-star.png" in first
    shown = visit.page.locator("#lv-found img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert shown
    assert all(shown)
    passage = visit.page.locator("#lv-found blockquote")
    assert passage.inner_text() == "The red star is called <b>tea</b>.", "what is written stays text"
    assert visit.page.get_by_text("gone.png is in the index, and no longer there").is_visible()
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert visit.mistakes == []
    visit.context.close()


def test_nothing_to_look_for_is_said(browser, indexed):
    visit = Visit(browser, indexed.address)
    visit.tab("Search")
    search(visit, "  ")
    told = visit.page.locator("#lv-found [role=alert]")
    told.wait_for()
    assert told.inner_text() == "there is nothing to look for; give a text"
    visit.context.close()


def test_a_server_without_indexes_has_no_box_for_it(visit):
    assert visit.page.get_by_role("tab", name="Search").count() == 0
