"""Server-sent events: `data: …`, and comments that keep the connection open while nothing is to say.

Starlette's own streaming response learns of a client that has gone only when it writes; this one watches, so that the
generator is closed, and the request cancelled, at once. (sse-starlette also does, but replaces uvicorn's signal
handler and ends the streams of a server that drains.)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from longview.deadlines import end

KEEP_ALIVE_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def encode(data: Mapping[str, Any], event: str | None = None) -> bytes:
    """One event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class EventStream(Response):
    """A response of events.

    Args:
        events: Encoded events; closed when the client goes.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await until_disconnect(self._send_all(send), receive)
        await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        upcoming = asyncio.ensure_future(anext(self._events))
        try:
            while True:
                await asyncio.wait([upcoming], timeout=KEEP_ALIVE_SECONDS)
                if not upcoming.done():
                    await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
                    continue
                try:
                    body = upcoming.result()
                except StopAsyncIteration:
                    break
                upcoming = asyncio.ensure_future(anext(self._events))
                await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            await end(upcoming)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(work: Any, receive: Receive) -> Any:
    """The result of a coroutine; it is cancelled when the client goes, and None is returned."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await end(working, leaving)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
