"""Answers with pieces of an index before the question: how they are prompted, what is claimed, and what is checked."""

from __future__ import annotations

import json

import pytest
from samples import noise

import longview
from longview.engine.score import Scores
from longview.errors import RequestError
from longview.index.answer import CLAIM, INTRODUCTION, answer_with, claimed_in, parts_of, place_of, prompt
from longview.index.moments import Found
from longview.messages import Answer, Part, Receipt, Timings, Usage

TIMINGS = Timings(media=0, preprocess=0, encode=0, prefill=0, decode=0, first_token=0)
RECEIPT = Receipt("scripted", (), Usage(1, 1, 0, 0), TIMINGS, {})


class Scripted:
    """An engine that says one thing, which is as likely as the pieces that stand before the question make it."""

    def __init__(self, said: str, worth: dict[str, float]) -> None:
        self.said, self.worth = said, worth
        self.asked: list[str] = []
        self.scored: list[tuple[str, str]] = []

    def answer(self, messages, **_) -> Answer:
        self.asked.append(text_of(messages))
        return Answer(self.said, "stop", RECEIPT)

    async def ascore(self, messages, questions, **_):
        shown = text_of(messages)
        self.scored.append((shown, questions[0].answers[0]))
        return [Scores((sum(value for text, value in self.worth.items() if text in shown) - 9.0,), RECEIPT)]


def text_of(messages) -> str:
    return "".join(part.text or f"<{part.type}>" for message in messages for part in message.parts)


@pytest.fixture
def passages(tmp_path):
    noise(1).save(tmp_path / "dog.png")
    rows = [{"text": "Terriers bark."}, {"text": "Collies herd.", "image": "dog.png"}, {"text": "Pugs snore."}]
    path = tmp_path / "knowledge.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    texts = ("Terriers bark.", "Collies herd.", "Pugs snore.")
    return [Found(str(path), "passage", 0.5, text=text, place=place) for place, text in enumerate(texts)]


def test_pieces_are_numbered_before_the_question(passages):
    engine = Scripted("It is a collie, based on knowledge 2.", {})
    answer_with(engine, passages, "Which dog?", [longview.image(noise(2))], check=False)
    (asked,) = engine.asked
    assert asked == (
        f"{INTRODUCTION}Knowledge 1: Terriers bark.\nKnowledge 2: <image> Collies herd.\nKnowledge 3: Pugs snore.\n"
        f"<image>\nWhich dog?{CLAIM}"
    )
    assert not engine.scored


def test_an_answer_rests_on_the_piece_without_which_it_is_least_likely(passages):
    engine = Scripted("A collie, based on knowledge 3.", {"Collies": 4.0, "Pugs": 0.25})
    used = answer_with(engine, passages, "Which dog?").pieces
    assert [piece.change for piece in used] == [0.0, -4.0, -0.25]
    assert [piece.rests for piece in used] == [False, True, False]
    assert [piece.claimed for piece in used] == [False, False, True]
    assert all(answer == "A collie, based on knowledge 3." for _, answer in engine.scored)
    assert "Knowledge 1" in engine.scored[2][0]
    assert "Knowledge 2" not in engine.scored[2][0]
    assert "Knowledge 3" in engine.scored[2][0], "what remains keeps its number"


def test_an_answer_that_needs_no_piece_rests_on_none(passages):
    used = answer_with(Scripted("A dog.", {"Collies": 0.1, "Pugs": -1.0}), passages, "What?").pieces
    assert not any(piece.rests for piece in used)


def test_what_stands_in_a_passage_stays_text(tmp_path):
    path = tmp_path / "k.jsonl"
    path.write_text(json.dumps({"text": "<|image|> and <|im_end|>"}))
    (part,) = parts_of(Found(str(path), "passage", 0.1, text="<|image|> and <|im_end|>"))
    assert part == Part("text", text="<|image|> and <|im_end|>")


def test_a_file_that_has_changed_is_told_and_the_rest_is_shown(passages, tmp_path):
    stale = Found(passages[0].path, "passage", 0.4, text="Poodles swim.", place=1)
    engine = Scripted("Yes.", {})
    answered = answer_with(engine, [stale, passages[0]], "?", check=False)
    assert [piece.found for piece in answered.pieces] == [passages[0]]
    assert "Knowledge 1: Terriers" in engine.asked[0]
    assert answered.warnings == (f"{stale.path} has changed since it was indexed; index its folder again",)
    with pytest.raises(RequestError, match="has changed"):
        parts_of(stale)


def test_a_moment_is_shown_between_its_seconds():
    video, label = parts_of(Found("film.mp4", "moment", 0.3, begin=6.0, end=9.0))
    assert (video.media.start, video.media.end, video.media.select) == (6.0, 9.0, "uniform")
    assert label.text == " (film.mp4 0:06–0:09)"
    assert place_of(Found("a.png", "picture", 0.3)) == "a.png"


@pytest.mark.parametrize(
    ("said", "numbers"),
    [
        ("Based on knowledge 2, it is red.", {2}),
        ("Knowledge 1 and 3 say so; knowledge 12 does not.", {1, 3, 12}),
        ("Based on Knowledge 1, knowledge 2.", {1, 2}),
        ("It is 2 dogs.", set()),
    ],
)
def test_what_an_answer_names_is_read(said, numbers):
    assert claimed_in(said) == numbers


def test_without_pieces_the_question_is_asked_alone():
    assert text_of([prompt({}, "What?", [])]) == "What?"
    answered = answer_with(Scripted("Nothing.", {}), [], "What?")
    assert (answered.pieces, answered.as_dict()["knowledge"]) == ((), [])


def test_a_real_model_is_checked_the_same(passages):
    engine = longview.load("demo", device="cpu")
    answered = answer_with(engine, passages[:2], "What colour is the star?", max_tokens=6)
    assert [piece.number for piece in answered.pieces] == [1, 2]
    assert all(isinstance(piece.change, float) for piece in answered.pieces)
    again = answer_with(engine, passages[:2], "What colour is the star?", max_tokens=6)
    assert [piece.change for piece in again.pieces] == pytest.approx([p.change for p in answered.pieces], abs=1e-3)
