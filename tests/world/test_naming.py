"""What texts name and pictures hold, and films whose needle alone a question fits."""

from __future__ import annotations

import random

import av
import pytest

from longview.world.films import KINDS, NEEDLE_SECONDS, draw_film
from longview.world.naming import all_facts, facts_held, facts_named
from longview.world.questions import ask_about_picture, describe
from longview.world.render import FILM_FPS, render, write_film
from longview.world.scenes import Picture, Sign, Thing, draw_picture, is_held_out

STAR, CIRCLE = Thing("red", "star", "large", 0.2, 0.2), Thing("blue", "circle", "small", 0.8, 0.8)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("How big is the red star?", {"red star"}),
        ("Is the small blue circle left of the large thing?", {"small blue circle", "large thing"}),
        ("Where are the hearts?", {"heart"}),
        ("Count the crosses.", {"cross"}),
        ("What colour is the thing on the left?", set()),
        ("What shape is the pink one?", {"pink thing"}),
        ("What does the sign say?", {"sign"}),
        ("Which number do you see?", {"sign of a number"}),
        ("What word is on the sign?", {"sign of a word"}),
        ("a star and a sign that says STOP", {"star", "sign stop"}),
        ("What is the number of red things?", {"red thing"}),
        ("What happens?", set()),
    ],
)
def test_a_text_names(text, named):
    assert facts_named(text) == named


def test_a_picture_holds_every_way_to_say_what_is_there():
    held = facts_held(Picture((STAR, CIRCLE), Sign("42", 1)))
    assert {"star", "red star", "large star", "large red star", "red thing", "large thing", "sign 42"} <= held
    assert {"red circle", "small star", "thing", "sign of a word"}.isdisjoint(held)
    assert facts_held(Picture(())) == facts_held(Picture((), Sign("42", 1, cell=4))) == frozenset()


def test_questions_and_descriptions_fit_their_own_pictures():
    rng, known = random.Random(0), set(all_facts())
    for _ in range(500):
        picture = draw_picture(rng)
        held = facts_held(picture)
        assert facts_named(describe(picture)) <= held <= known
        question = ask_about_picture(rng, picture)
        assert facts_named(question.text) <= known
        if question.kind not in ("existence", "count"):
            assert facts_named(question.text) <= held, question


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_needle_fits_its_question_and_it_is_short(kind):
    for seed in range(5):
        film = draw_film(random.Random(seed), kind)
        named = facts_named(film.question.text)
        assert film.question.kind == kind
        assert named
        assert [n for n, shot in enumerate(film.shots) if named <= facts_held(shot.picture)] == [film.needle]
        assert all(is_held_out(shot.picture) for shot in film.shots)
        length = sum(shot.seconds for shot in film.shots)
        assert film.end - film.begin == NEEDLE_SECONDS < 0.01 * length
        assert film.shots[film.needle - 1].picture == film.shots[film.needle + 1].picture


def test_a_film_is_a_file_that_shows_its_shots_in_turn(tmp_path):
    film = draw_film(random.Random(1), "colour", shots=4)
    path = write_film(film, tmp_path / "film.mp4", seed=7)
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) == FILM_FPS * sum(shot.seconds for shot in film.shots)
    at = FILM_FPS * film.begin
    expected = render(film.shots[film.needle].picture, 7 + film.needle)

    def apart(image) -> float:
        pairs = zip(image.resize((32, 32)).tobytes(), expected.resize((32, 32)).tobytes(), strict=True)
        return sum(abs(a - b) for a, b in pairs) / (3 * 32 * 32)

    assert apart(frames[at]) < 4 < apart(frames[at - 1])
