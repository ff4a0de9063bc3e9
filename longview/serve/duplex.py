"""The client's side of a request whose body and reply are both streams of messages (`wire.py`), over HTTP/1.1."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import h11

from longview.deadlines import within
from longview.errors import RequestError
from longview.media.text import printable
from longview.serve import wire

MAX_MESSAGE = 256 << 20  # a request's media, in base64
CONNECT_SECONDS = 10.0
LOST = (OSError, EOFError, ValueError, asyncio.TimeoutError, h11.ProtocolError)
"""What a connection that is gone, or that is none, ends in."""


class Refused(RequestError):
    """The server has answered with an error.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Duplex:
    """An open request.

    Args:
        silent_seconds: After so long without a message the server is taken for dead.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silent_seconds: float) -> None:
        self._reader, self._writer, self._silent_seconds = reader, writer, silent_seconds
        self._http = h11.Connection(h11.CLIENT)
        self._decoder, self._whole = wire.Decoder(MAX_MESSAGE), deque[wire.Message]()
        self._events: list[Mapping[str, Any]] = []

    @classmethod
    async def open(cls, address: str, path: str, headers: Mapping[str, str], silent_seconds: float) -> Duplex:
        """Connect, and begin a POST request.

        Raises:
            RequestError: the address is none.
            OSError: nobody listens there.
        """
        parts = urlsplit(address)
        try:
            host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            host = None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise RequestError(f"{address!r:.80} is no address of a server; give one as http://127.0.0.1:8000")
        context = ssl.create_default_context() if parts.scheme == "https" else None
        link = cls(*await _connect(host, port, context), silent_seconds)
        sent = {"Host": parts.netloc.rpartition("@")[2], "Transfer-Encoding": "chunked", **headers}
        link._write(h11.Request(method="POST", target=parts.path.rstrip("/") + path, headers=list(sent.items())))
        return link

    def _write(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)

    def send(self, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Send a message; one that cannot be sent any more is lost, as `read` tells."""
        if self._http.our_state is h11.SEND_BODY:
            self._write(h11.Data(data=b"".join(wire.encode(header, blobs))))

    def put(self, event: Mapping[str, Any]) -> None:
        """Send an event; those that come together are one message."""
        if not self._events:
            asyncio.get_running_loop().call_soon(self._flush)
        self._events.append(event)

    def _flush(self) -> None:
        events, self._events = self._events, []
        self.send({"events": events})

    async def read(self) -> wire.Message:
        """The next message.

        Raises:
            Refused: the server refuses the request.
            EOFError: the reply has ended.
            OSError, asyncio.TimeoutError: the server is gone, or says nothing.
            ValueError, h11.ProtocolError: it is no server of this kind.
        """
        while not self._whole:
            event = await self._next_event()
            if isinstance(event, h11.Response) and event.status_code != 200:
                raise await self._refusal(event)
            if isinstance(event, h11.Data):
                self._whole.extend(self._decoder.feed(bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                raise EOFError("the reply has ended")
        return self._whole.popleft()

    async def _next_event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await within(self._reader.read(1 << 16), self._silent_seconds))
        return event

    async def _refusal(self, response: h11.Response) -> Refused:
        body = b""
        with contextlib.suppress(*LOST):
            while isinstance(event := await self._next_event(), h11.Data) and len(body) < 1 << 16:
                body += bytes(event.data)
        try:
            said = str(json.loads(body)["error"]["message"])
        except (ValueError, TypeError, KeyError):
            said = "no longview serves there"
        return Refused(response.status_code, f"{response.status_code}: {printable(said, 400)}")

    def close(self) -> None:
        self._writer.close()


async def _connect(
    host: str, port: int, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    opening = asyncio.ensure_future(asyncio.open_connection(host, port, ssl=context))
    try:
        return await within(opening, CONNECT_SECONDS)
    except BaseException:
        if not opening.cancelled() and opening.exception() is None:  # nobody takes the connection
            opening.result()[1].close()
        raise
