"""The server's side of a model's process (`worker.py`): starts it, hands jobs over, watches it, starts it again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longview.errors import CheckpointError
from longview.serve import wire
from longview.serve.errors import APIError

MAX_RESTARTS, RESTART_WINDOW = 5, 60.0
"""A process that dies is started again no more often than so many times in so many seconds."""
END_SECONDS = 5.0
logger = logging.getLogger("longview.serve")


@dataclass
class Job:
    """What a process is to answer."""

    messages: Sequence[Mapping[str, Any]]
    """Each with a role and parts; see `worker.message_of`."""
    settings: Mapping[str, Any]
    """Keywords of `Engine.stream`, but for limits."""
    blobs: Sequence[bytes] = ()
    params: Sequence[str] = ()
    """Where in the request each medium stands."""
    do: str = "answer"
    """Or "score" answers of `questions`, or "render": say what answering would take."""
    questions: Sequence[Mapping[str, Any]] = ()
    """Each with parts, as messages have them, and answers."""


@dataclass
class Stream:
    """The events of one job, until `ended`."""

    request: int
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)


class ModelProcess:
    """A model in a process of its own.

    Args:
        config: Its first message: arguments of `longview.load`, and the limits of media.
        on_stats: Takes what it says of itself: `worker.stats_of` by adapter.
    """

    def __init__(
        self, name: str, config: Mapping[str, Any], on_stats: Callable[[Mapping[str, Any]], None] = lambda _: None
    ) -> None:
        self.name, self.config, self._on_stats = name, config, on_stats
        self.facts: dict[str, Any] = {}
        """What the process says of its model; stays when it ends."""
        self.ready = False
        self.last_used = 0.0
        self.num_wanted = 0
        """Requests that need it, those included that wait until it is loaded."""
        self._streams: dict[int, Stream] = {}
        self._next_request = 0
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._restarts: deque[float] = deque()

    @property
    def is_started(self) -> bool:
        """It is to run: it does, or is being started, or started again."""
        return self._watcher is not None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process, and wait until its model is open.

        Raises:
            CheckpointError: the model cannot be opened; says why.
        """
        reader = await self._spawn()
        self._watcher = asyncio.create_task(self._watch(reader), name=f"watch {self.name}")

    async def stop(self) -> None:
        """End the process. Jobs that it has not answered end in an error."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        await self._end()

    async def events(self, job: Job, adapter: str = "") -> AsyncGenerator[dict[str, Any]]:
        """The events of a job as `worker.py` sends them; the last is `ended`. Leaving early cancels the job.

        Args:
            adapter: Which of the adapters on the model answers; "" for none.

        Raises:
            APIError: the process is not running.
        """
        stream = await self._begin(job, adapter)
        try:
            while True:
                event = await stream.events.get()
                yield event
                if event["event"] == "ended":
                    return
        finally:
            if self._streams.pop(stream.request, None) is not None:
                await self._send({"do": "cancel", "request": stream.request})

    async def _begin(self, job: Job, adapter: str) -> Stream:
        if not self.ready:
            raise self._down()
        self._next_request += 1
        stream = self._streams[self._next_request] = Stream(self._next_request)
        self.last_used = time.monotonic()
        header = {
            "do": job.do,
            "request": stream.request,
            "messages": job.messages,
            "settings": job.settings,
            "questions": job.questions,
            "adapter": adapter,
        }
        await self._send(header, job.blobs)
        return stream

    def _down(self) -> APIError:
        return APIError(
            503,
            f"the process of {self.name} is being started; try again in a few seconds",
            code="model_down",
            retry_after=5,
        )

    async def _send(self, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
        assert self._writer is not None
        self._writer.writelines(wire.encode(header, blobs))
        with contextlib.suppress(ConnectionError):  # the watcher notices, too
            await self._writer.drain()

    # ── the process ──

    async def _spawn(self) -> asyncio.StreamReader:
        """Start a process, and wait until its model is open; returns what it writes."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "longview.serve.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        await self._send(self.config)
        try:
            header, _ = await wire.read(reader)
        except EOFError:
            status = await self._process.wait()
            raise CheckpointError(
                f"the process of {self.name} ended with status {status} while it opened the model"
            ) from None
        except BaseException:
            await self._end()
            raise
        (event,) = header["events"]
        if event["event"] == "failed":
            await self._end()
            raise CheckpointError(event["text"])
        self.facts.update(event["facts"])
        self.ready = True
        return reader

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Hand events to the streams of their jobs; when the process ends, start another."""
        while True:
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    header, _ = await wire.read(reader)
                    for event in header["events"]:
                        self._dispatch(event)
            await self._end()
            assert self._process is not None
            logger.warning("the process of %s ended with status %s", self.name, self._process.returncode)
            reader = await self._restart()

    async def _restart(self) -> asyncio.StreamReader:
        while True:
            now = time.monotonic()
            while self._restarts and self._restarts[0] <= now - RESTART_WINDOW:
                self._restarts.popleft()
            if len(self._restarts) >= MAX_RESTARTS:
                await asyncio.sleep(self._restarts[0] + RESTART_WINDOW - now)
                continue
            self._restarts.append(now)
            try:
                return await self._spawn()
            except CheckpointError as error:
                logger.error("%s cannot be started again: %s", self.name, error)

    def _dispatch(self, event: dict[str, Any]) -> None:
        if event["event"] == "stats":
            self._on_stats(event["stats"])
            return
        stream = self._streams.get(event["request"])
        if stream is None:  # it was cancelled meanwhile
            return
        if event["event"] == "ended":
            del self._streams[stream.request]
        stream.events.put_nowait(event)

    async def _end(self) -> None:
        """Close the connection, and wait for the process, which ends then; and end its jobs."""
        self.ready = False
        self._on_stats({})
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.events.put_nowait({"event": "ended", "error": {"kind": "process", "text": ""}})
        if self._writer is not None:
            self._writer.close()
        if self._process is not None and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), END_SECONDS)
            except asyncio.TimeoutError:
                self._process.kill()
                await self._process.wait()
