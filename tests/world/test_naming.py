"""Facts that texts name and pictures hold, and videos whose needle alone answers the question."""

from __future__ import annotations

import random

import av
import pytest

from longview.world.naming import all_facts, facts_held, facts_named
from longview.world.needle import KINDS, NEEDLE_SECONDS, draw_needle_video
from longview.world.questions import ask_about_picture, describe
from longview.world.render import NEEDLE_FPS, render, write_needle_video
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
        video = draw_needle_video(random.Random(seed), kind)
        named = facts_named(video.question.text)
        assert video.question.kind == kind
        assert named
        assert [n for n, shot in enumerate(video.shots) if named <= facts_held(shot.picture)] == [video.needle]
        assert all(is_held_out(shot.picture) for shot in video.shots)
        length = sum(shot.seconds for shot in video.shots)
        assert video.end - video.begin == NEEDLE_SECONDS < 0.01 * length
        assert video.shots[video.needle - 1].picture == video.shots[video.needle + 1].picture


def test_a_needle_video_shows_its_shots_in_turn(tmp_path):
    video = draw_needle_video(random.Random(1), "colour", shots=4)
    path = write_needle_video(video, tmp_path / "video.mp4", seed=7)
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) == NEEDLE_FPS * sum(shot.seconds for shot in video.shots)
    at = NEEDLE_FPS * video.begin
    expected = render(video.shots[video.needle].picture, 7 + video.needle)

    def apart(image) -> float:
        pairs = zip(image.resize((32, 32)).tobytes(), expected.resize((32, 32)).tobytes(), strict=True)
        return sum(abs(a - b) for a, b in pairs) / (3 * 32 * 32)

    assert apart(frames[at]) < 4 < apart(frames[at - 1])
