"""Questions have true answers, and one answer each."""

from __future__ import annotations

import random

import pytest

from longview.world.questions import (
    PICTURE_KINDS,
    ask_about,
    ask_about_clip,
    ask_about_one_of,
    ask_about_picture,
    ask_about_pictures,
    describe,
    vocabulary,
)
from longview.world.scenes import Clip, Picture, Sign, Thing, draw_clip, draw_picture

RED = Thing("red", "circle", "large", 0.16, 0.16)
BLUE = Thing("blue", "square", "small", 0.84, 0.5)
SCENE = Picture((RED, BLUE))


def answers(kind: str, picture: Picture = SCENE, count: int = 4000) -> dict[str, str]:
    rng = random.Random(kind)
    questions = [ask_about_picture(rng, picture, kind) for _ in range(count)]
    return {question.text: question.answer for question in questions}


def test_questions_about_a_known_scene_have_its_true_answers():
    assert answers("colour")["What colour is the circle?"] == "red"
    assert answers("shape")["What shape is the blue thing?"] == "square"
    assert answers("size")["How big is the blue square?"] == "small"
    assert answers("position")["Where is the circle?"] == "top left"
    assert answers("content")["What is on the right?"] == "a small blue square"
    assert answers("relation")["Is the circle left of the square?"] == "yes"
    assert answers("relation")["Is the square above the circle?"] == "no"
    assert answers("existence")["Is there a red circle?"] == "yes"
    assert answers("existence")["Is the circle blue?"] == "no"
    assert answers("count")["How many things are there?"] == "2"
    assert (
        answers("description")["Describe the picture."]
        == "a large red circle at the top left and a small blue square on the right"
    )
    assert answers("reading", Picture((), Sign("stop", 0)))["What does the sign say?"] == "stop"


def test_a_question_never_points_at_two_things():
    twins = Picture((RED, RED.at(0.5, 0.5), BLUE))
    for text, answer in answers("colour", twins).items():
        assert "circle" not in text or answer == "blue" or "the circle" not in text
    assert "What colour is the circle?" not in answers("colour", twins)


def test_an_answer_is_one_of_its_choices():
    rng = random.Random(1)
    for _ in range(800):
        media = [draw_picture(rng) for _ in range(rng.choice((1, 2, 8)))] if rng.random() < 0.7 else [draw_clip(rng)]
        question = ask_about(rng, *media)
        assert not question.choices or question.answer in question.choices, question


def test_every_kind_is_asked_and_has_several_phrasings():
    rng = random.Random(2)
    kinds: dict[str, set[str]] = {}
    for _ in range(3000):
        question = ask_about_picture(rng, draw_picture(rng))
        kinds.setdefault(question.kind, set()).add(question.text)
    assert set(kinds) == set(PICTURE_KINDS) - {"reading"} | {"word", "number"}
    assert min(map(len, kinds.values())) >= 8


def test_the_numbered_picture_is_the_one_that_is_asked_about():
    rng = random.Random(3)
    pictures = [Picture((Thing(colour, "star", "small", 0.5, 0.5),)) for colour in ("red", "green", "blue")]
    for _ in range(200):
        question = ask_about_one_of(rng, pictures, "colour")
        number = next(
            n
            for n, name in enumerate(("1 first", "2 second", "3 third"))
            if any(w in question.text for w in name.split())
        )
        assert question.answer == ("red", "green", "blue")[number]


def test_which_image_has_one_answer():
    rng = random.Random(4)
    for _ in range(100):
        pictures = [draw_picture(rng) for _ in range(4)]
        question = ask_about_pictures(rng, pictures, "which image")
        shown = describe(pictures[int(question.answer) - 1])
        words = [word for word in question.text.rstrip("?").split() if word in shown.split()]
        assert words, (question, shown)


def test_clips_are_asked_about_what_happens_in_them():
    rng = random.Random(5)
    for _ in range(300):
        clip = draw_clip(rng)
        question = ask_about_clip(rng, clip)
        if question.kind == "direction":
            assert question.answer == clip.direction
        if question.kind == "flashes":
            assert question.answer == str(clip.flashes)


def test_impossible_questions_are_refused():
    with pytest.raises(LookupError, match="colour"):
        ask_about_picture(random.Random(0), Picture(()), "colour")
    with pytest.raises(ValueError, match="one clip"):
        ask_about(random.Random(0), Picture(()), Clip("move", (), ()))


def test_the_vocabulary_is_the_same_each_time_and_holds_the_answers():
    words = vocabulary()
    assert words == vocabulary()
    assert {"red", "circle", "left", "yes", "nothing", "stop", "eighth"} <= words


def test_what_a_question_names_stands_where_it_says():
    rng = random.Random(5)
    for _ in range(400):
        picture = draw_picture(rng, print_share=0.2)
        question = ask_about_picture(rng, picture)
        things = {thing.cell: thing for thing in picture.things}
        if question.kind in ("colour", "shape", "size"):
            assert [getattr(things[cell], question.kind) for cell in question.cells] == [question.answer]
        elif question.kind == "count":
            assert str(len(question.cells)) == question.answer
        elif question.kind == "existence":
            assert bool(question.cells) == (question.answer == "yes")
        elif question.kind == "relation":
            assert {*question.cells, *question.other_cells} <= things.keys()
            assert question.cells != question.other_cells
        elif question.kind in ("word", "number", "small print"):
            assert question.cells == picture.sign.cells


def test_the_frames_that_show_what_is_sought_are_those_in_which_it_flashes():
    rng = random.Random(6)
    clips = [draw_clip(rng, event="flash") for _ in range(40)]
    asked = [(clip, ask_about_clip(rng, clip)) for clip in clips]
    flashes = [(clip, question) for clip, question in asked if question.kind == "flashes"]
    assert len(flashes) > 10
    for clip, question in flashes:
        lit = [second for second, frame in enumerate(clip.frames) if clip.subjects[0] in frame.things]
        assert list(question.found_in) == lit
        assert len(lit) == clip.flashes


def test_a_kind_with_a_larger_share_is_asked_more_often():
    rng = random.Random(7)
    pictures = [draw_picture(rng) for _ in range(600)]
    plain, more = (
        sum(ask_about(rng, picture, shares=shares).kind == "count" for picture in pictures)
        for shares in (None, {"count": 5.0})
    )
    assert more > 2 * plain
    several = [ask_about(rng, *pictures[i : i + 2], shares={"how many images": 1e6}) for i in range(0, 40, 2)]
    assert sum(question.kind == "how many images" for question in several) > 10


def test_small_print_is_asked_about_only_where_there_is_some():
    rng = random.Random(8)
    picture = draw_picture(rng, print_share=1.0)
    assert picture.sign.cell is not None
    assert all(thing.cell != picture.sign.cell for thing in picture.things)
    question = ask_about_picture(rng, picture, "reading")
    assert (question.kind, question.answer) == ("small print", picture.sign.text)
    assert f"small print that says {picture.sign.text}" in describe(picture)
