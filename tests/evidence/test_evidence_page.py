"""The page and the plot of evidence: all that was constructed is there, and nothing else is done with it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from showing import BOX, CELLS, HOSTILE, PEAKS, SENTENCES, SIZE, TOKENS, WORDS, report

from longview.errors import RequestError
from longview.evidence import plot
from longview.evidence.page import html
from longview.evidence.pictures import LARGE, SMALL, jpeg, jpegs
from longview.evidence.report import views_of, write
from longview.evidence.view import MOST_DETAILED, MOST_TOKENS, View, ramp
from longview.requests import Limits

MOST_BYTES = 12 << 20
"""Of a page, as its module says."""


class Page(HTMLParser):
    """The elements of a page, with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict]:
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]

    @property
    def data(self) -> dict:
        (text,) = [text for text in self.texts if text.startswith('{"ramp"')]
        return json.loads(text)


def page_of(*reports) -> tuple[str, Page]:
    text = html(views_of(reports, Limits()))
    return text, Page(text)


@pytest.mark.parametrize("family", ["", "words", "mined"])
def test_a_page_has_every_picture_token_and_detail(family):
    made = report(frames=3, family=family)
    text, page = page_of(made)
    (view,) = page.data["views"]
    assert view["tokens"] == list(TOKENS)
    assert [each["number"] for each in view["pictures"]] == [1, 2, 3, 4, 5]
    for packed, picture in zip(view["pictures"], made.answer.evidence.pictures, strict=True):
        cells = np.frombuffer(base64.b64decode(packed["maps"]), np.uint8).reshape(4, *CELLS)
        maps = cells * np.array(packed["units"])[:, None, None]
        assert maps[0] == pytest.approx(picture.map, abs=float(picture.map.max()) / 400)
        for drawn, constructed, peak in zip(maps[1:], picture.maps, PEAKS, strict=True):
            assert drawn == pytest.approx(constructed, abs=float(constructed.max()) / 400)
            assert np.unravel_index(drawn.argmax(), CELLS) == peak
        assert packed["shares"] == pytest.approx([picture.share, *picture.shares], abs=6e-5)
        assert packed["size"] == list(SIZE)
        assert packed.get("words") == (WORDS if family == "words" else None)
        mined = [{"box": list(BOX), "weights": [[0.7, 0.1], [0.1, 0.1]]}] if family == "mined" else None
        assert packed.get("mined") == mined
    sources = [each["src"] for each in page.all("img")]
    assert len(sources) == 5
    opened = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    assert {each.size for each in opened} == {SIZE}
    assert [each["data-token"] for each in page.all("button", role="radio")] == ["0", "1", "2", "3"]
    layers = {"heat", *([family] if family else [])}
    assert {each["data-layer"] for each in page.all("input", type="checkbox") if "data-layer" in each} == layers
    chips = {each["data-word"] for each in page.all("button", **{"class": "word"})}
    assert chips == ({"7", "9", "1234"} if family == "words" else set())
    assert ("pictures 1 and 2" in text) == (family == "words")


def test_the_check_stands_beside_every_picture_and_says_where_it_contradicts():
    text, page = page_of(report(frames=1))
    for number, change in ((1, "−0.5"), (2, "−1.0"), (3, "−1.5")):
        said = f"{change} nats without it: the answer becomes clearly less likely; −1.5 ± 0.7 without one at random"
        assert said in page.texts, number
    assert SENTENCES[0] in page.texts
    assert f'role="note">{SENTENCES[1]}' in text
    assert text.count("Attention is not an explanation by itself") == 1
    _, unchecked = page_of(report(checked=False))
    assert "The deletion check was not made." in unchecked.texts


def test_shares_and_relevance_are_on_one_axis():
    made = report(frames=3, pictures=0)
    text, page = page_of(made)
    bars = [each for each in page.all("a") if "data-picture" in each]
    assert [each["style"] for each in bars] == ["left:0.00%", "left:25.00%", "left:50.00%"]
    (line,) = page.all("polyline", **{"class": "line"})
    places = [float(point.partition(",")[0]) for point in line["points"].split()]
    assert places == [0, 250, 500, 750, 1000]
    picks = page.all("i", **{"class": "pick"})
    assert [each["style"].partition(";")[0] for each in picks] == ["left:0.00%", "left:25.00%", "left:50.00%"]
    heights = [float(found) for found in re.findall(r'class="share" style="height:([\d.]+)%"', text)]
    shares = [picture.share for picture in made.answer.evidence.pictures]
    assert heights == pytest.approx([100 * share / shares[0] for share in shares], abs=0.1)


def test_hostile_names_and_texts_stay_texts_and_nothing_is_fetched():
    text, page = page_of(report(frames=2, family="words"), report(family="mined"))
    assert HOSTILE not in text
    assert HOSTILE in page.texts
    assert len(page.all("script")) == 2
    assert (
        re.findall(r"(?:https?:)?//[\w.]+", re.sub(r'base64,[^"]*|"maps":"[^"]*"', "", text.split("<script>")[0])) == []
    )
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base")
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert "default-src 'none'" in page.all("meta", http_equiv="Content-Security-Policy")[0]["content"]


def test_two_answers_stand_side_by_side():
    first, second = report(frames=2), report(family="words")
    _, page = page_of(report(frames=3, pictures=0), report(frames=8, pictures=0))
    (_, third, *_), (_, same, *_) = (
        [each["style"] for each in page.all("a") if each["href"].startswith(f"#v{n}-")] for n in (0, 1)
    )
    assert third == same == "left:11.11%", "a second is at the same place in both"
    _, page = page_of(first, second)
    assert len(page.all("article")) == len(page.data["views"]) == 2
    assert [len(view["pictures"]) for view in page.data["views"]] == [4, 2]
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))


def test_many_frames_are_shown_small_and_the_page_is_bounded():
    many = 400
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8))
    large, small = jpeg(noisy, *LARGE), jpeg(noisy, *SMALL)
    assert (len(large) <= LARGE[1], len(small) <= SMALL[1]) == (True, True)
    made = report(frames=many, pictures=0, tokens=TOKENS * 36)  # as many numbers as the engine gives
    pictures = {number: large if number <= MOST_DETAILED else small for number in range(1, many + 1)}
    view = View(made.as_dict(), pictures)
    text = html([view])
    assert len(text) < MOST_BYTES
    page = Page(text)
    assert len(page.all("figure", **{"class": "card"})) == len(page.all("img", loading="lazy")) == many
    assert [picture.number for picture in view.detailed] == list(range(1, MOST_DETAILED + 1))
    assert len(page.all("details")) == 1
    assert f"{many - MOST_DETAILED} pictures with lower shares" in page.texts
    assert "it was not left out alone" in page.texts


def test_the_first_tokens_of_a_long_answer_have_maps():
    text, page = page_of(report(pictures=1, tokens=TOKENS * 200))
    assert f"The first {MOST_TOKENS} tokens of 600." in page.texts
    assert text.count('role="radio"') == len(page.data["views"][0]["pictures"][0]["units"]) == 1 + MOST_TOKENS


def test_the_frames_that_were_chosen_are_those_that_are_shown():
    made = report(frames=2)
    found = jpegs(made.messages, made.answer.evidence)
    parts = made.messages[0].media
    expected = [parts[0].source, parts[1].source, parts[2].source[0], parts[2].source[3]]
    for number in range(1, 5):
        drawn = np.asarray(Image.open(io.BytesIO(found[number])), int)
        differences = [np.abs(drawn - np.asarray(other, int)).mean() for other in expected]
        assert int(np.argmin(differences)) == number - 1


def test_the_highest_cell_of_a_plot_is_where_it_was_constructed():
    made = report(frames=2, pictures=1)
    blank = jpeg(Image.new("RGB", SIZE, "white"), *LARGE)
    view = View(made.as_dict(), dict.fromkeys(range(1, 4), blank))
    figure = plot.draw([view])
    for number in (1, 2, 3):
        drawn = inside(figure, f"picture {number}")
        middles = [
            drawn[int((row + 0.5) / CELLS[0] * len(drawn)), int((column + 0.5) / CELLS[1] * drawn.shape[1])]
            for row in range(CELLS[0])
            for column in range(CELLS[1])
        ]
        redness = np.array(middles) @ [1, -1, -1]
        constructed = made.answer.evidence.pictures[number - 1].map
        assert redness.argmax() == constructed.argmax()
    opened = Image.open(io.BytesIO(plot.png([view, view])))
    opened.load()
    assert opened.width > 1.9 * Image.open(io.BytesIO(plot.png([view]))).width


def inside(figure, label: str) -> np.ndarray:
    """What is drawn within some axes, (H, W, 3)."""
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    (axes,) = [each for each in figure.axes if each.get_label() == label]
    box = axes.get_window_extent()
    left, right, lower, upper = (round(side) for side in (box.x0, box.x1, box.y0, box.y1))
    return drawn[len(drawn) - upper : len(drawn) - lower, left:right]


def test_a_plot_has_words_in_one_colour_each_and_windows_at_their_place():
    blank = dict.fromkeys(range(1, 3), jpeg(Image.new("RGB", SIZE, "white"), *LARGE))
    words = inside(plot.draw([View(report(family="words").as_dict(), blank)]), "words of picture 2")
    high, wide = len(words), words.shape[1]
    patches = [words[high * row // 4, wide * column // 4].tolist() for row in (1, 3) for column in (1, 3)]
    same = [[one == other for other in patches] for one in patches]
    assert same == [[one == other for other in WORDS] for one in WORDS]
    mined = inside(plot.draw([View(report(family="mined").as_dict(), blank)]), "mined of picture 1")
    places = [
        (BOX[0] + (BOX[2] - BOX[0]) * (0.25 + 0.5 * column), BOX[1] + (BOX[3] - BOX[1]) * (0.25 + 0.5 * row))
        for row in (0, 1)
        for column in (0, 1)
    ]
    high, wide = len(mined), mined.shape[1]
    redness = [mined[int(y / SIZE[1] * high), int(x / SIZE[0] * wide), 0] for x, y in places]
    assert redness[0] < 120 < 190 < min(redness[1:])  # of the four, the first is weighed most
    assert mined[int(0.1 * high), int(0.1 * wide)].tolist() == [255, 255, 255]
    labels = [each.get_label() for each in plot.draw([View(report().as_dict(), blank)]).axes]
    assert not any(label.startswith(("words", "mined")) for label in labels)


def test_colours_grow_redder_and_denser():
    table = ramp().astype(int)
    assert table.shape == (256, 4)
    assert table[0, 3] == 0
    assert (np.diff(table[:, 3]) >= 0).all()
    assert (np.diff(table[:, 1]) <= 0).all()


def test_a_file_s_form_is_that_of_its_name(tmp_path):
    made = report()
    for name, start in (("a.html", b"<!doctype html>"), ("b.PNG", b"\x89PNG"), ("c.json", b'{"question"')):
        write(tmp_path / name, [made])
        assert (tmp_path / name).read_bytes().startswith(start)
    assert json.loads((tmp_path / "c.json").read_text())["question"] == f"What? {HOSTILE}"
    write(tmp_path / "c.json", [made, made])
    assert len(json.loads((tmp_path / "c.json").read_text())) == 2
    with pytest.raises(RequestError, match=r"ends in \.html, \.png or \.json"):
        write(tmp_path / "d.pdf", [made])
