"""Given answers are scored as teacher forcing scores them: alone, side by side, and beside requests that decode."""

from __future__ import annotations

import asyncio

import pytest
import torch
from questions import CLIP, PICTURE, QUESTIONS, SETTINGS, new_engine, same
from samples import noise
from tolerances import SAME_MATHS

import longview
from longview.engine.model_runner import ModelRunner
from longview.engine.score import AnswerPass, Question, answer_tokens, passes_of
from longview.errors import CheckpointError, RequestError
from longview.media import open_media
from longview.messages import Part

CONVERSATION = [longview.ask("These are for you. ", PICTURE, CLIP)]


def question(text: str, *answers: str, media: tuple = ()) -> Question:
    return Question((Part("text", text=text), *media), answers)


ASKED = [
    question("Is it red?", "yes", "no"),
    question("Which colour has the second one, then?", "red", "dark blue", "g"),
    question("And this?", "yes", "no", media=(longview.image(noise(9)),)),
    question("How many?", "1", "2", "3", "4", "many of them"),
]


@pytest.fixture
def engine(tiny):
    """Answers end with a token of their own."""
    return new_engine(tiny)


def score(engine, questions, conversation=CONVERSATION, **settings):
    return asyncio.run(engine.ascore(conversation, questions, **settings))


@torch.no_grad()
def forced(tiny, asked: Question) -> list[float]:
    """The log-probabilities by one forward pass over the whole conversation with each answer behind it."""
    model, processor = tiny
    messages = asked.messages(CONVERSATION)
    found = []
    for answer in asked.answers:
        media = open_media([part for message in messages for part in message.media])
        prompt = processor.prepare(messages, media).load_pixels()
        arguments = model.embed_pictures(prompt)
        tokens = torch.tensor([answer_tokens(new_engine(tiny).processor, answer)])
        name = "inputs_embeds" if "inputs_embeds" in arguments else "input_ids"
        more = model.get_input_embeddings()(tokens) if name == "inputs_embeds" else tokens
        arguments[name] = torch.cat([arguments[name], more.to(arguments[name])], dim=1)
        arguments["attention_mask"] = torch.ones(arguments[name].shape[:2], dtype=torch.long)
        logits = model(**arguments).logits[0, -tokens.shape[1] - 1 : -1].float().log_softmax(-1)
        found.append(float(logits.gather(1, tokens.T).sum()))
    return found


@pytest.fixture(scope="module")
def expected(tiny):
    return [forced(tiny, asked) for asked in ASKED]


def close(found, expected) -> None:
    assert [pytest.approx(each, abs=SAME_MATHS) for each in expected] == [list(each.logprobs) for each in found]


def test_answers_score_what_teacher_forcing_gives_them(engine, expected):
    close(score(engine, ASKED), expected)
    close(score(engine, ASKED), expected)
    for asked, scores in zip(ASKED, expected, strict=True):
        close(score(engine, [asked]), [scores])


def test_many_passes_give_the_same(engine, expected, monkeypatch):
    monkeypatch.setattr("longview.engine.model_runner.MAX_SCORED_BYTES", 1)
    close(score(engine, ASKED), expected)


def test_eager_attention_gives_the_same(tiny, expected):
    model, _ = tiny
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        close(score(new_engine(tiny), ASKED), expected)
    finally:
        model.set_attn_implementation(before)


def test_without_room_for_prefixes_the_others_copy_the_first_one(tiny, expected):
    engine = new_engine(tiny, budget=longview.Budget(prefixes=0))
    found = score(engine, [ASKED[0], ASKED[1], ASKED[3]])
    close(found, [expected[0], expected[1], expected[3]])
    assert found[0].receipt.usage.cached_tokens == 0
    assert all(each.receipt.usage.cached_tokens for each in found[1:])


def test_beside_requests_that_decode_nothing_changes(engine, expected, alone):
    async def both():
        answering = [
            asyncio.create_task(engine.aanswer(asked, **SETTINGS)) for asked in (QUESTIONS["one picture"],) * 2
        ]
        return await engine.ascore(CONVERSATION, ASKED), await asyncio.gather(*answering)

    found, answers = asyncio.run(both())
    close(found, expected)
    assert all(same(answer, alone["one picture"]) for answer in answers)


def test_usage_counts_what_was_read(engine):
    (scores,) = score(engine, [ASKED[3]])
    usage = scores.receipt.usage
    assert usage.completion_tokens == sum(len(answer_tokens(engine.processor, answer)) for answer in ASKED[3].answers)
    assert usage.pictures >= 4
    assert scores.receipt.timings.prefill > 0


def test_a_pass_that_fails_is_repeated_for_each_alone(engine, expected, monkeypatch):
    plain = ModelRunner.score

    def fails(runner, rows, answers, logits):
        if len(answers) > 1:
            raise RuntimeError("too many")
        return plain(runner, rows, answers, logits)

    monkeypatch.setattr(ModelRunner, "score", fails)
    close(score(engine, ASKED), expected)


def test_scores_that_are_no_numbers_are_an_error(engine, monkeypatch):
    monkeypatch.setattr(ModelRunner, "score", lambda *_: [[float("nan"), 0.0]])
    with pytest.raises(CheckpointError, match="NaN"):
        score(engine, [ASKED[0]])
    monkeypatch.undo()
    assert score(engine, [ASKED[0]])[0].logprobs


def test_an_answer_that_is_too_long_is_named(engine):
    with pytest.raises(RequestError, match=r"the answer 'long long .*at most 256 are scored"):
        score(engine, [question("?", "long " * 80, "short")])


def test_nothing_is_left_of_what_was_cancelled(engine):
    async def cancelled():
        task = asyncio.create_task(engine.ascore(CONVERSATION, ASKED * 5))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert engine.answer(QUESTIONS["no picture"], max_tokens=2).tokens
    assert not engine.scheduler.running
    assert not engine.scheduler.num_waiting


def test_passes_hold_each_answer_once_and_none_sees_another():
    answers = [[[1, 2], [3, 4, 5], [6]], [[7, 8, 9]]]
    (whole,) = passes_of([4, 2], answers, 100)
    assert whole.answers == [(0, 0, [1, 2]), (0, 1, [3, 4, 5]), (1, 0, [7, 8, 9])]
    ids, positions, visible = whole.inputs(torch.device("cpu"))
    assert ids.tolist() == [[1, 3, 4], [7, 8, 0]]
    assert positions.tolist() == [[4, 4, 5], [2, 3, 2]]
    assert visible[0].int().tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1, 1]]
    assert visible[1].int().tolist() == [[1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0]]
    apart = passes_of([4, 2], answers, 2)
    assert [each.answers for each in apart] == [[(0, 0, [1, 2]), (1, 0, [7, 8, 9])], [(0, 1, [3, 4, 5])]]
    assert passes_of([4], [[[1], [2]]], 5) == []
    assert isinstance(whole, AnswerPass)
