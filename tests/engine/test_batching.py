"""Continuous batching over each family's tiny model: the same answers as alone, nothing computed twice, all freed."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from questions import OTHER, PICTURE, QUESTIONS, SETTINGS, all_same, new_engine, same
from samples import noise
from tolerances import SAME_MATHS

import longview
from longview.engine import Budget
from longview.engine.model_runner import ChunkSize
from longview.engine.prepare import parse_request, prepare
from longview.engine.request import whole_answer
from longview.errors import RequestError
from longview.messages import Message


def test_an_answer_alone_equals_the_answer_in_a_batch(engine, alone):
    answers = list(engine.batch(QUESTIONS.values(), **SETTINGS))
    assert all_same(answers, alone.values())
    assert {len(answer.tokens) for answer in answers} == {12}
    pairs = itertools.combinations(alone.values(), 2)
    assert not any(same(*pair) for pair in pairs), "the questions are told apart"


def test_greedy_answers_and_their_log_probabilities_are_the_same_alone_and_in_a_batch(tiny, engine):
    settings = {"max_tokens": 8, "logprobs": 3}
    alone = [new_engine(tiny).answer(question, **settings) for question in QUESTIONS.values()]
    for mine, theirs in zip(alone, engine.batch(QUESTIONS.values(), **settings), strict=True):
        assert mine.tokens == theirs.tokens
        for one, other in zip(mine.logprobs, theirs.logprobs, strict=True):
            assert [each.id for each in one.top_logprobs] == [each.id for each in other.top_logprobs]
            assert one.logprob == one.top_logprobs[0].logprob == pytest.approx(other.logprob, abs=SAME_MATHS)
    plain = [answer.tokens for answer in new_engine(tiny).batch(QUESTIONS.values(), max_tokens=8)]
    assert plain == [answer.tokens for answer in alone], "sampled in one call or one by one"


def test_requests_join_and_leave_the_batch_at_every_step(engine, alone):
    """One request more in each step, and of different lengths, so that rows are added, moved and removed."""
    found: dict[str, list] = {}
    streams = {}
    for number, (name, question) in enumerate([*QUESTIONS.items()] * 2):
        label = f"{name}, {number}"
        streams[label] = engine.stream(question, **{**SETTINGS, "max_tokens": 3 + number})
        for other, stream in list(streams.items()):
            piece = next(stream, None)
            if piece is None:
                del streams[other]
            else:
                found.setdefault(other, []).append(piece)
    for label, stream in streams.items():
        found[label] += list(stream)
    for number, name in enumerate([*QUESTIONS] * 2):
        pieces = found[f"{name}, {number}"]
        tokens = [token for piece in pieces for token in piece.tokens]
        logprobs = [each.logprob for piece in pieces for each in piece.logprobs]
        count = min(12, 3 + number)
        assert tokens[:count] == list(alone[name].tokens[:count]), name
        assert logprobs[:count] == pytest.approx([e.logprob for e in alone[name].logprobs[:count]], abs=SAME_MATHS)
    assert not engine.scheduler.running


def test_threads_that_ask_at_once_get_their_own_answers(engine, alone):
    found, names = {}, [name for name in QUESTIONS for _ in range(3)]

    def ask(number: int, name: str) -> None:
        found[number] = engine.answer(QUESTIONS[name], **SETTINGS)

    threads = [threading.Thread(target=ask, args=each) for each in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all_same([found[number] for number in range(len(names))], [alone[name] for name in names])


def test_a_long_prompt_is_prefilled_in_chunks_and_others_are_decoded_meanwhile(engine, alone, monkeypatch):
    monkeypatch.setattr(engine.scheduler.runner, "prefill_size", ChunkSize(limit=5))
    long, short = engine.stream(QUESTIONS["two pictures and a clip"], **SETTINGS), engine.stream("Hi", max_tokens=8)
    first = next(short)
    waiting = threading.Thread(target=lambda: pieces.extend(long))
    pieces: list = []
    waiting.start()
    rest = list(short)
    assert not pieces, "the short one has finished before the long one is prefilled"
    waiting.join(60)
    expected = alone["two pictures and a clip"]
    assert "".join(piece.text for piece in pieces) == expected.text
    logprobs = [each.logprob for piece in pieces for each in piece.logprobs]
    assert logprobs == pytest.approx([each.logprob for each in expected.logprobs], abs=SAME_MATHS)
    assert sum(len(piece.tokens) for piece in (first, *rest)) == 8


def test_questions_about_one_picture_are_prefilled_together_behind_what_they_share(engine, monkeypatch):
    asked = [[longview.ask(f"What is it, and how large: {word}?", PICTURE)] for word in ("one", "two", "three", "four")]
    alone = []
    for question in asked:
        engine.prefix_cache.clear()
        alone.append(engine.answer(question, **SETTINGS))
    passes: list[tuple[int, ...]] = []
    prefill = engine.scheduler.runner.prefill

    def counted(rows, chunk, *counts):
        passes.append(counts)
        return prefill(rows, chunk, *counts)

    monkeypatch.setattr(engine.scheduler.runner, "prefill", counted)
    engine.prefix_cache.clear()
    engine.answer([longview.ask("What is it, and how old?", PICTURE)], max_tokens=1)
    del passes[:]
    requests = [prepare(engine, parse_request(engine, question, dict(SETTINGS), (), None))[0] for question in asked]
    engine.submit(requests)  # in one step, as those of one decision come
    engine.wait_until(lambda: all(request.finished for request in requests))
    together = [whole_answer(request.pieces) for request in requests]
    assert all_same(together, alone)
    assert all(answer.receipt.usage.cached_tokens > 16 for answer in together)
    assert max(map(len, passes)) > 1


def test_small_chunks_do_not_make_those_after_them_small():
    size = ChunkSize(limit=2048)
    for amount in (1, 1, 60, 1, 2):  # 20 ms a pass, and 1 ms a token
        size.record(0.02 + 0.001 * amount, amount)
    assert size.current(others_wait=False) == 2048
    assert size.current(others_wait=True) == pytest.approx((0.25 - 0.02) / 0.001, rel=0.01)
    for _ in range(50):  # it got slower
        size.record(0.02 + 0.01 * 10, 10)
        size.record(0.02 + 0.01 * 30, 30)
    assert size.current(others_wait=True) == pytest.approx(23, abs=1)
    one = ChunkSize(limit=2048)
    for _ in range(3):  # of one size, nothing tells how the time is divided
        one.record(0.1, 10)
    assert one.current(others_wait=True) == pytest.approx(25, abs=1)


def test_every_picture_is_encoded_once(engine, monkeypatch):
    counts = count_pictures(engine, monkeypatch)
    list(engine.batch([QUESTIONS["one picture"]] * 4, max_tokens=2))
    (once,) = {sum(counts)}
    assert once == engine.answer(QUESTIONS["one picture"], max_tokens=1).receipt.usage.pictures
    engine.answer([longview.ask("Something else about them?", OTHER, PICTURE)], max_tokens=2)
    engine.answer([longview.ask("And in another order?", PICTURE, OTHER)], max_tokens=2)
    both = engine.answer(QUESTIONS["a picture that is cut in another way"], max_tokens=1).receipt.usage.pictures
    assert sum(counts) <= 2 * once + 2 * both, "alone a picture may be cut otherwise than beside another"


def count_pictures(engine, monkeypatch) -> list[int]:
    counts: list[int] = []
    encode = engine.model.encode

    def counted(pixel_values, *rest):
        counts.append(len(pixel_values))
        return encode(pixel_values, *rest)

    monkeypatch.setattr(engine.model, "encode", counted)
    return counts


def test_a_later_turn_prefills_and_encodes_only_what_is_new(engine, tiny, monkeypatch):
    counts = count_pictures(engine, monkeypatch)
    talk = [longview.ask("What is it?", PICTURE)]
    first = engine.answer(talk, **SETTINGS)
    encoded = sum(counts)
    talk += [Message.of("assistant", "A thing."), Message.of("user", "What else?")]
    second = engine.answer(talk, **SETTINGS)
    assert sum(counts) == encoded
    assert first.receipt.usage.cached_tokens == 0
    usage = second.receipt.usage
    assert usage.prompt_tokens - usage.cached_tokens < len("assistantA thing.userWhat else?assistant") + 12
    assert same(second, new_engine(tiny).answer(talk, **SETTINGS))


def test_the_same_tokens_after_another_picture_share_no_prefix_behind_it(engine, tiny):
    engine.answer([longview.ask("What is the colour of it?", PICTURE)], max_tokens=4)
    same_size = [longview.ask("What is the colour of it?", longview.image(noise(5)))]
    again = engine.answer(same_size, **SETTINGS)
    assert same(again, new_engine(tiny).answer(same_size, **SETTINGS))
    whole = engine.answer(same_size, **SETTINGS)
    assert (
        again.receipt.usage.cached_tokens < whole.receipt.usage.cached_tokens == whole.receipt.usage.prompt_tokens - 1
    )
    assert same(whole, again)


def test_a_running_request_is_a_prefix_for_others(engine):
    first = engine.stream(QUESTIONS["one picture"], max_tokens=10)
    next(first)
    second = engine.answer(QUESTIONS["one picture"], max_tokens=4)
    assert second.receipt.usage.cached_tokens == second.receipt.usage.prompt_tokens - 1
    assert not len(engine.prefix_cache) or engine.prefix_cache.hits
    list(first)


def test_several_answers_share_their_prompt_and_differ_by_their_seeds(engine):
    settings = {"temperature": 1.0, "seed": 3, "max_tokens": 8}
    answers = engine.answers(QUESTIONS["one picture"], n=3, **settings)
    assert len({answer.tokens for answer in answers}) == 3
    assert answers[0].tokens == engine.answer(QUESTIONS["one picture"], **settings).tokens
    assert answers[2].tokens == engine.answer(QUESTIONS["one picture"], **{**settings, "seed": 5}).tokens
    assert [answer.receipt.usage.cached_tokens > 0 for answer in answers] == [False, True, True]
    with pytest.raises(RequestError, match=r"use answers\(…, n=…\)"):
        engine.answer("?", n=2)
    with pytest.raises(RequestError, match="n is 0; give a whole number from 1 to 64"):
        engine.stream("?", n=0)


# ── cancelling ──


def test_a_cancelled_request_is_not_computed_further_and_holds_no_memory(engine, monkeypatch):
    steps = []
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda *a, **k: (steps.append(1), forward(*a, **k))[1])
    stream = engine.stream(QUESTIONS["two pictures and a clip"], max_tokens=200)
    next(stream)
    assert engine.scheduler.running
    assert engine.scheduler.kv_cache_bytes > 0
    done = len(steps)
    stream.close()
    assert not engine.scheduler.running
    assert engine.scheduler.kv_cache_bytes == 0
    assert not engine.scheduler.decode_batches
    assert len(steps) == done
    engine.answer("Hi", max_tokens=2)
    assert len(steps) <= done + 3, "nothing of it runs beside another request"


def test_a_request_cancelled_by_another_thread_is_gone_by_the_next_step(engine, monkeypatch):
    quitter, other = (engine.stream(q, max_tokens=150) for q in (QUESTIONS["one picture"], "Hello"))
    next(quitter), next(other)
    assert len(engine.scheduler.decoding) == 2
    seen = []
    step = engine.scheduler.step

    def stepped():
        if not seen:
            closing = threading.Thread(target=quitter.close)
            closing.start()
            closing.join(10)
        moved = step()
        seen.append(len(engine.scheduler.decoding))
        return moved

    monkeypatch.setattr(engine.scheduler, "step", stepped)
    for _ in range(4):  # a few pieces wait already
        next(other)
    assert seen[0] == 1
    other.close()


# ── memory ──


def test_requests_that_do_not_fit_wait_and_are_answered(tiny, alone):
    token_bytes = type(tiny[0]).footprint(tiny[0].config, torch.float32).token_bytes
    engine = new_engine(tiny, budget=Budget(kv_cache=512 * token_bytes, requests=8))
    most = []
    step = engine.scheduler.step
    engine.scheduler.step = lambda: (step(), most.append(len(engine.scheduler.running)))[0]
    assert all_same(engine.batch(QUESTIONS.values(), **SETTINGS), alone.values())
    assert 1 <= max(most) <= 2


def test_no_more_requests_run_than_the_budget_says(tiny):
    engine = new_engine(tiny, budget=Budget(requests=2))
    most = []
    step = engine.scheduler.step
    engine.scheduler.step = lambda: (step(), most.append(len(engine.scheduler.running)))[0]
    assert len(list(engine.batch(["Hello"] * 5, max_tokens=6))) == 5
    assert max(most) == 2
    with pytest.raises(RequestError, match="requests is 0; give a whole number from 1 up"):
        Budget(requests=0)


def test_caches_stay_within_their_bytes(tiny):
    engine = new_engine(tiny, budget=Budget(features=30_000, prefixes=200_000))
    for seed in range(12):
        engine.answer([longview.ask("What?", longview.image(noise(seed)))], max_tokens=2)
        assert engine.feature_cache.nbytes <= 30_000
        assert engine.prefix_cache.nbytes <= 200_000
    assert len(engine.prefix_cache) < 12


# ── batches ──


def test_a_batch_is_lazy_and_keeps_its_order(engine):
    taken = []

    def questions():
        for number in range(6):
            taken.append(number)
            yield f"Question {number}" + " and more" * (6 - number)

    answers = engine.batch(questions(), max_tokens=4)
    assert not taken
    lengths = [answer.receipt.usage.prompt_tokens for answer in answers]
    assert lengths == sorted(lengths, reverse=True)


def test_a_batch_that_is_closed_cancels_its_requests(engine):
    answers = engine.batch((f"Question {number}" for number in range(6)), max_tokens=100)
    next(answers)
    answers.close()
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"n": 2}, "one answer a question"), ({"temperature": -1}, "temperature is -1"), ({"media": 3}, "media is 3")],
)
def test_the_settings_of_a_batch_are_checked_at_once(engine, settings, complaint):
    with pytest.raises(RequestError, match=complaint):
        engine.batch(["Hello"], **settings)
