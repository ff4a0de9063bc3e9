"""What stands between the Guard and Gradio: only the routes that the page uses, and no URL in anything it is sent.

Gradio opens URLs that stand in its own payloads and paths, answers other sites' pages with CORS headers, and has routes
for what is not used here. None of that gets past this: a request for another route is none of the page's (404), one
that names a URL in the place of a file is refused (400), and an upload that the server has no room for, too (413).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longview.deadlines import end, within
from longview.serve.app import MAX_DEPTH, SILENT_SECONDS, Server, depth_of, incoming
from longview.serve.errors import APIError, invalid

ROUTES = {
    "GET": re.compile(
        r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte|pwa_icon)(/.*)?"
        r"|/gradio_api/(theme\.css|info/?|queue/data|upload_progress|startup-events|heartbeat/[^/]*|file=(?!\w+:|//).*)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|upload|cancel|reset)/?"),
}
ROUTES["HEAD"] = ROUTES["GET"]
WITH_JSON = re.compile(r"/gradio_api/(queue/join|cancel|reset)/?")
UPLOAD = re.compile(r"/gradio_api/upload/?")
HEARTBEAT = re.compile(r"/gradio_api/heartbeat/.*")
DRAIN_SECONDS = 0.5
"""After which a connection that only waits ends when the server does."""
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio compiles its templates
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Of the page: a browser loads nothing from elsewhere, whatever an answer says."""


class PageMount(Mount):
    """The page at the root: its own routes alone, so that all others stay what they are."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        known = scope["type"] == "http" and scope["method"] in ROUTES
        if not known or not ROUTES[scope["method"]].fullmatch(scope["path"]):
            return Match.NONE, {}
        return super().matches(scope)


class Shield:
    """ASGI: hands a request on to Gradio when it asks for nothing but what the page does."""

    def __init__(self, app: ASGIApp, server: Server, uploads: Path) -> None:
        self.app, self._server, self._uploads = app, server, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            if WITH_JSON.fullmatch(path):
                body = await self._read(Request(scope, receive))
                check(body)
                receive = _replay(body, receive)
            elif UPLOAD.fullmatch(path):
                await self._check_room(scope)
                receive = _unless_silent(receive)
        except ClientDisconnect:
            return
        except APIError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
            return
        # without an Origin, Gradio's CORS middleware says nothing; the Guard has seen it
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"origin"]}
        send = _hardened(send)
        if HEARTBEAT.fullmatch(path):
            await self._until_draining(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _until_draining(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold a connection that a browser keeps for as long as its tab is open, but none that keeps the server up."""
        holding = asyncio.ensure_future(self.app(scope, receive, send))
        try:
            while not self._server.draining and not holding.done():
                await asyncio.wait([holding], timeout=DRAIN_SECONDS)
        finally:
            await end(holding)
        if not holding.cancelled():
            holding.result()

    async def _read(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise APIError(415, "send Content-Type: application/json")
        limit, body = int(self._server.options.max_body_bytes), bytearray()
        async for chunk in incoming(request, self._server.options.request_seconds):
            body += chunk
            if len(body) > limit:
                raise APIError(413, f"the body is larger than {limit:,} bytes", code="body_too_large")
        return bytes(body)

    async def _check_room(self, scope: Scope) -> None:
        """Refuse an upload of unknown or too great length."""
        given = dict(scope["headers"]).get(b"content-length", b"")
        if not given.isdigit():
            raise APIError(411, "an upload says its length; send Content-Length")
        waiting = await asyncio.to_thread(bytes_alone, self._uploads)
        room = min(self._server.options.max_file_bytes, self._server.files.room - waiting)
        if int(given) > room:
            raise APIError(413, f"an upload has {max(0, room):,} bytes at most", "file", "file_too_large")


def bytes_alone(folder: Path) -> int:
    """Bytes of the files below a folder that are nowhere else: uploads that belong to no question yet."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it is deleted meanwhile
                status = os.stat(os.path.join(place, name))
                found += status.st_size if status.st_nlink == 1 else 0
    return found


def check(body: bytes) -> None:
    """
    Raises:
        APIError: it is no JSON, nests too deeply, or names a URL where a file belongs.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise invalid("the body is not JSON", code="invalid_json") from None
    if isinstance(data, (dict, list)) and depth_of(data) > MAX_DEPTH:
        raise invalid(f"the body nests objects and lists deeper than {MAX_DEPTH}", code="invalid_json")
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value and not _is_local(value["path"]):
                raise invalid("a file of the page is one that was uploaded to it", "data", "invalid_url")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _is_local(path: Any) -> bool:
    """Whether Gradio takes a path for that of a file of this machine; it then checks that the file was uploaded."""
    return path is None or (isinstance(path, str) and path.startswith("/") and not path.startswith("//"))


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read, and then what else comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


def _unless_silent(receive: Receive) -> Receive:
    """A `receive` whose client goes when it says nothing for long in the middle of a body."""

    async def in_time() -> Message:
        try:
            return await within(receive(), SILENT_SECONDS)
        except asyncio.TimeoutError:
            return {"type": "http.disconnect"}

    return in_time


def _hardened(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [each for each in message["headers"] if not each[0].lower().startswith(b"access-control-")]
            headers += [
                (b"content-security-policy", POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
            ]
            message = {**message, "headers": headers}
        await send(message)

    return with_headers
