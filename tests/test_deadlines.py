"""Waiting with a bound: whatever comes at the same moment, a task that is told to end does."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from types import SimpleNamespace

import h11
import pytest

from longview import http_client
from longview.deadlines import end, within
from longview.serve import chat, duplex, wire
from longview.serve.app import incoming
from longview.serve.batches.servers import Servers
from longview.serve.joined import Messages
from longview.serve.page.shield import _unless_silent
from longview.serve.process import ModelProcess

MOMENTS = range(8)
"""Turns of the loop between what is waited for and the cancellation; one of them is the worst."""


async def cancelled_at(moment: int, coroutine, happen) -> None:
    """Cancel a task so many turns after what it waits for has happened: it ends cancelled, or had ended before."""
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0.01)
    assert not task.done()
    happen()
    for _ in range(moment):
        await asyncio.sleep(0)
    asked = task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.done()
    assert task.cancelled() or not asked, "the cancellation was lost"


def run(work) -> None:
    """Run a coroutine; nothing that it leaves behind may complain."""
    complaints = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        await work
        gc.collect()

    asyncio.run(watched())
    assert complaints == []


def test_what_takes_longer_is_cancelled_before_anybody_is_told():
    ended = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def work() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await within(slow(), 0.01)
        assert ended

    run(work())


def test_what_is_ended_with_an_error_complains_to_nobody():
    async def failing() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("while it ended")

    async def work() -> None:
        task = asyncio.create_task(failing())
        await asyncio.sleep(0)
        await end(task)
        assert task.done()

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_cancellation_that_comes_with_an_event_is_not_lost(moment):
    async def work() -> None:
        came = asyncio.get_running_loop().create_future()

        async def events():
            yield await came

        await cancelled_at(moment, within(anext(events()), 10), lambda: came.set_result(1))

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_cancellation_that_comes_while_a_task_is_ended_is_not_lost(moment):
    async def work() -> None:
        may_end = asyncio.Event()

        async def slow() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await may_end.wait()

        task = asyncio.create_task(slow())
        await asyncio.sleep(0)
        await cancelled_at(moment, end(task), may_end.set)

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_message_of_a_server_does_not_keep_who_leaves_it(moment):
    async def work() -> None:
        reader = asyncio.StreamReader()
        link = duplex.Duplex(reader, SimpleNamespace(write=lambda _: None), 10.0)
        link._write(h11.Request(method="POST", target="/", headers=[("Host", "a"), ("Transfer-Encoding", "chunked")]))
        data = b"".join(wire.encode({"do": "ping"}))
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        whole = head + b"%x\r\n%s\r\n" % (len(data), data)
        await cancelled_at(moment, link.read(), lambda: reader.feed_data(whole))

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_connection_that_nobody_takes_is_closed(moment, monkeypatch):
    async def work() -> None:
        connected, closed = asyncio.get_running_loop().create_future(), []

        async def connect(*_, **__):
            return await connected

        monkeypatch.setattr(asyncio, "open_connection", connect)
        pair = (None, SimpleNamespace(close=lambda: closed.append(True), write=lambda _: None))
        opening = duplex.Duplex.open("http://127.0.0.1:1", "/", {}, 10.0)
        task = asyncio.create_task(opening)
        await asyncio.sleep(0.01)
        connected.set_result(pair)
        for _ in range(moment):
            await asyncio.sleep(0)
        asked = task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled() or not asked
        # told before there is a connection, it makes none
        assert closed or not task.cancelled() or moment == 0

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_model_that_has_joined_is_left_in_the_middle_of_a_message(moment):
    async def work() -> None:
        came = asyncio.get_running_loop().create_future()

        async def receive():
            return await came

        message = {"type": "http.request", "body": b"".join(wire.encode({"events": []})), "more_body": True}
        await cancelled_at(moment, Messages(receive).next(), lambda: came.set_result(message))

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_body_ends_with_whoever_reads_it(moment):
    async def work() -> None:
        came = asyncio.get_running_loop().create_future()

        async def stream():
            yield await came

        async def read() -> bytes:
            return await anext(incoming(SimpleNamespace(stream=stream)))

        await cancelled_at(moment, read(), lambda: came.set_result(b"a"))

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_upload_to_the_page_ends_with_whoever_reads_it(moment):
    async def work() -> None:
        came = asyncio.get_running_loop().create_future()

        async def receive():
            return await came

        await cancelled_at(moment, _unless_silent(receive)(), lambda: came.set_result({"type": "http.disconnect"}))

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_row_that_waits_for_a_server_asks_none_when_it_is_cancelled(moment):
    async def work() -> None:
        servers = Servers([SimpleNamespace(address="a")], concurrency=1)
        server = await servers._take()

        def free() -> None:
            server.busy -= 1
            servers._changed.set()

        await cancelled_at(moment, servers._take(), free)

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_reply_does_not_keep_who_gives_up_on_it(moment):
    async def work() -> None:
        came = asyncio.get_running_loop().create_future()
        client = http_client.Client("http://127.0.0.1:1")

        class Opened:
            async def __aenter__(self):
                await came
                return SimpleNamespace(status=200, headers={}, read=lambda: asyncio.sleep(0, b"{}"))

            async def __aexit__(self, *_):
                return None

        client.open = lambda *_: Opened()
        await cancelled_at(moment, client.get("/"), lambda: came.set_result(None))

    run(work())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_model_is_not_started_again_by_a_server_that_ends(moment):
    async def work() -> None:
        ended = asyncio.get_running_loop().create_future()
        process = ModelProcess("a", {})
        process._process = SimpleNamespace(returncode=None, wait=lambda: asyncio.shield(ended), kill=lambda: None)
        process._restarts = deque()
        await cancelled_at(moment, process._end(), lambda: ended.set_result(0))

    run(work())


def test_what_comes_in_time_is_given():
    assert asyncio.run(within(asyncio.sleep(0, "here"), 5)) == "here"


def test_a_job_ends_at_once_when_an_event_of_it_is_none():
    ended = []

    async def events():
        try:
            yield {"event": "piece", "tokens": "x"}
        finally:
            ended.append(True)

    async def work() -> None:
        with pytest.raises(KeyError):
            await chat.whole(events(), SimpleNamespace(add=lambda event: event["choice"]))
        assert ended

    run(work())
