"""Where the requests of a batch go: to one server or several, each with so many at a time.

A row goes to the server that has the fewest. What may pass is tried again, on whichever server is free: a connection
that fails, and 408, 409, 429 and 500 up without `x-should-retry: false`. A server is left alone for as long as
its `Retry-After` says, or longer each time that it cannot be reached.
"""

from __future__ import annotations

import asyncio
import base64
import mimetypes
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from longview.deadlines import within
from longview.errors import RequestError
from longview.http_client import ConnectionFailedError, Reply
from longview.requests import MiB
from longview.serve.batches.rows import Row
from longview.serve.errors import MAX_RETRY_AFTER, APIError, invalid

TRIES = 5
"""Of one row, of which each has failed in a way that may pass."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the second try, twice as many before each further one; at most."""
INLINE = 8 * MiB
"""Bytes up to which a file of the simple form is sent within the request; a larger one is uploaded, once a server."""
CHUNK = 1 << 20
PASSING = (408, 409, 429)
"""States that may pass, besides 500 and above."""


class Target(Protocol):
    """What answers requests."""

    address: str

    async def get(self, path: str) -> Reply: ...

    async def post(self, path: str, data: Any) -> Reply: ...

    async def upload(self, path: str, kind: str, parts: Any, length: int) -> Reply: ...


@dataclass(frozen=True)
class Outcome:
    """What became of a row: a reply, or why there is none."""

    status: int
    body: Any
    """Of the reply; where there is none, the reason."""

    @property
    def answered(self) -> bool:
        return self.status == 200

    @classmethod
    def of_error(cls, error: APIError) -> Outcome:
        return cls(error.status, error.body)


@dataclass
class _Server:
    target: Target
    busy: int = 0
    failures: int = 0
    """Connections that have failed one after the other."""
    free_at: float = 0.0
    """When it may be asked again."""
    reason: str = ""
    uploads: dict[str, asyncio.Future[str]] = field(default_factory=dict)
    """Ids of files, by path."""

    def leave_alone(self, seconds: float) -> None:
        self.free_at = max(self.free_at, time.monotonic() + seconds)


class Servers:
    """
    Args:
        concurrency: Requests of one server that run or wait there.
        patience: Seconds after which a batch ends when no server can be reached.
        sends_files: Files of the simple form travel with the request; otherwise the target opens them itself.
    """

    def __init__(
        self, targets: Sequence[Target], concurrency: int, patience: float = 120.0, sends_files: bool = True
    ) -> None:
        self._servers = [_Server(target) for target in targets]
        self._concurrency, self._patience, self._sends_files = concurrency, patience, sends_files
        self._changed = asyncio.Event()
        self._last_reply = time.monotonic()

    @property
    def concurrency(self) -> int:
        return self._concurrency * len(self._servers)

    async def models(self) -> list[str]:
        """The models of the first server that answers.

        Raises:
            RequestError: none does, or it wants another key.
        """
        for server in self._servers:
            try:
                reply = await server.target.get("/v1/models")
            except ConnectionFailedError as error:
                self._note_failure(server, str(error))
                continue
            _check_admitted(server, reply)
            found = reply.json()
            cards = found.get("data", []) if isinstance(found, Mapping) else []
            return [card["id"] for card in cards if isinstance(card, Mapping) and isinstance(card.get("id"), str)]
        raise self._nobody()

    async def answer(self, row: Row) -> Outcome:
        """
        Raises:
            RequestError: no server can be reached, or one wants another key.
        """
        tries = 0
        while True:
            server = await self._take()
            try:
                reply = await self._post(server, row)
            except ConnectionFailedError as error:
                outcome, wait = Outcome(0, f"{server.target.address}: {error}"), 0.0
                self._note_failure(server, str(error))
            except APIError as error:
                return Outcome.of_error(error)
            else:
                server.failures, self._last_reply = 0, time.monotonic()
                outcome = Outcome(reply.status, reply.json())
                _check_admitted(server, reply)
                if not _may_pass(reply):
                    return outcome
                wait = _retry_after(reply) or min(FIRST_WAIT * 2**tries, LONGEST_WAIT)
                if reply.status in (429, 503):
                    server.leave_alone(wait)
                    wait = 0.0
            finally:
                server.busy -= 1
                self._changed.set()
            tries += outcome.status != 429  # a full queue says nothing of the row
            if tries >= TRIES:
                return outcome
            await asyncio.sleep(wait)

    async def _take(self) -> _Server:
        """Wait for the server that has the fewest requests of those that may be asked."""
        while True:
            now = time.monotonic()
            free = [each for each in self._servers if each.busy < self._concurrency]
            ready = [each for each in free if each.free_at <= now]
            if ready:
                server = min(ready, key=lambda each: each.busy)
                server.busy += 1
                return server
            if all(each.failures for each in self._servers) and now - self._last_reply > self._patience:
                raise self._nobody()
            self._changed.clear()
            wait = min((each.free_at for each in free), default=now + 1.0) - now
            try:
                await within(self._changed.wait(), max(0.01, wait))
            except asyncio.TimeoutError:
                continue

    def _note_failure(self, server: _Server, reason: str) -> None:
        server.reason = reason
        server.leave_alone(min(FIRST_WAIT * 2 ** min(server.failures, 10), LONGEST_WAIT, self._patience / 4))
        server.failures += 1

    def _nobody(self) -> RequestError:
        told = "; ".join(f"{each.target.address} ({each.reason})" for each in self._servers)
        return RequestError(f"no server answers: {told}; see that one runs")

    # ── a request ──

    async def _post(self, server: _Server, row: Row) -> Reply:
        while True:
            body = await self._with_files(server, row.body) if row.own_files and self._sends_files else row.body
            reply = await server.target.post(row.url, body)
            if not (row.own_files and reply.status == 404 and b"file_not_found" in reply.body and server.uploads):
                return reply
            server.uploads.clear()  # they have expired

    async def _with_files(self, server: _Server, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body whose files have become data URIs, or ids of uploads."""
        messages = []
        for message in body["messages"]:
            content = message["content"]
            if not isinstance(content, str):
                content = [await self._part_with_file(server, part) for part in content]
            messages.append({**message, "content": content})
        return {**body, "messages": messages}

    async def _part_with_file(self, server: _Server, part: Mapping[str, Any]) -> Mapping[str, Any]:
        kind = part["type"]
        if kind == "text":
            return part
        url = part[kind]["url"]
        if isinstance(url, list):
            return {**part, kind: {**part[kind], "url": [await asyncio.to_thread(_data_uri, each) for each in url]}}
        path = _path_of(url)
        if path is None or _size(path) <= INLINE:
            return {**part, kind: {**part[kind], "url": await asyncio.to_thread(_data_uri, url)}}
        return {"type": "file", "file": {"file_id": await self._uploaded(server, path)}}

    async def _uploaded(self, server: _Server, path: Path) -> str:
        """The id of a file on a server, where it is uploaded once."""
        key = str(path)
        if key not in server.uploads:
            found = server.uploads[key] = asyncio.get_running_loop().create_future()
            try:
                found.set_result(await _upload(server.target, path))
            except BaseException as error:
                server.uploads.pop(key, None)
                failure = error if isinstance(error, Exception) else ConnectionFailedError("the upload was cancelled")
                found.set_exception(failure)
                found.exception()  # seen: whoever waits gets it, if anybody does
                raise
        return await asyncio.shield(server.uploads[key])


def _check_admitted(server: _Server, reply: Reply) -> None:
    """
    Raises:
        RequestError: the server wants another key, as it will for every row.
    """
    if reply.status in (401, 403):
        raise RequestError(f"{server.target.address} refuses this key ({reply.status}); see --server-key-env")


def _may_pass(reply: Reply) -> bool:
    if reply.headers.get("x-should-retry") in ("true", "false"):
        return reply.headers["x-should-retry"] == "true"
    return reply.status in PASSING or reply.status >= 500


def _retry_after(reply: Reply) -> float:
    given = reply.headers.get("retry-after", "")
    return min(float(given), MAX_RETRY_AFTER) if given.isdigit() else 0.0


# ── files ──


def _path_of(url: str) -> Path | None:
    return Path(unquote(urlsplit(url).path)) if url.startswith("file://") else None


def _size(path: Path) -> int:
    """
    Raises:
        APIError: there is no such file.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise invalid(f"{path} cannot be read ({error.strerror})", None, "invalid_media") from None


def _data_uri(url: str) -> str:
    path = _path_of(url)
    if path is None:
        return url
    try:
        data = path.read_bytes()
    except OSError as error:
        raise invalid(f"{path} cannot be read ({error.strerror})", None, "invalid_media") from None
    return f"data:{_mime(path)};base64,{base64.b64encode(data).decode()}"


def _mime(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


async def _upload(target: Target, path: Path) -> str:
    """
    Raises:
        APIError: the server does not take it.
        ConnectionFailedError: it cannot be reached.
    """
    edge = "longview-form-boundary-7d3f9a1c"
    name = path.name.encode(errors="replace").decode().replace('"', "%22").replace("\n", " ")
    fields = f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    head = (
        f'{fields}--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: {_mime(path)}\r\n\r\n"
    ).encode()
    tail = f"\r\n--{edge}--\r\n".encode()

    def parts() -> Iterator[bytes]:
        yield head
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
        yield tail

    length = len(head) + _size(path) + len(tail)
    reply = await target.upload("/v1/files", f"multipart/form-data; boundary={edge}", parts(), length)
    found = reply.json()
    if reply.status == 200 and isinstance(found, Mapping) and isinstance(found.get("id"), str):
        return found["id"]
    if _may_pass(reply):
        raise ConnectionFailedError(f"an upload ended with {reply.status}")
    why = found["error"]["message"] if isinstance(found, Mapping) and "error" in found else reply.status
    raise invalid(f"{path.name} cannot be uploaded ({why})", None, "invalid_media")
