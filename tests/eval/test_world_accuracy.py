"""Accuracy on held-out scenes, its controls and its intervals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from longview.eval.world import GROUPS, Score, draw_cases, evaluate, normalise, summarise, write_media
from longview.media import open_media
from longview.requests import MediaOptions
from longview.world.scenes import EVENTS, Clip, is_held_out


class Scripted:
    """Answers from a list, in order."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = iter(answers)
        self.asked: list = []

    def batch(self, conversations):
        return map(self.answer, conversations)

    def answer(self, messages):
        self.asked.append(messages[0])
        return SimpleNamespace(text=next(self.answers))


def test_a_model_that_knows_everything_scores_all():
    truth = [case.question.answer.upper() + "." for case in draw_cases(3, 1)]
    scores = evaluate(Scripted(truth), seed=3, per_kind=1)
    assert all(score.accuracy == 1 for score in scores)
    assert sum(score.total for score in scores) == len(truth)
    assert set(summarise(scores)) == set(GROUPS)


def test_a_model_that_always_says_no_scores_what_no_is_worth():
    cases = draw_cases(4, 2, ["one picture"])
    scores = evaluate(Scripted(["no"] * len(cases)), seed=4, per_kind=2, groups=["one picture"])
    assert sum(score.right for score in scores) == sum(case.question.answer == "no" for case in cases)


def test_every_scene_that_is_asked_about_is_held_out():
    for case in draw_cases(5, 2):
        assert all(is_held_out(scene) for scene in case.media)


@pytest.mark.parametrize(("pictures", "same"), [("shown", True), ("blank", False), ("swapped", False)])
def test_blank_and_swapped_media_are_not_those_of_the_question(pictures, same, tmp_path):
    given: list[bytes] = []

    class Recorder(Scripted):
        def answer(self, messages):
            given.extend(part.source.read_bytes() for part in messages[0].media)
            return super().answer(messages)

    cases = draw_cases(6, 1, ["two pictures"])
    evaluate(Recorder([""] * len(cases)), seed=6, per_kind=1, pictures=pictures, groups=["two pictures"])
    truth = [part.source.read_bytes() for case in cases for part in write_media(case.media, tmp_path, case.seed)]
    assert [a == b for a, b in zip(given, truth, strict=True)] == [same] * len(truth)


def test_cases_become_real_files_that_open(tmp_path):
    for case in draw_cases(7, 1, ["one picture", "clip"]):
        media = open_media(write_media(case.media, tmp_path, case.seed), MediaOptions(select="owl3"))
        assert [m.kind for m in media] == ["video" if isinstance(s, Clip) else "image" for s in case.media]


def test_the_interval_holds_the_accuracy_and_shrinks_with_more_questions():
    few, many = Score("g", "k", right=9, total=10), Score("g", "k", right=900, total=1000)
    assert few.interval[0] < many.interval[0] < 0.9 < many.interval[1] < few.interval[1]
    assert Score("g", "k", right=10, total=10).interval[1] == 1


def test_chance_is_the_share_of_the_most_frequent_answer():
    score = Score("g", "k", right=0, total=4)
    score.answers.update(["yes", "yes", "yes", "no"])
    assert score.chance == 0.75


def test_case_and_full_stops_do_not_matter():
    assert normalise(" A large red Circle. ") == "a large red circle"


def test_a_group_named_twice_is_asked_about_once():
    assert draw_cases(1, 1, ["clip", "one picture", "clip"]) == draw_cases(1, 1, ["clip", "one picture"])


def test_each_event_of_clips_has_four_questions_for_one_of_each_other_kind():
    assert len(draw_cases(1, 2, ["clip"])) == 8 * len(EVENTS)
