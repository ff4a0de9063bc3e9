"""A model without a server: the routes of one, called in this process, with the engine in a process of its own.

So a request means what it means over HTTP, and a process that dies is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from longview.http_client import Reply
from longview.requests import Limits
from longview.serve.app import Server, create_app
from longview.serve.files import FileStore
from longview.serve.models import Models
from longview.serve.settings import ServedModel, ServerOptions

HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]
MANY = 1 << 40
SECONDS = 30 * 86400.0
"""That a row may take: nobody waits at the other end of a connection."""


class LocalRoutes:
    """The app, asked without a socket."""

    def __init__(self, app: Any, address: str) -> None:
        self._app, self.address = app, address

    async def get(self, path: str) -> Reply:
        return await self._ask("GET", path, b"")

    async def post(self, path: str, data: Any) -> Reply:
        return await self._ask("POST", path, data if isinstance(data, bytes) else json.dumps(data).encode())

    async def upload(self, path: str, kind: str, parts: Any, length: int) -> Reply:
        raise NotImplementedError("a file of this machine is opened where it is")

    async def _ask(self, method: str, path: str, body: bytes) -> Reply:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": HEADERS,
            "client": None,
            "server": ("localhost", 80),
        }
        asked = [{"type": "http.request", "body": body, "more_body": False}]
        status, headers, parts = 500, {}, []

        async def receive() -> dict[str, Any]:
            if asked:
                return asked.pop()
            await asyncio.Event().wait()  # the client never goes
            raise AssertionError

        async def send(message: Mapping[str, Any]) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return Reply(status, headers, b"".join(parts))


@contextlib.asynccontextmanager
async def local_routes(name: str, load: Mapping[str, Any], limits: Limits) -> AsyncIterator[tuple[LocalRoutes, int]]:
    """The routes of a model that is opened for them, and how many requests it runs concurrently.

    Args:
        load: Arguments of `longview.load`, as JSON.

    Raises:
        CheckpointError: the model cannot be opened.
    """
    given = asdict(limits)
    roots = None if limits.file_roots is None else [str(root) for root in limits.file_roots]
    pool = Models({name: ServedModel(load)}, {**given, "file_roots": roots}, max_queue=MANY)
    options = ServerOptions(
        media_root="/", max_body_bytes=MANY, max_text_bytes=MANY, max_messages=MANY, request_seconds=SECONDS
    )
    files = FileStore(None, limits, 1, 0, 1)
    try:
        await pool.start()
        app = create_app(Server(options, limits, pool, files))
        yield LocalRoutes(app, name), pool.find(name).facts["max_requests"]
    finally:
        await pool.stop()
        files.close()
