"""longview frames: the choice as text, JSON and contact sheets."""

from __future__ import annotations

import pytest
from PIL import Image

import longview as library
from longview.world import Picture, Thing
from longview.world.needle import NeedleVideo, Shot
from longview.world.questions import Question
from longview.world.render import write_needle_video

THINGS = {"star": Thing("red", "star", "large", 0.5, 0.5), "circle": Thing("blue", "circle", "large", 0.2, 0.5)}


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """Twenty seconds of a circle, two of a star, eighteen of a circle again."""
    shots = [Shot(Picture((THINGS[name],)), length) for name, length in (("circle", 20), ("star", 2), ("circle", 18))]
    question = Question("colour", "What colour is the star?", "red")
    return write_needle_video(NeedleVideo(tuple(shots), 1, question), tmp_path_factory.mktemp("films") / "film.mp4")


def test_mdp3_finds_the_moment_that_the_question_is_about(longview, film):
    ran = longview("frames", film, "What colour is the star?", "--select", "mdp3", "--frames", 2, "--json")
    found = ran.json
    assert ran.code == 0
    assert found["select"] == "mdp3"
    assert any(20 <= frame["seconds"] < 22 for frame in found["frames"])
    assert len(found["candidates"]) == 40
    nearest = max(found["candidates"], key=lambda candidate: candidate["relevance"])
    assert 20 <= nearest["seconds"] < 22
    near = {candidate["index"]: candidate["relevance"] for candidate in found["candidates"]}
    assert all(frame["relevance"] == near[frame["index"]] for frame in found["frames"])


def test_ask_uses_the_frames_that_frames_shows(longview, film):
    options = ["What colour is the star?", "--select", "mdp3", "--frames", 4, "--candidates", 20]
    shown = longview("frames", film, *options, "--json").json
    answer = longview("ask", film, *options, "--json").json
    assert [frame["index"] for frame in answer["frames"]] == [frame["index"] for frame in shown["frames"]]
    assert answer["settings"]["media"] == {"select": "mdp3", "frames": 4, "candidates": 20}


def test_the_receipt_says_who_chose_and_when(longview, film):
    ran = longview("ask", film, "What colour is the star?", "--select", "mdp3", "--frames", 2)
    assert "film.mp4, 336×336, 2 frames at " in ran.err
    assert " s, chosen by mdp3\n" in ran.err


def test_sheets_are_written_as_page_and_picture(longview, film, tmp_path):
    page, picture = tmp_path / "sheet.html", tmp_path / "sheet.png"
    ran = longview(
        "frames", film, "What colour is the star?", "--select", "mdp3", "--frames", 3, "--out", page, "--out", picture
    )
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "film.mp4 · 336×336 · 0:40.0 · 3 of 80 frames, chosen by mdp3 among 40"
    assert ran.out.splitlines()[1].split() == ["time", "frame", "relevance"]
    assert [len(line.split()) for line in ran.out.splitlines()[2:]] == [3, 3, 3]
    assert len({len(line) for line in ran.out.splitlines()[1:]}) == 1, "columns end where their heads do"
    assert f"wrote {page}\nwrote {picture}\n" in ran.err
    assert page.read_text().count("<figure") == 3
    assert Image.open(picture).format == "PNG"


def test_another_sampler_needs_no_question_and_gets_a_curve_with_one(longview, film):
    plain = longview("frames", film, "--select", "uniform", "--frames", 4, "--json").json
    assert plain["candidates"] == []
    assert plain["frames"][0] == {"index": 10, "seconds": 5.0, "relevance": None}
    asked = longview("frames", film, "What colour is the star?", "--select", "uniform", "--frames", 4, "--json").json
    assert [frame["index"] for frame in asked["frames"]] == [frame["index"] for frame in plain["frames"]]
    assert all(frame["relevance"] for frame in asked["frames"])
    assert len(asked["candidates"]) == 40


def test_left_alone_the_frames_are_those_of_the_models_family(longview, film, random_model):
    shown = longview("frames", film, "--model", random_model, "--json").json
    assert shown["select"] == "owl3"
    answer = longview("ask", "--model", random_model, film, "What?", "--max-tokens", 1, "--json").json
    assert [frame["index"] for frame in shown["frames"]] == [frame["index"] for frame in answer["frames"]]


@pytest.mark.parametrize("model", ["demo-owl3", "demo-ovis2", "demo-mgm"])
def test_each_embedded_model_uses_the_frames_that_are_shown(longview, film, model):
    shown = longview("frames", film, "--model", model, "--json").json
    answer = longview("ask", "--model", model, film, "What?", "--max-tokens", 1, "--json").json
    assert [frame["index"] for frame in shown["frames"]] == [frame["index"] for frame in answer["frames"]]


def test_no_checkpoint_is_fetched_for_a_curve_alone(longview, film, random_model):
    ran = longview("frames", film, "What?", "--model", random_model, "--frames", 2)
    assert ran.code == 0
    assert "--similarity FOLDER" in ran.err


def test_chat_chooses_by_what_was_asked(longview, film):
    ran = longview("chat", film, "--select", "mdp3", "--frames", 2, "--json", stdin="What colour is the star?\n")
    assert any(20 <= frame["seconds"] < 22 for frame in ran.json["frames"])


def test_a_second_question_about_a_film_decodes_and_encodes_no_candidate(film):
    engine = library.load("demo")
    told: list[str] = []
    encoded: list[int] = []
    engine.similarity.model.vision_model.register_forward_pre_hook(lambda *_: encoded.append(1))
    for number, question in enumerate(("What colour is the star?", "Where is the circle?")):
        asked = [library.ask(question, library.video(film))]
        engine.answer(
            asked, media={"select": "mdp3", "frames": 2}, max_tokens=1, progress=lambda *step: told.append(step[2])
        )
        assert told.count("looking through film.mp4") == 40
        assert len(encoded) == 3, number


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["FILM", "--select", "mdp3"], "add a question"),
        (["FILM", " ", "--select", "mdp3"], "the question is empty"),
        (["FILM", "What?", "--select", "mdp3", "--frames", "9", "--candidates", "8"], "frames is 9"),
        (["FILM", "What?", "--select", "mdp3", "--similarity", "./nowhere"], "--similarity FOLDER"),
        (["FILM", "What?", "--select", "mdp3", "--similarity", "demo"], "not 'siglip'"),
        (["FILM", "What?", "--select", "mdp3", "--model", "RANDOM"], "--similarity FOLDER"),
        (["FILM", "What?", "--out", "sheet.gif"], ".html or .png"),
        (["FILM", "What?", "--out", "/nowhere/sheet.html"], "no folder"),
        (["FILM", "--similarity", "demo-siglip"], "add a question"),
        (["FILM", "What?", "--device", "tpu"], "unknown device"),
        (["FILM", "What?", "--candidates", "3"], "means nothing without select"),
        (["PICTURE", "What?", "--select", "mdp3"], "is a picture"),
        (["nowhere.mp4", "What?"], "nowhere.mp4"),
    ],
)
def test_what_cannot_be_shown_is_one_line(refused, film, media, random_model, arguments, complaint):
    names = {"FILM": film, "PICTURE": media / "red.jpg", "RANDOM": random_model}
    assert complaint in refused("frames", *(names.get(argument, argument) for argument in arguments))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["PICTURE", "What?", "--select", "mdp3"], "choose frames of a video, and none is given"),
        (["FILM", "What?", "--similarity", "demo-siglip"], "used by --select mdp3 only"),
        (["FILM", "What?", "--select", "mdp3", "--similarity", "./nowhere"], "--similarity FOLDER"),
        (["FILM", "What?", "--select", "mdp3", "--model", "RANDOM"], "google/siglip-so400m-patch14-384"),
        (["FILM", "What?", "--select", "uniform", "--candidates", "9"], "candidates means nothing"),
    ],
)
def test_ask_refuses_options_that_nothing_would_use(refused, film, media, random_model, arguments, complaint):
    names = {"FILM": film, "PICTURE": media / "red.jpg", "RANDOM": random_model}
    assert complaint in refused("ask", *(names.get(argument, argument) for argument in arguments))
