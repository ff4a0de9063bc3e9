"""Contact sheets: every chosen frame is on them, they are self-contained, and odd media do not break them."""

from __future__ import annotations

import base64
import io
import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image
from samples import noise

from longview.curves import format_time, ticks
from longview.errors import RequestError
from longview.eval.sheet import LEGEND, Sheet, draw, html, png, write
from longview.media import Frame, Medium, Relevance


def sheet(count: int = 5, question: str | None = "Where is it?", seconds: bool = True, size=(40, 30)) -> Sheet:
    frames = [Frame(noise(n, *size), 10 * n, 5.0 * n if seconds else None) for n in range(count)]
    indices = list(range(0, 10 * count, 5))
    times = [i / 2 for i in indices] if seconds else None
    relevance = Relevance(indices, times, [1 + 0.01 * i for i in indices]) if question else None
    duration, fps = (5.0 * count, 2.0) if seconds else (None, None)
    medium = Medium("video", "film.mp4", frames, *size, 10 * count, duration, fps, "digest", relevance=relevance)
    return Sheet(medium, "mdp3" if question else "uniform", question)


class Page(HTMLParser):
    """What is on a page: every address it names, its pictures and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.pictures: list[Image.Image] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "circle", "line", "polyline", "polygon"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith("#"):
                self.addresses.append(value)
            if name == "src":
                self.pictures.append(Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))))

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_holds_every_frame_with_its_time_and_is_self_contained():
    page = Page(text := html(sheet(5)))
    assert page.open == []
    assert len(page.pictures) == 5
    assert all(picture.size == (40, 30) for picture in page.pictures)
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "http" not in text
    words = " ".join(page.words)
    for label in ("0:00.0", "0:05.0", "0:20.0", "Where is it?", "5 of 50 frames, chosen by mdp3 among 10"):
        assert label in words


def test_the_curve_is_drawn_over_time_with_a_mark_for_each_pick():
    svg = re.search(r"<svg.*</svg>", html(sheet(5)), re.DOTALL)
    drawn = ElementTree.fromstring(svg[0])
    (line,) = [part for part in drawn if part.get("class") == "line"]
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert len(points) == 10
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(points))  # later is to the right, nearer is higher
    circles = list(drawn.iter("circle"))
    assert [(float(c.get("cx")), float(c.get("cy"))) for c in circles] == [points[i] for i in (0, 2, 4, 6, 8)]
    assert {a.get("href") for a in drawn.iter("a")} == {f"#frame-{n}" for n in range(1, 6)}


def test_without_a_question_there_is_no_curve():
    text = html(sheet(3, question=None))
    assert "<svg" not in text
    assert "film.mp4" in text
    assert len(Page(text).pictures) == 3


def test_a_question_is_text_not_markup():
    text = html(sheet(2, question='<script>alert("x")</script> & $x^2$ {braces}'))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "{braces}" in text
    png(sheet(1, question="What costs $5 or $x^2$?"))


@pytest.mark.parametrize(
    "given_sheet", [sheet(), sheet(1), sheet(3, None), sheet(9, seconds=False), sheet(2, size=(30, 90))]
)
def test_the_picture_is_a_png_of_some_size(given_sheet):
    image = Image.open(io.BytesIO(png(given_sheet)))
    assert image.format == "PNG"
    assert image.width == 1320
    assert len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_frames_without_times_are_numbered():
    words = " ".join(Page(html(sheet(3, seconds=False))).words)
    assert "picture 1" in words
    assert "picture 21" in words


def test_a_flat_curve_and_a_single_candidate_can_be_drawn():
    one = sheet(1)
    flat = Relevance([0], [0.0], [1.0])
    medium = Medium(**{**vars(one.medium), "relevance": flat})
    assert "<svg" in html(Sheet(medium, "mdp3", "What?"))
    png(Sheet(medium, "mdp3", "What?"))


def test_large_frames_become_thumbnails():
    (picture,) = Page(html(sheet(1, size=(2000, 1000)))).pictures
    assert picture.size == (480, 240)


def test_files_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(RequestError, match=r"\.html or \.png"):
        write(sheet(1), tmp_path / "sheet.pdf")
    with pytest.raises(RequestError, match="no folder"):
        write(sheet(1), tmp_path / "nowhere" / "sheet.html")
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(RequestError, match="cannot be written"):
        write(sheet(1), tmp_path / "taken.html")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00.0"), (59.96, "1:00.0"), (62.5, "1:02.5"), (3602.5, "1:00:02.5"), (7322, "2:02:02.0")],
)
def test_times_are_formatted_as_players_do(seconds, shown):
    assert format_time(seconds) == shown


@given(st.floats(0, 200_000), st.floats(1, 200_000))
def test_there_are_a_few_round_ticks_for_any_span(begin, length):
    found = ticks(begin, begin + length)
    assert 1 <= len(found) <= 10
    assert begin - 1e-4 <= found[0]
    assert found[-1] <= begin + length + 1e-4


def test_a_clip_from_the_middle_of_a_film_has_ticks_of_its_own():
    assert ticks(3600, 3611) == [3600, 3602, 3604, 3606, 3608, 3610]


LONG = "a film that somebody recorded on a holiday and never cut " * 4


@pytest.mark.parametrize(
    ("count", "name", "question", "begin", "size"),
    [
        (5, "film.mp4", "Where is it?", 0.0, (40, 30)),
        (1, "film.mp4", "Where is it?", 0.0, (40, 30)),
        (5, f"{LONG}.mp4", LONG, 0.0, (40, 30)),
        (5, f"{LONG}.mp4", None, 0.0, (40, 30)),
        (9, "film.mp4", "What costs $5 or $x^2$?" * 8, 36000.0, (30, 200)),
        (4, "film.mp4", "Where is it?", 359990.0, (200, 20)),
    ],
)
def test_labels_neither_collide_nor_leave_the_picture(count, name, question, begin, size):
    plain = sheet(count, question, size=size)
    frames = [Frame(frame.image, frame.index, begin + (frame.seconds or 0)) for frame in plain.medium.frames]
    relevance = plain.medium.relevance
    if relevance is not None:
        relevance = Relevance(relevance.indices, [begin + each for each in relevance.seconds], relevance.values)
    medium = replace(plain.medium, name=name, frames=frames, relevance=relevance)
    figure = draw(Sheet(medium, plain.select, question))
    figure.canvas.draw()
    unseen = [  # ticks beyond the ends of an axis are not drawn
        label
        for axes in figure.axes
        for at, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if not axes.get_ylim()[0] <= at <= axes.get_ylim()[1]
    ]
    drawn = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    labels = [(text.get_text(), text.get_window_extent()) for text in drawn if text not in unseen]
    assert len(labels) >= 2 + count
    for text, box in labels:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (text, box), (other, beside) in combinations(labels, 2):
        assert not box.padded(-1).overlaps(beside.padded(-1)), (text, other)


def test_the_picture_has_the_legend_of_the_page():
    written = " ".join(text.get_text() for text in draw(sheet(3)).findobj(Text))
    for line in LEGEND:
        assert line in written
        assert line in html(sheet(3))
    assert "relevance 1.10" in written
    assert "relevance 1.10" in html(sheet(3))
    assert not any(line in html(sheet(3, None)) for line in LEGEND)


@pytest.mark.parametrize("name", ["sheet.html", "sheet.png"])
def test_a_sheet_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RequestError, match="No space left on device"):
        write(sheet(1), path)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == [name]
