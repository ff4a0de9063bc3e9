"""Requests from an event loop: the same answers, the loop never blocked, and nothing computed for who does not wait."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref

import pytest
from questions import QUESTIONS, SETTINGS, all_same, new_engine
from samples import noise, tiny_model

import longview
from longview.engine import Hook
from longview.errors import MediaError, RequestError
from longview.messages import Message, Part
from longview.models.families import families

LONG = {"max_tokens": 400, "min_tokens": 400}
QUESTION = QUESTIONS["one picture"]


@pytest.fixture
def owl3(tokenizer):
    return new_engine(tiny_model(families()["owl3"], "241101", tokenizer))


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def wait_until_idle(engine) -> None:
    """The thread that steps has ended, and with it all computing."""
    for thread in threads("longview-async"):
        thread.join(60)
    assert not threads("longview-async")
    assert engine.scheduler.running == []
    assert list(engine.scheduler.waiting) == []


def test_answers_to_many_coroutines_are_those_of_one_thread(engine, alone):
    async def ask_all():
        return await asyncio.gather(*(engine.aanswer(question, **SETTINGS) for question in QUESTIONS.values()))

    assert all_same(asyncio.run(ask_all()), alone.values())
    wait_until_idle(engine)


def test_pieces_add_up_to_the_answer_and_choices_come_mixed(owl3):
    async def collect(**settings):
        return [piece async for piece in owl3.astream(QUESTION, **settings)]

    pieces = asyncio.run(collect(**SETTINGS, n=2))
    for choice, answer in enumerate(owl3.answers(QUESTION, **SETTINGS, n=2)):
        own = [piece for piece in pieces if piece.choice == choice]
        assert "".join(piece.text for piece in own) == answer.text
        assert own[-1].finish_reason == answer.finish_reason
        assert own[-1].receipt.usage.completion_tokens == len(answer.tokens)


def test_one_thread_that_is_not_the_event_loops_steps_for_all(owl3, monkeypatch):
    stepping, most = set(), []
    step = owl3.scheduler.step

    def listen():
        stepping.add(threading.current_thread().name)
        most.append(len(threads("longview-async")))
        return step()

    monkeypatch.setattr(owl3.scheduler, "step", listen)

    async def ask_all():
        return await asyncio.gather(*(owl3.aanswer(QUESTION, max_tokens=4) for _ in range(40)))

    assert len({answer.text for answer in asyncio.run(ask_all())}) == 1
    assert stepping == {"longview-async"}
    assert max(most) == 1
    wait_until_idle(owl3)


def test_a_thread_and_an_event_loop_ask_at_once(owl3):
    expected = owl3.answer(QUESTION, **SETTINGS)
    found = []
    asking = threading.Thread(target=lambda: found.extend(owl3.batch([QUESTION] * 6, **SETTINGS)))

    async def ask_all():
        asking.start()
        return await asyncio.gather(*(owl3.aanswer(QUESTION, **SETTINGS) for _ in range(6)))

    answers = asyncio.run(ask_all())
    asking.join(60)
    assert all_same([*answers, *found], [expected] * 12)


def test_a_cancelled_task_stops_its_computing_and_harms_no_other(owl3):
    async def ask():
        begun = asyncio.Event()

        async def long():
            async for _ in owl3.astream(QUESTION, **LONG):
                begun.set()

        task = asyncio.create_task(long())
        await begun.wait()
        other = asyncio.create_task(owl3.aanswer(QUESTION, **SETTINGS))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await other

    began = time.perf_counter()
    answer = asyncio.run(ask())
    wait_until_idle(owl3)
    spent = time.perf_counter() - began
    assert all_same([answer], [owl3.answer(QUESTION, **SETTINGS)])
    generated = owl3.answer(QUESTION, **LONG).receipt.timings.total
    assert spent < 60 + generated, "and not for ever"


def test_leaving_a_stream_early_and_a_timeout_cancel_too(owl3, monkeypatch):
    steps = []
    step = owl3.scheduler.step
    monkeypatch.setattr(owl3.scheduler, "step", lambda: steps.append(1) or step())

    async def leave():
        async with contextlib.aclosing(owl3.astream(QUESTION, **LONG)) as pieces:
            async for _ in pieces:
                break

    async def time_out():
        begun = asyncio.Event()

        async def long():
            async for _ in owl3.astream(QUESTION, **LONG):
                begun.set()

        waiting = asyncio.ensure_future(asyncio.wait_for(long(), timeout=None))
        await begun.wait()
        waiting.cancel()
        await asyncio.wait([waiting])

    for interrupted in (leave, time_out):
        steps.clear()
        asyncio.run(interrupted())
        wait_until_idle(owl3)
        assert len(steps) < LONG["max_tokens"]


class Waiting(Hook):
    """Holds a request up while it is prepared."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def before_model(self, messages, media, progress):
        self.reached.set()
        assert self.go_on.wait(60)
        return messages, {}


def test_a_task_that_is_cancelled_while_its_media_are_opened_leaves_nothing(owl3, monkeypatch):
    hook, released = Waiting(), []
    monkeypatch.setattr("longview.engine.request.Request.release", lambda request: released.append(request))

    async def ask():
        task = asyncio.create_task(owl3.aanswer(QUESTION, hooks=[hook], **SETTINGS))
        await asyncio.to_thread(hook.reached.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    hook.go_on.set()
    deadline = time.monotonic() + 60
    while not released and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(released) == 1
    wait_until_idle(owl3)


def test_progress_ends_the_preparing_of_a_cancelled_task(owl3, monkeypatch):
    ended, given = threading.Event(), []

    class Reports(Waiting):
        def before_model(self, messages, media, progress):
            super().before_model(messages, media, progress)
            try:
                progress(1, 2, "reading")
            except RequestError:
                ended.set()
                raise
            return messages, {}

    hook = Reports()

    async def ask():
        settings = {"hooks": [hook], "progress": lambda *step: given.append(step)}
        task = asyncio.create_task(owl3.aanswer(QUESTION, **settings))
        await asyncio.to_thread(hook.reached.wait, 60)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(ask())
    hook.go_on.set()
    assert ended.wait(60)
    assert (1, 2, "reading") not in given


def test_an_error_is_raised_to_its_own_coroutine(owl3):
    async def ask_all():
        asked = (owl3.aanswer(question, **SETTINGS) for question in ([longview.ask("?", broken)], QUESTION))
        return await asyncio.gather(*asked, return_exceptions=True)

    broken = longview.image("nowhere.png")
    failed, answered = asyncio.run(ask_all())
    assert isinstance(failed, MediaError)
    assert all_same([answered], [owl3.answer(QUESTION, **SETTINGS)])


def test_a_malformed_request_is_refused_at_once(owl3):
    with pytest.raises(RequestError, match="temperature is -1"):
        owl3.astream("Hi", temperature=-1)
    with pytest.raises(RequestError, match="answer gives one answer"):
        asyncio.run(owl3.aanswer("Hi", n=2))


def test_a_step_that_fails_ends_every_coroutine_with_its_error(owl3, monkeypatch):
    def fail():
        raise RuntimeError("out of luck")

    monkeypatch.setattr(owl3.scheduler, "step", fail)

    async def ask_all():
        return await asyncio.gather(*(owl3.aanswer("Hi") for _ in range(3)), return_exceptions=True)

    assert [str(error) for error in asyncio.run(ask_all())] == ["out of luck"] * 3
    wait_until_idle(owl3)


def test_hooks_make_something_of_an_answer_outside_the_event_loop(owl3):
    class Counts(Hook):
        def after_answer(self, answer, progress):
            return {"letters": len(answer.text), "thread": threading.current_thread().name}

    answer = asyncio.run(owl3.aanswer(QUESTION, hooks=[Counts()], **SETTINGS))
    assert answer.made["letters"] == len(answer.text)
    assert answer.made["thread"].startswith("longview-prepare")


def test_a_loop_that_was_closed_before_its_stream_cancels_it(owl3):
    loop = asyncio.new_event_loop()
    pieces = owl3.astream(QUESTION, **LONG)
    loop.run_until_complete(anext(pieces))
    loop.close()
    wait_until_idle(owl3)


def test_a_picture_of_each_coroutine_is_its_own(owl3):
    pictures = [longview.image(noise(seed)) for seed in range(8)]
    questions = [[longview.ask("Which?", picture)] for picture in pictures]

    async def ask_all():
        return await asyncio.gather(*(owl3.aanswer(question, **SETTINGS) for question in questions))

    assert all_same(asyncio.run(ask_all()), [owl3.answer(question, **SETTINGS) for question in questions])


def test_the_media_of_a_request_that_fails_are_let_go_at_once(owl3):
    class Source(str):
        """A text that can be watched."""

    async def fail() -> weakref.ref:
        source = Source("data:video/mp4;base64,AAAA")
        watched = weakref.ref(source)
        with contextlib.suppress(MediaError):
            await owl3.aanswer([Message("user", (Part("video", source=source), Part("text", text="What?")))])
        return watched

    gc.collect()
    gc.disable()
    try:
        watched = asyncio.run(fail())
        assert watched() is None, "it waits for the garbage collector"
    finally:
        gc.enable()
