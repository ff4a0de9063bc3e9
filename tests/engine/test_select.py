"""Frames chosen by the question, for every family: through the engine, with towers that are random but real."""

from __future__ import annotations

import pytest
from samples import noise

import longview
from longview.engine import Engine
from longview.engine.prepare import relevance_question
from longview.errors import CheckpointError, RequestError
from longview.media.mdp3 import mdp3, similarity
from longview.models.similarity import Similarity

FILM = longview.video([noise(n) for n in range(12)])
MDP3 = {"select": "mdp3", "frames": 3}


@pytest.fixture(scope="module")
def near(towers) -> Similarity:
    return Similarity.open(str(towers))


@pytest.fixture
def engine(tiny, towers):
    return Engine(*tiny, name="tiny", similarity=str(towers))


@pytest.mark.parametrize("query", [{}, {"relevance_query": "published"}])
def test_the_frames_are_those_that_mdp3_chooses_by_the_question(engine, near, query):
    options = {**MDP3, **query}
    answer = engine.answer([longview.ask("Where is it?", FILM)], media=options, max_tokens=2)
    images = [noise(n) for n in range(12)]

    class All:
        digest, name, indices = "all", "all", list(range(12))

        @staticmethod
        def read(indices, transform):
            from longview.media import Frame

            return (Frame(transform(images[index]), index, None) for index in indices)

    frames, question = near(All, "<image>\n" * 12 * bool(query) + "Where is it?")
    expected = mdp3(similarity(frames, frames), similarity(frames, question)[:, 0], 3)
    assert [frame.index for frame in answer.receipt.frames] == expected
    assert answer.receipt.settings["media"] == options


def test_another_question_may_get_other_frames(engine):
    def chosen(question):
        answer = engine.answer([longview.ask(question, FILM)], media=MDP3, max_tokens=1)
        return tuple(frame.index for frame in answer.receipt.frames)

    questions = ("Where is it?", "What moves?", "xyz", "How many?", "When does it rain?", "zzzz")
    assert len({chosen(question) for question in questions}) > 1


def test_towers_are_opened_only_when_they_are_needed(tiny):
    engine = Engine(*tiny, name="tiny", similarity="./nowhere")
    engine.answer([longview.ask("Where?", FILM)], media={"select": "uniform", "frames": 2}, max_tokens=1)
    engine.answer("Hello", media=MDP3, max_tokens=1)  # nothing to choose from: a turn without media
    with pytest.raises(CheckpointError, match="--similarity FOLDER"):
        engine.answer([longview.ask("Where?", FILM)], media=MDP3, max_tokens=1)


def test_pictures_beside_a_video_are_left_alone(engine):
    question = [longview.ask("Where?", longview.image(noise(50)), FILM)]
    frames = engine.answer(question, media=MDP3, max_tokens=1).receipt.frames
    assert [frame.kind for frame in frames] == ["image", "video", "video", "video"]


def test_pictures_alone_and_empty_questions_are_refused(engine):
    with pytest.raises(RequestError, match="only pictures"):
        engine.answer([longview.ask("Where?", longview.image(noise(1)))], media=MDP3)
    with pytest.raises(RequestError, match="ask one"):
        engine.answer([longview.ask(" ", FILM)], media=MDP3)


def test_everything_the_user_asked_counts_and_nothing_else():
    talk = [
        longview.Message.of("system", "Be brief."),
        longview.ask("Where is the cat?", FILM),
        longview.Message.of("assistant", "On the mat."),
        longview.Message.of("user", "And then?"),
    ]
    assert relevance_question(talk) == "Where is the cat?\nAnd then?"


def test_the_default_goes_with_the_model():
    assert longview.load("demo")._similarity == "demo-siglip"
    assert longview.load("demo", similarity="./mine")._similarity == "./mine"
