"""Requests from an event loop: `Engine.astream`, `aanswer` and `ascore`.

    coroutine ── prepare, in a pool ── submit ─────────────────────── pieces, one by one ── coroutine
                                          └─ a thread steps for all ──── call_soon_threadsafe ─┘

One thread waits for the pieces of all streams, as any caller's thread waits for its own, and steps the scheduler if no
other does. It begins with the first stream and ends with the last. The event loop is never blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from longview.engine.hooks import run_after_answer
from longview.engine.prepare import ParsedRequest, prepare
from longview.engine.request import Request, whole_answer
from longview.engine.score import Scores
from longview.errors import RequestError
from longview.messages import Piece, Receipt

if TYPE_CHECKING:
    from longview.engine.engine import Engine

PREPARE_THREADS = 4
"""Threads that prepare requests, and run hooks of their answers."""
TEXT_THREADS = 2
"""Threads that prepare requests without media."""


class Stream:
    """The requests of one `astream`, and the pieces that are on their way to its event loop."""

    def __init__(self, requests: Sequence[Request], loop: asyncio.AbstractEventLoop) -> None:
        self.running = list(requests)
        self.loop = loop
        self.events: asyncio.Queue[Piece | Request] = asyncio.Queue()
        """Pieces, and each request behind its last piece."""

    @property
    def ready(self) -> bool:
        """Whether `deliver` has something to hand over."""
        return any(request.pieces or request.finished for request in self.running)

    def deliver(self) -> None:
        """Hand new pieces to the event loop.

        Raises:
            RuntimeError: the loop is closed.
        """
        for request in list(self.running):
            ended = request.finished  # before its last piece is taken
            while request.pieces:
                self.loop.call_soon_threadsafe(self.events.put_nowait, request.pieces.popleft())
            if ended:
                self.running.remove(request)
                self.loop.call_soon_threadsafe(self.events.put_nowait, request)


class AsyncStreams:
    """The streams of an engine's event loops, of which there may be several."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._streams: list[Stream] = []
        self._thread: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="longview-prepare")
        self._text_pool = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="longview-prepare-text")

    async def stream(self, parsed: ParsedRequest, accepted: Callable[[], None] = lambda: None) -> AsyncGenerator[Piece]:
        """See `Engine.astream`."""
        requests = await self._prepare(parsed)
        accepted()
        pieces: dict[int, list[Piece]] = {request.choice: [] for request in requests}
        async with contextlib.aclosing(self._events(requests)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    pieces[event.choice].append(event)
                    yield event
                elif parsed.hooks:
                    arguments = (parsed.hooks, whole_answer(pieces[event.choice]), parsed.progress)
                    loop = asyncio.get_running_loop()
                    if made := await loop.run_in_executor(self._pool, run_after_answer, *arguments):
                        yield Piece("", choice=event.choice, made=made)

    async def score(self, parsed: ParsedRequest) -> list[Scores]:
        """See `Engine.ascore`."""
        requests = await self._prepare(parsed)
        receipts: dict[int, Receipt] = {}
        async with contextlib.aclosing(self._events(requests)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    assert event.receipt is not None, "what is scored has one piece"
                    receipts[event.choice] = event.receipt
        return [Scores(tuple(request.scores), receipts[request.choice]) for request in requests]

    async def _events(self, requests: Sequence[Request]) -> AsyncGenerator[Piece | Request]:
        """Submit requests: their pieces as they come, and each request when it has ended. Closing this cancels them.

        Raises:
            Exception: the error of the first request that has one.
        """
        stream = Stream(requests, asyncio.get_running_loop())
        left = len(requests)
        try:
            self._add(stream)
            while left:
                event = await stream.events.get()
                if isinstance(event, Request):
                    left -= 1
                    if event.error is not None:
                        raise event.error
                yield event
        finally:
            self._remove(stream)
            self._engine.cancel(requests)

    async def _prepare(self, parsed: ParsedRequest) -> list[Request]:
        """`prepare` in the pool. Where the coroutine is cancelled meanwhile, it ends at its next report of progress."""
        cancelled = threading.Event()

        def progress(done: int, total: int, label: str) -> None:
            if cancelled.is_set():
                raise RequestError("the request was cancelled")
            if parsed.progress is not None:
                parsed.progress(done, total, label)

        # no text waits until somebody's video has been fetched
        pool = self._pool if any(message.media for message in parsed.messages) else self._text_pool
        preparing = pool.submit(prepare, self._engine, replace(parsed, progress=progress))
        try:
            return await asyncio.wrap_future(preparing)
        except asyncio.CancelledError:
            cancelled.set()
            preparing.add_done_callback(_release)
            raise
        finally:
            del preparing  # its error refers to this frame: together they would hold the request's media for long

    def _add(self, stream: Stream) -> None:
        """Submit the requests of a stream, and see to it that a thread waits for their pieces."""
        self._engine.submit(stream.running)
        with self._lock:
            self._streams.append(stream)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="longview-async")
                self._thread.start()

    def _remove(self, stream: Stream) -> None:
        with self._lock:
            if stream in self._streams:
                self._streams.remove(stream)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._streams:
                    self._thread = None
                    break
            with contextlib.suppress(Exception):  # a step that fails has ended every request with its error
                self._engine.wait_until(self._any_ready)
            for stream in tuple(self._streams):
                try:
                    stream.deliver()
                except RuntimeError:  # its loop was closed before the stream was
                    self._remove(stream)
                    self._engine.cancel(stream.running)
                if not stream.running:
                    self._remove(stream)
        self._engine.drop()  # what was cancelled last

    def _any_ready(self) -> bool:
        streams = tuple(self._streams)
        return not streams or any(stream.ready for stream in streams)


def _release(preparing: Future[list[Request]]) -> None:
    """Close the media of requests that nobody waits for any more."""
    if not preparing.cancelled() and preparing.exception() is None:
        for request in preparing.result():
            request.release()
