"""Objects are one short line when printed, and HTML with thumbnails in a notebook."""

from __future__ import annotations

import base64
import io
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from samples import noise

import longview
from longview.messages import FrameUsed, Message, Part
from longview.notebook import MAX_SHOWN, SIDE, THUMBNAILS, Thumbnails, spread

EXAMPLES = Path(__file__).parents[1] / "examples"
SHAPES, CLIP = longview.image(EXAMPLES / "shapes.jpg"), longview.video(EXAMPLES / "clip.mp4")


@pytest.fixture(scope="module")
def engine():
    return longview.load("demo", device="cpu")


@pytest.fixture(scope="module")
def answer(engine):
    return engine.answer([longview.ask("What is at the top left of image 1?", SHAPES, CLIP)])


def thumbnails(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


class Tags(HTMLParser):
    """The tags of a text, which must be closed in their order, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        assert not [value for name, value in attrs if name.startswith("on") or (value or "").startswith("http")]
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# ── one line ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (Part("text", text="What?"), "Part('What?')"),
        (Part("text", text="x" * 100_000), "Part('" + "x" * 59 + "…')"),
        (Part("text", text="a\nb"), r"Part('a\nb')"),
        (longview.image("photo.jpg"), "Part(image 'photo.jpg')"),
        (longview.image(Path("photo.jpg")), "Part(image 'photo.jpg')"),
        (
            longview.image("data:image/png;base64," + "A" * 10**6),
            "Part(image 'data:image/png;base64," + "A" * 37 + "…')",
        ),
        (longview.image(b"x" * 12345), "Part(image 12,345 bytes)"),
        (longview.image(noise(1)), "Part(image 40×30 RGB)"),
        (longview.video([noise(1), noise(2)]), "Part(video 2 pictures)"),
        (Part("video"), "Part(video without a source)"),
        (Message.of("user", longview.image("a.jpg"), "\nWhat?"), r"Message(user: image 'a.jpg', '\nWhat?')"),
    ],
)
def test_parts_and_messages_are_printed_in_one_short_line(given, shown):
    assert repr(given) == shown


def test_engines_answers_receipts_and_pieces_are_printed_in_one_short_line(engine, answer):
    assert repr(engine) == "Engine(demo: Owl3Model, 2,176,640 parameters, float32 on cpu)"
    tokens = r"demo: \d+ tokens and 9 pictures → \d+ tokens in \d+\.\d\d s"
    assert re.fullmatch(rf"Receipt\({tokens}\)", repr(answer.receipt))
    assert re.fullmatch(rf"Answer\('{answer.text}', stop; {tokens}\)", repr(answer))
    assert "with warnings" in repr(replace(answer.receipt, warnings=("odd",)))
    *_, last = engine.stream("Hello?", max_tokens=1)
    assert repr(last).count("\n") == 0
    assert len(repr(last)) < 300


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_shows_its_text_and_its_frames(answer):
    html = answer._repr_html_()
    tags = Tags(html)
    assert answer.text in tags.text
    assert "shapes.jpg" in tags.text
    assert "7.00 s" in tags.text
    assert answer.receipt.summary in tags.text
    shown = thumbnails(html)
    assert len(shown) == 9
    assert max(max(image.size) for image in shown) <= SIDE
    red, green, blue = shown[0].convert("RGB").getpixel((SIDE // 2, SIDE // 2))
    assert red > 150 > max(green, blue), "the circle in the centre is red"
    assert len(html) < 60_000


def test_a_second_question_shows_the_frames_that_were_not_decoded_again(engine, answer):
    again = engine.answer([longview.ask("What is at the top left of image 1?", SHAPES, CLIP)])
    assert len(thumbnails(again._repr_html_())) == 9


def test_many_frames_are_shown_by_a_few(engine):
    frames = longview.video([noise(seed) for seed in range(40)])
    html = engine.answer([longview.ask("?", frames)], max_tokens=1)._repr_html_()
    assert len(thumbnails(html)) == MAX_SHOWN
    assert f"{MAX_SHOWN} of 40 frames" in Tags(html).text
    assert spread(40)[0] == 0
    assert len(set(spread(40))) == MAX_SHOWN
    assert spread(3) == [0, 1, 2]


def test_what_names_and_answers_say_is_text(answer):
    evil = "<script>alert('x')</script>\"><img src=http://a.b onerror=x>"
    frame = FrameUsed(0, evil, "video", 3, 1.0, 40, 30, 1)
    receipt = replace(answer.receipt, model=evil, frames=(frame,), warnings=(evil,))
    html = replace(answer, text=evil, receipt=receipt)._repr_html_()
    tags = Tags(html)
    assert tags.names <= {"div", "span", "small", "br", "img"}
    assert tags.text.count(evil) == 4


def test_an_answer_that_was_cut_says_so(answer):
    assert "(length)" in Tags(replace(answer, finish_reason="length")._repr_html_()).text
    assert "(stop)" not in Tags(answer._repr_html_()).text


def test_thumbnails_stay_out_of_plain_data_and_are_optional(answer):
    assert "digests" not in answer.as_dict()
    assert answer.receipt == replace(answer.receipt, digests=())
    bare = replace(answer.receipt, digests=())
    assert thumbnails(bare._repr_html_()) == []
    assert "shapes.jpg" in Tags(bare._repr_html_()).text
    assert pickle.loads(pickle.dumps(answer)) == answer


def test_thumbnails_are_bounded_and_those_that_are_shown_stay():
    kept = Thumbnails(max_frames=2)
    for index in range(2):
        kept.put("a", index, noise(index))
    assert kept.get("a", 0) is not None
    kept.put("a", 2, noise(2))
    assert [kept.get("a", index) is not None for index in range(3)] == [True, False, True]
    for width, height in ((4000, 3000), (2, 400), (5000, 2)):
        kept.put("wide", width, noise(1, width, height))
        assert max(Image.open(io.BytesIO(kept.get("wide", width))).size) == SIDE


def test_a_thumbnail_that_cannot_be_made_harms_no_answer(engine, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(THUMBNAILS, "put", fail)
    found = engine.answer([longview.ask("?", longview.image(noise(77)))], max_tokens=1)
    assert thumbnails(found._repr_html_()) == []
