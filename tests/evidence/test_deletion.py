"""The deletion check: what is left out, what that changes, what is said of it; and on models that look."""

from __future__ import annotations

import json
from itertools import groupby

import numpy as np
import pytest
from PIL import Image, ImageDraw
from samples import noise

import longview
from longview.answer_evidence import Evidence, PictureEvidence
from longview.engine.score import Scores
from longview.errors import RequestError
from longview.evidence.deletion import Step, check, counts_of, drawn, without
from longview.evidence.sentences import CLEARLY, sentences_of, signed
from longview.media.fetch import Fetched
from longview.messages import Answer, FrameUsed, Message, Receipt, Timings, Usage
from longview.models.families import families
from longview.requests import MediaOptions

FRAMES = {"image": [(0, None)], "video": [(0, 0.0), (12, 0.5), (40, 1.5)]}


def evidence_of(kinds: list[str], shares: list[float]) -> Evidence:
    """Evidence of pictures with these shares; videos have three frames."""
    frames = [
        FrameUsed(medium, f"{medium}", kind, index, seconds, 40, 30, 1)
        for medium, kind in enumerate(kinds)
        for index, seconds in FRAMES[kind]
    ]
    pictures = [
        PictureEvidence(number, frame, np.array([share]), np.zeros(1), np.full((1, 1, 1), share), (), np.zeros(0))
        for number, (frame, share) in enumerate(zip(frames, shares, strict=True), 1)
    ]
    return Evidence(("red",), tuple(pictures), "attention", (0,))


def answer_of(evidence: Evidence | None) -> Answer:
    frames = () if evidence is None else tuple(picture.frame for picture in evidence.pictures)
    receipt = Receipt("scripted", frames, Usage(9, 2, len(frames), 0), Timings(0, 0, 0, 0, 0, 0), {})
    return Answer("red", "stop", receipt, (7, 8), evidence=evidence)


class Scripted:
    """An engine whose answer is as likely as the pictures and frames that it is shown make it."""

    def __init__(self, worth: dict[object, float]) -> None:
        self.worth = worth
        self.asked: list[tuple] = []
        self.settings: list[dict] = []

    async def ascore(self, messages, questions, **settings):
        shown = shown_by(messages)
        self.asked.append(shown)
        self.settings.append(settings)
        assert questions[0].answers == ((7, 8),)
        return [Scores((sum(self.worth.get(each, 0.0) for each in shown) - 9.0,), answer_of(None).receipt)]


def shown_by(messages) -> tuple:
    """Names of pictures, and (name, index) of frames."""
    found: list = []
    for part in (part for message in messages for part in message.media):
        found += [part.name] if part.type == "image" else [(part.name, index) for index in part.media.indices]
    return tuple(found)


def part(kind: str, name: str):
    return longview.messages.Part(kind, source=noise(1) if kind == "image" else [noise(1)], name=name)


def conversation(kinds: list[str]) -> list[Message]:
    return [longview.ask("Which?", *(part(kind, f"{number}") for number, kind in enumerate(kinds)))]


def test_each_picture_and_frame_is_left_out_once_and_so_are_all():
    kinds = ["image", "video", "image"]
    evidence = evidence_of(kinds, [0.1, 0.05, 0.3, 0.02, 0.2])
    engine = Scripted({"0": 1.0, ("1", 12): 4.0, "2": 0.25})
    found = check(engine, conversation(kinds), answer_of(evidence))
    every = ("0", ("1", 0), ("1", 12), ("1", 40), "2")
    assert engine.asked[0] == every
    assert found.logprob == pytest.approx(5.25 - 9)
    assert found.alone == pytest.approx((-1.0, 0.0, -4.0, 0.0, -0.25))
    assert found.without_all == pytest.approx(-5.25)
    assert () in engine.asked
    for number in range(5):
        assert every[:number] + every[number + 1 :] in engine.asked
    assert found.passes == len(engine.asked) == len(set(engine.asked)), "nothing is asked twice"
    assert all(settings["num_media"] == 3 for settings in engine.settings)
    assert found.sentences[0] == (
        "The answer rests on pictures 3 and 1: −4.0 and −1.0 nats without each of them, −0.2 at most without any other."
    )
    assert len(found.sentences) == 1, "the map says the same"
    assert found.tokens == 2


def test_steps_take_the_highest_the_lowest_and_some_at_random():
    evidence = evidence_of(["image"] * 6, [0.3, 0.1, 0.2, 0.06, 0.05, 0.04])
    worth = {str(number): value for number, value in enumerate([4.0, 1.0, 2.0, 0.5, 0.0, -1.0])}
    engine = Scripted(worth)
    found = check(engine, conversation(["image"] * 6), answer_of(evidence), draws=4, seed=3)
    assert [step.count for step in found.steps] == [1, 2, 4]
    assert [step.highest for step in found.steps] == pytest.approx([-4, -6, -7.5])
    assert [step.lowest for step in found.steps] == pytest.approx([1, 1, -0.5])
    for step in found.steps:
        chosen = drawn(6, step.count, 4, 3)
        expected = [-sum(worth[str(number - 1)] for number in subset) for subset in chosen]
        assert step.random == pytest.approx(expected)
        assert len(set(chosen)) == len(chosen) == 4
        assert step.mean == pytest.approx(np.mean(expected))
        assert step.deviation == pytest.approx(np.std(expected, ddof=1))
    again = check(Scripted(worth), conversation(["image"] * 6), answer_of(evidence), draws=4, seed=3)
    assert again.steps == found.steps
    other = check(Scripted(worth), conversation(["image"] * 6), answer_of(evidence), draws=4, seed=4)
    assert other.steps != found.steps
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["steps"][1]["highest"] == -6
    assert len(plain["steps"][1]["random"]) == 4
    assert plain["passes"] == found.passes


def test_more_than_64_are_not_left_out_one_by_one():
    kinds = ["image"] * 65
    evidence = evidence_of(kinds, [0.01 + 0.001 * number for number in range(65)])
    found = check(Scripted({"64": 3.0}), conversation(kinds), answer_of(evidence))
    assert found.alone == ()
    assert found.passes < 60
    assert found.sentences[0] == "The answer rests on the pictures: −3.0 nats without all of them."
    kinds = kinds[:64]
    found = check(Scripted({"63": 3.0}), conversation(kinds), answer_of(evidence_of(kinds, [0.01] * 64)))
    assert len(found.alone) == 64


RESTS_ON_2 = "The answer rests on picture 2: −4.1 nats without it, −0.1 at most without any other."
SAID = {
    "one picture that matters": (
        [0.4],
        [3.0],
        ["The answer rests on picture 1: −3.0 nats without it; 40.0% of the attention is on it."],
    ),
    "one picture that does not": (
        [0.4],
        [0.1],
        ["The answer does not rest on picture 1: −0.1 nats without it; 40.0% of the attention is on it."],
    ),
    "the map is right": ([0.1, 0.4, 0.1], [0.1, 4.1, 0.0], [RESTS_ON_2]),
    "the map is wrong": (
        [0.4, 0.2, 0.1],
        [0.1, 4.1, 0.0],
        [
            RESTS_ON_2,
            "The map says otherwise: picture 1 has most attention (40.0%), and the answer's change without it is "
            "−0.1 nats.",
        ],
    ),
    "the map is upside down": (
        [0.4, 0.2],
        [0.1, 4.1],
        [
            RESTS_ON_2,
            "The map says otherwise: picture 1 has most attention (40.0%), and the answer's change without it is "
            "−0.1 nats.",
            "The map ranks otherwise: −0.1 nats without the picture with most attention, −4.1 without the picture with "
            "least.",
        ],
    ),
    "no picture matters": (
        [0.4, 0.2],
        [0.2, 0.1],
        ["The answer does not rest on the pictures: −0.3 nats without all of them."],
    ),
    "each will do": (
        [0.4, 0.2],
        [0.4, 0.3],
        ["The answer rests on no picture alone: −0.4 nats at most without one (picture 1), −0.7 without all of them."],
    ),
    "all matter": (
        [0.5, 0.2, 0.1, 0.1, 0.1, 0.1],
        [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
        [
            "The answer rests on pictures 1, 2, 3 and 4 and 2 others: −6.0, −5.0, −4.0 and −3.0 nats without each of "
            "them."
        ],
    ),
}
"""Shares, what each picture is worth, and what is said."""


@pytest.mark.parametrize("name", SAID)
def test_what_is_said_of_it(name):
    shares, worth, expected = SAID[name]
    kinds = ["image"] * len(shares)
    engine = Scripted({f"{number}": value for number, value in enumerate(worth)})
    found = check(engine, conversation(kinds), answer_of(evidence_of(kinds, shares)))
    assert list(found.sentences) == expected


def test_a_ranking_that_is_worse_than_chance_is_told():
    kinds = ["image"] * 8
    evidence = evidence_of(kinds, [0.3, 0.25, 0.2, 0.18, 0.1, 0.09, 0.08, 0.01])
    worth = {f"{number}": value for number, value in enumerate([0.0, 0, 0, 0, 1, 1, 1, 1])}
    found = check(Scripted(worth), conversation(kinds), answer_of(evidence))
    assert any("ranks otherwise" in sentence for sentence in found.sentences)
    worth = {f"{number}": value for number, value in enumerate([0.0, 0, 2, 2, 2, 2, 0, 0])}
    found = check(Scripted(worth), conversation(kinds), answer_of(evidence))
    assert any("no better than chance: 0.0 nats without the 2 with" in sentence for sentence in found.sentences)


def test_numbers_stay_and_videos_show_the_frames_that_are_left():
    kinds = ["image", "video", "image"]
    evidence, messages = evidence_of(kinds, [0.1] * 5), conversation(kinds)
    (left,) = without(messages, evidence, frozenset([1, 3]))
    assert left.text == messages[0].text
    assert [part.name for part in left.media] == ["1", "2"]
    assert left.media[0].media == MediaOptions(indices=(0, 40))
    (left,) = without(messages, evidence, frozenset([2, 3, 4]))
    assert [part.name for part in left.media] == ["0", "2"]
    turns = [*messages, Message.of("assistant", "1"), Message.of("user", part("image", "last"), "Sure?")]
    found = without(turns, evidence_of([*kinds, "image"], [0.1] * 6), frozenset([6]))
    assert [len(message.media) for message in found] == [3, 0, 0]


def test_what_a_url_names_is_fetched_once(monkeypatch):
    sources = []
    monkeypatch.setattr(
        "longview.evidence.deletion.fetch",
        lambda source, *_: sources.append(source) or Fetched(b"png", source.rpartition("/")[2]),
    )
    shown = [longview.image("https://example.org/a.png"), longview.image("https://example.org/b.png")]
    engine = Scripted({"a.png": 2.0})
    found = check(engine, [longview.ask("Which?", *shown)], answer_of(evidence_of(["image", "image"], [0.2, 0.1])))
    assert sources == ["https://example.org/a.png", "https://example.org/b.png"]
    assert found.alone == pytest.approx((-2.0, 0.0))


def test_counts_are_powers_of_two_below_the_number_of_pictures():
    assert [counts_of(number) for number in (1, 2, 3, 8, 9)] == [[], [1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]
    assert len(drawn(3, 1, 5, 0)) == 3
    assert [signed(nats) for nats in (-4.14, 0.26, -0.04, 0.0)] == ["−4.1", "+0.3", "0.0", "0.0"]
    assert CLEARLY > 0


@pytest.mark.parametrize(
    ("answer", "settings", "complaint"),
    [
        (answer_of(None), {}, "evidence=True"),
        (answer_of(evidence_of([], [])), {}, "no picture to take away"),
        (answer_of(evidence_of(["image"], [0.1])), {"draws": 0}, "draws is 0"),
    ],
)
def test_what_cannot_be_checked_is_told(answer, settings, complaint):
    with pytest.raises(RequestError, match=complaint):
        check(Scripted({}), conversation(["image"]), answer, **settings)


# ── models ──


@pytest.fixture(scope="module", params=["demo-owl3", "demo-ovis2", "demo-mgm"])
def demo(request):
    return longview.load(request.param)


def circle(colour: str) -> Image.Image:
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((30, 30, 66, 66), fill=colour)
    return picture


def test_the_right_picture_of_four_is_what_an_embedded_model_rests_on(demo):
    colours = ["red", "blue", "green", "yellow"]
    question = [longview.ask("What colour is the circle in image 3?", *map(longview.image, map(circle, colours)))]
    answer = demo.answer(question, evidence=True, max_tokens=8, logprobs=0)
    found = check(demo, question, answer)
    assert answer.text == "green"
    assert found.logprob == pytest.approx(sum(each.logprob for each in answer.logprobs), abs=1e-3)
    assert int(np.argmin(found.alone)) == 2
    assert found.sentences[0].startswith("The answer rests on picture 3: ")
    assert found.without_all < -CLEARLY
    assert [step.count for step in found.steps] == [1, 2]


def test_answers_that_were_cut_and_frames_of_clips_are_checked(demo):
    question = [longview.ask("What happens?", longview.video([circle("red"), circle("red"), circle("blue")]))]
    answer = demo.answer(question, evidence=True, max_tokens=3, min_tokens=3)
    found = check(demo, question, answer)
    assert (answer.finish_reason, found.tokens) == ("length", 3)
    assert len(found.alone) == 3


@pytest.mark.parametrize("family", sorted(families()))
def test_what_is_left_is_cut_as_if_the_others_were_there(family, tokenizer):
    from longview.media import open_media
    from longview.models.base import SampleFormat

    found = families()[family]
    for variant in found.Config.variants:
        config = found.Config.tiny(variant)
        processor = found.Processor(tokenizer, config)
        parts = [longview.image(noise(number, 90, 80)) for number in range(3)]
        whole = processor.prepare([longview.ask("?", *parts)], open_media(parts)).encoder_inputs
        for count in (1, 2):
            media = open_media(parts[:count])
            left = processor.prepare(
                [longview.ask("?", *parts[:count])], media, sample_format=SampleFormat(num_media=3)
            )
            crops = [list(group) for _, group in groupby(left.encoder_inputs, key=lambda each: each.medium)]
            assert [each[0].num_pictures for each in crops] == [each.num_pictures for each in whole[:count]]
            assert [each[0].settings for each in crops] == [each.settings for each in whole[:count]]


def test_an_answer_that_gains_without_a_picture_contradicts_no_map():
    evidence = evidence_of(["image"] * 2, [0.4, 0.2])
    gains = Step(1, 1.2, 0.1, (0.1, 1.2))
    assert sentences_of(evidence, -2.0, (1.2, 0.1), [gains]) == (
        "The answer rests on no picture alone: no less likely without any one, −2.0 without all of them.",
    )
    loses = Step(1, 1.2, -0.8, (-0.8, 1.2))
    assert "The map ranks otherwise" in sentences_of(evidence, -2.0, (1.2, -0.8), [loses])[-1]
