"""longview index and find: a folder is made searchable, and moments come out as table, JSON, sheet and clips."""

from __future__ import annotations

import re

import av
import pytest
from PIL import Image

pytest.importorskip("lancedb", reason="the extra index is not installed")

from longview.world import Picture, Thing
from longview.world.needle import NeedleVideo, Shot
from longview.world.questions import Question
from longview.world.render import write_needle_video, write_picture

STAR, CIRCLE = Thing("red", "star", "large", 0.5, 0.5), Thing("blue", "circle", "large", 0.2, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A film of a circle for six seconds, a star for three, the circle again; and a picture of the star."""
    films = tmp_path_factory.mktemp("films")
    shots = tuple(Shot(Picture((thing,)), seconds) for thing, seconds in ((CIRCLE, 6), (STAR, 3), (CIRCLE, 6)))
    write_needle_video(NeedleVideo(shots, 1, Question("colour", "What colour is the star?", "red")), films / "film.mp4")
    write_picture(Picture((STAR,)), films / "star.png")
    return films


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made") / "index"


@pytest.fixture
def index(longview, folder, made):
    """Its index; brought up to date for each test, which reads nothing again."""
    ran = longview("index", folder, "--output", made, "--similarity", "demo-siglip")
    assert ran.code == 0
    assert ran.out in (f"2 read; 4 vectors in {made}\n", f"2 unchanged; 4 vectors in {made}\n")
    return made


def test_a_text_finds_the_moment(longview, index, folder):
    ran = longview("find", "a red star", index, "--top", 2, "--json")
    star, moment = ran.json["found"]
    if star["kind"] == "moment":
        star, moment = moment, star
    assert (star["path"], star["kind"]) == (str(folder / "star.png"), "picture")
    assert (moment["path"], moment["begin"], moment["end"]) == (str(folder / "film.mp4"), 6, 9)
    table = longview("find", "a red star", index, "--top", 2)
    assert re.search(r"film\.mp4 +0:06–0:09 +0\.\d{3}", table.out)


def test_a_picture_finds_what_is_like_it(longview, index, folder):
    found = longview("find", "--image", folder / "star.png", index, "--json").json["found"]
    assert (found[0]["path"], round(found[0]["score"], 2)) == (str(folder / "star.png"), 1)


def test_sheets_and_clips_are_written(longview, index, tmp_path):
    sheets = [tmp_path / "found.html", tmp_path / "found.png"]
    ran = longview(
        "find", "a red star", index, "--out", sheets[0], "--out", sheets[1], "--clips", tmp_path / "clips", "--top", 2
    )
    assert ran.code == 0
    page = sheets[0].read_text()
    assert page.count("<figure>") == 2
    assert "film.mp4  0:06–0:09" in page
    assert "http" not in page
    assert Image.open(sheets[1]).size[0] > 1000
    (clip,) = (tmp_path / "clips").iterdir()
    with av.open(str(clip)) as opened:
        frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    assert any(frame[168, 168, 0] > 150 > frame[168, 168, 2] for frame in frames), "the star is red"


def test_wrong_uses_are_told_in_a_line(refused, index, folder, tmp_path):
    small = "--similarity", "demo-siglip"
    for arguments, reason in [
        (("find", "x", tmp_path), "is no index; make one with"),
        (("find", index), "expected a text and an index"),
        (("find", " ", index), "nothing to look for"),
        (("find", "x", index, "--out", "sheet.gif"), "written as .html or .png"),
        (("find", "x", index, "--image", tmp_path / "no.png"), "no.png"),
        (("find", "x", index, "--top", 0), "top"),
        (("index", tmp_path / "gone", "--output", tmp_path / "new", *small), "does not exist"),
        (("index", folder, "--output", index, "--rate", 2), "was begun with rate 1.0, not 2.0"),
    ]:
        assert reason in refused(*arguments)


def test_a_file_that_cannot_be_read_is_told_and_the_exit_code_says_so(longview, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0nothing")
    ran = longview("index", tmp_path, "--output", tmp_path / "made", "--similarity", "demo-siglip", "--json")
    assert ran.code == 3
    assert list(ran.json["failed"]) == [str(tmp_path / "broken.jpg")]


def test_a_question_is_answered_with_moments_and_told_what_it_rests_on(longview, index):
    asked = ("ask", "--index", index, "What colour is the star?", "--top", 2)
    plain = longview(*asked, "--json").json
    assert [piece["kind"] for piece in plain["knowledge"]] == ["moment", "moment"]
    assert (plain["knowledge"][0]["begin"], plain["knowledge"][0]["end"]) == (6, 9)
    assert all(piece["change"] is not None for piece in plain["knowledge"])
    told = longview(*asked)
    assert told.out.strip() == plain["text"]
    assert re.search(r"knowledge 1: \S+film\.mp4 0:06–0:09 \(score 0\.\d+, [+-]\d+\.\d\d nats without it", told.err)
    unchecked = longview(*asked, "--no-check", "--json").json
    assert [piece["change"] for piece in unchecked["knowledge"]] == [None, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--knowledge", "a", "--index", "b"), "give one of them"),
        (("--top", "3"), "--top is of --knowledge and --index; add one of them"),
        (("--no-check",), "--no-check is of --knowledge and --index"),
        (("--index", "nowhere"), "nowhere"),
        (("--index", "a", "--top", "0"), "top is 0"),
        (("--index", "a", "--ocr"), "--ocr and --gen do not go with"),
    ],
)
def test_options_of_retrieval_that_mean_nothing_are_one_line(longview, options, said):
    ran = longview("ask", "What?", *options)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
