"""A client of OpenAI-compatible servers, for asyncio: JSON, uploads and event streams over connections that are kept.

For thousands of requests to servers that the user names; what others name is fetched by `longview.media.web`, behind
guards. Redirects are not followed, so that a key reaches the named server only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from longview.deadlines import within
from longview.errors import RequestError

BUFFER = 1 << 22
"""Bytes of a line of a reply, at most: of one event."""
MAX_BODY = 1 << 28
IDLE_SECONDS = 4.0
"""uvicorn closes a connection that has been idle for 5."""


class ConnectionFailedError(Exception):
    """A server cannot be reached, or has ended a reply before its end."""


@dataclass(frozen=True)
class Reply:
    """A whole reply. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Its body; a string of it where it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return self.body[:1000].decode(errors="replace")


class Response:
    """A reply whose body has not been read."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status, self.headers, self._reader = status, headers, reader
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length")
        self._left = 0 if status in (204, 304) else int(length) if length is not None else None
        self.complete = not self._chunked and self._left == 0

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while not self.complete:
            if self._chunked:
                size = int((await self._reader.readline()).split(b";")[0] or b"x", 16)
                data = await self._reader.readexactly(size)
                await self._reader.readexactly(2)
                self.complete = size == 0
            else:
                data = await self._reader.read(min(self._left or BUFFER, BUFFER))
                if self._left is not None:
                    if not data:
                        raise asyncio.IncompleteReadError(b"", self._left)
                    self._left -= len(data)
                self.complete = self._left == 0 or (self._left is None and not data)
            if data:
                yield data

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            ConnectionFailedError: it is larger than any answer.
        """
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > MAX_BODY:
                raise ConnectionFailedError(f"its reply is larger than {MAX_BODY:,} bytes")
        return bytes(body)

    async def events(self) -> AsyncIterator[str]:
        """The data of server-sent events."""
        left = b""
        async for chunk in self.chunks():
            *lines, left = (left + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode(errors="replace")


class Client:
    """A server.

    Args:
        address: As far as /v1, which may be left out.
        key: Sent as `Authorization: Bearer`.
        seconds: For one reply, from the request to its end.

    Raises:
        RequestError: no http(s) address.
    """

    def __init__(self, address: str, key: str | None = None, seconds: float = 600.0) -> None:
        parts = urlsplit(address if re.match(r"https?://", address) else "")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if not parts.hostname or port == 0 or parts.query or parts.fragment or parts.username:
            raise RequestError(f"{address!r:.80} is no server; give an address as http://127.0.0.1:8000/v1")
        self.address = address.rstrip("/").removesuffix("/v1")
        self.seconds = seconds
        self._host, self._port = parts.hostname, port or (443 if parts.scheme == "https" else 80)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = {"Host": parts.netloc, "Accept": "*/*", "User-Agent": "longview"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self, path: str) -> Reply:
        return await self._whole("GET", path)

    async def post(self, path: str, data: Any) -> Reply:
        """Post JSON: an object, or one that is encoded already.

        Raises:
            ConnectionFailedError: the server cannot be reached, or does not answer in time.
        """
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        return await self._whole("POST", path, [body], {"Content-Type": "application/json"}, len(body))

    async def upload(self, path: str, kind: str, parts: Iterable[bytes], length: int) -> Reply:
        """Post a body that is too large for memory, of so many bytes."""
        return await self._whole("POST", path, parts, {"Content-Type": kind}, length)

    async def _whole(self, *request: Any) -> Reply:
        async def read() -> Reply:
            async with self.open(*request) as response:
                return Reply(response.status, response.headers, await response.read())

        try:
            return await within(read(), self.seconds)
        except asyncio.TimeoutError:
            raise ConnectionFailedError(f"no reply in {self.seconds:g} s") from None

    @contextlib.asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        body: Iterable[bytes] = (),
        headers: Mapping[str, str] | None = None,
        length: int = 0,
    ) -> AsyncIterator[Response]:
        """Send a request; its response is read inside the block. Leaving that early closes the connection.

        Raises:
            ConnectionFailedError: the server cannot be reached, or ends its reply too early.
        """
        given = {**self._headers, **(headers or {}), **({"Content-Length": str(length)} if method == "POST" else {})}
        lines = [f"{method} {self._path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
        head = "\r\n".join([*lines, "", ""]).encode()
        writer = response = None
        try:
            reader, writer, response = await self._send(head, body)
            yield response
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ConnectionFailedError(_reason(error)) from None
        finally:
            if writer is not None:
                if response is not None and response.complete and response.headers.get("connection") != "close":
                    self._idle.append((time.monotonic(), reader, writer))
                else:
                    writer.close()

    async def _send(
        self, head: bytes, body: Iterable[bytes]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Response]:
        reader, writer = self._kept() or await asyncio.open_connection(
            self._host, self._port, ssl=self._tls, limit=BUFFER
        )
        try:
            writer.write(head)
            for part in body:
                writer.write(part)
                await writer.drain()
            return reader, writer, await _read_head(reader)
        except BaseException:
            writer.close()
            raise

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that is open still. A request on one that the server closes meanwhile would fail, so that those
        which have been idle for long are not used."""
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        for _, _, writer in self._idle:
            writer.close()
        self._idle.clear()


async def _read_head(reader: asyncio.StreamReader) -> Response:
    """The status and headers of a reply."""
    while True:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        if status >= 200:
            break
    pairs = (line.partition(":") for line in lines[1:] if line)
    return Response(status, {name.strip().lower(): value.strip() for name, _, value in pairs}, reader)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
    return "the connection was closed" if isinstance(error, asyncio.IncompleteReadError) else "it speaks no HTTP"
