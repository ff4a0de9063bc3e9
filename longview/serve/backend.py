"""What answers the jobs of a model: a process of this server, one that has joined it, or replicas of Ray.

Backend ── Channel ── process.py   ModelProcess: started and watched by the server
   │          └────── joined.py    Joined: another command's, which has come to the server
   └───────────────── ray.py       Replicas
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from longview.serve.errors import APIError

StatsTaker = Callable[[Mapping[str, Any]], None]
"""Takes what a backend says of itself: `engines.stats_of` by adapter; nothing when it ends."""

MAX_SENT = 128 << 20
"""Bytes of files that go along with a job to a model that does not see them."""
UNSEEN = "unseen"
"""The kind of the error of a job whose files its model does not see."""


@dataclass
class Job:
    """What a model is to answer."""

    messages: Sequence[Mapping[str, Any]]
    """Each with a role and parts; see `engines.message_of`."""
    settings: Mapping[str, Any]
    """Keywords of `Engine.stream`, but for limits."""
    blobs: Sequence[bytes] = ()
    params: Sequence[str] = ()
    """Where in the request each medium stands."""
    do: str = "answer"
    """Or "score" answers of `questions`; "render": say what answering would take; "evidence": say what the answer rests
    on, checked, and show its pictures."""
    questions: Sequence[Mapping[str, Any]] = ()
    """Each with parts, as messages have them, and answers."""
    thumbnails: bool = False
    """Of "render": show the frames, and the relevance of those that were not chosen."""

    def with_bytes(self) -> Job:
        """The same job for a model that does not see this machine's files: their bytes go along.

        Raises:
            APIError: they are too many, or a file is gone.
        """
        blobs, left = list(self.blobs), MAX_SENT

        def sent(source: Any, name: str) -> Any:
            nonlocal left
            if isinstance(source, list):
                return [sent(each, name) for each in source]
            if not (isinstance(source, str) and source.startswith("/")):
                return source
            try:
                with open(source, "rb") as file:
                    data = file.read(left + 1)
            except OSError as error:
                text = f"{name} is gone ({error.strerror}); upload it again"
                raise APIError(404, text, code="file_not_found") from None
            left -= len(data)
            if left < 0:
                text = f"{name} is too large: a model that does not see --files is sent {MAX_SENT >> 20} MiB a request"
                raise APIError(413, f"{text}; put the folder where it sees it", code="file_too_large")
            blobs.append(b"data:application/octet-stream;base64," + base64.b64encode(data))
            return {"blob": len(blobs) - 1}

        def part(given: Mapping[str, Any]) -> Mapping[str, Any]:
            if given["type"] == "text":
                return given
            return {**given, "source": sent(given["source"], given.get("name") or "a file")}

        messages = [{**each, "parts": list(map(part, each["parts"]))} for each in self.messages]
        questions = [{**each, "parts": list(map(part, each["parts"]))} for each in self.questions]
        return replace(self, messages=messages, questions=questions, blobs=blobs)

    def header(self, adapter: str, request: int) -> dict[str, Any]:
        """As `worker.py` reads it; the blobs go beside."""
        said = {name: getattr(self, name) for name in ("do", "messages", "settings", "questions", "thumbnails")}
        return {**said, "adapter": adapter, "request": request}


class Backend:
    """
    Args:
        on_stats: Takes what it says of itself.
    """

    def __init__(self, name: str, on_stats: StatsTaker = lambda _: None) -> None:
        self.name, self._on_stats = name, on_stats
        self.facts: dict[str, Any] = {}
        """What it says of its model; stays when it ends."""
        self.ready = False
        self.last_used = 0.0
        self.num_wanted = 0
        """Requests that need it, those included that wait until it is loaded."""

    @property
    def is_started(self) -> bool:
        """It is to run: it does, or is being started, or started again."""
        raise NotImplementedError

    async def start(self) -> None:
        """Load the model, and wait until it is open.

        Raises:
            CheckpointError: the model cannot be opened; says why.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """End it. Jobs that it has not answered end in an error."""
        raise NotImplementedError

    def events(self, job: Job, adapter: str = "") -> AsyncGenerator[dict[str, Any]]:
        """The events of a job as `worker.py` sends them; the last is `ended`. Leaving early cancels the job.

        Args:
            adapter: Which of the adapters on the model answers; "" for none.

        Raises:
            APIError: it does not run.
        """
        raise NotImplementedError


@dataclass
class Stream:
    """The events of one job, until `ended`."""

    request: int
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)


class Channel(Backend):
    """A backend behind a connection, which carries jobs there and the events of all of them back."""

    LOST = "process"
    """The kind of the error in which jobs end when the connection does; see `errors.of_job`."""

    def __init__(self, name: str, on_stats: StatsTaker = lambda _: None) -> None:
        super().__init__(name, on_stats)
        self._streams: dict[int, Stream] = {}
        self._next_request = 0

    async def _send(self, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Send a message; one that nobody reads any more is no error."""
        raise NotImplementedError

    def _down(self) -> APIError:
        """What a request gets while the connection is not there."""
        raise NotImplementedError

    async def events(self, job: Job, adapter: str = "") -> AsyncGenerator[dict[str, Any]]:
        if not self.ready:
            raise self._down()
        self._next_request += 1
        stream = self._streams[self._next_request] = Stream(self._next_request)
        self.last_used = time.monotonic()
        try:
            await self._send(job.header(adapter, stream.request), job.blobs)
            while True:
                event = await stream.events.get()
                yield event
                if event["event"] == "ended":
                    return
        finally:
            if self._streams.pop(stream.request, None) is not None:
                with contextlib.suppress(ConnectionError):
                    await self._send({"do": "cancel", "request": stream.request})

    def _dispatch(self, event: dict[str, Any]) -> None:
        """Hand an event to the stream of its job."""
        if event["event"] == "stats":
            self._on_stats(event["stats"])
            return
        stream = self._streams.get(event["request"])
        if stream is None:  # it was cancelled meanwhile
            return
        if event["event"] == "ended":
            del self._streams[stream.request]
        stream.events.put_nowait(event)

    def _lose(self) -> None:
        """The connection is gone: end all jobs."""
        self.ready = False
        self._on_stats({})
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.events.put_nowait({"event": "ended", "error": {"kind": self.LOST, "text": ""}})
