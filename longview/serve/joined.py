"""Models that join a running server: the server's side of `longview serve --model C --to ADDRESS` (`join.py`).

    POST /v1/models     one request for as long as the model stays: its body carries events, its reply jobs, as between
                        the server and a process of its own (`wire.py`). No port is opened, nothing is fetched, and the
                        server loads nothing that a client names: who joins has loaded the model.

        body     join {name, adapters} ─────────── ready {facts} ────────── events … stats … leaving
        reply                     limits {limits} ──────────────── listed ── jobs … ping … leave

A side that says nothing for `SILENT_SECONDS` is taken for dead. Whoever may ask may join, but without keys only from
this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, TypeAdapter
from starlette.types import Receive, Scope, Send

from longview.deadlines import end, within
from longview.serve import wire
from longview.serve.backend import Channel, StatsTaker
from longview.serve.errors import APIError, invalid
from longview.serve.models import Models

if TYPE_CHECKING:
    from longview.serve.app import Server

CONTENT_TYPE = "application/vnd.longview.worker"
"""No form and no text, so that a browser asks before it sends it for a page of another site."""
PING_SECONDS, SILENT_SECONDS = 1.0, 10.0
MAX_MESSAGE = 64 << 20
WRONG = (ValueError, TypeError, KeyError, AttributeError)
"""What a message that is none ends in; pydantic's errors are ValueErrors."""
SILENT = (TimeoutError, asyncio.TimeoutError)
logger = logging.getLogger("longview.serve")


class Joining(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    adapters: Annotated[list[str], Field(max_length=64)]


class Facts(BaseModel):
    """What a model that joins has to say of itself; see `engines.facts_of`."""

    model_config = ConfigDict(strict=True)
    family: str
    release: str
    context_length: int
    picture_positions: int
    max_requests: Annotated[int, Field(ge=1)]
    draws: bool = False
    paints: bool = False


STATS: TypeAdapter[dict[str, dict[str, float]]] = TypeAdapter(dict[str, dict[str, StrictFloat | StrictInt]])


class Joined(Channel):
    """A model behind a request of another process."""

    LOST = "left"

    def __init__(self, name: str, send: Send, on_stats: StatsTaker) -> None:
        super().__init__(name, on_stats)
        self._asgi_send = send
        self.leaving = False
        """It goes when its jobs have ended."""

    @property
    def is_started(self) -> bool:
        return True  # what has joined is loaded

    def _down(self) -> APIError:
        return APIError(503, f"the process of {self.name} has left this server", "model", "model_down", 5)

    async def _send(self, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
        body = b"".join(wire.encode(header, blobs))  # at once, as others send meanwhile
        await self._asgi_send({"type": "http.response.body", "body": body, "more_body": True})

    async def tell(self, what: str, **more: Any) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            await self._send({"do": what, **more})

    def open(self, facts: Mapping[str, Any]) -> None:
        self.facts.update(facts)
        self.ready = True

    def take(self, events: Sequence[Any]) -> None:
        """Hand on what has come."""
        for event in events:
            if event["event"] == "leaving":
                self.leaving = True
            elif event["event"] == "stats":
                self._on_stats(STATS.validate_python(event["stats"]))
            else:
                self._dispatch(event)

    def close(self) -> None:
        self._lose()


class Messages:
    """The body of a request as messages."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._decoder = receive, wire.Decoder(MAX_MESSAGE)
        self._whole: deque[wire.Message] = deque()

    async def next(self) -> dict[str, Any]:
        """
        Raises:
            EOFError: it is at its end.
            asyncio.TimeoutError: nothing has come for too long.
            ValueError: what came is no message.
        """
        while not self._whole:
            came = await within(self._receive(), SILENT_SECONDS)
            if came["type"] != "http.request" or not (came.get("body") or came.get("more_body")):
                raise EOFError
            self._whole.extend(self._decoder.feed(came.get("body", b"")))
        return self._whole.popleft()[0]


class Connection(Response):
    """The reply to a process that joins: jobs, until it goes.

    Args:
        messages: What it sends; the first has been read.
    """

    def __init__(self, server: Server, messages: Messages, joining: Joining) -> None:
        super().__init__(media_type=CONTENT_TYPE)
        del self.headers["content-length"]
        self._server, self._messages, self._joining = server, messages, joining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        models, name, adapters = self._server.models, self._joining.name, self._joining.adapters
        names = {"": name, **{adapter: adapter for adapter in adapters}}
        joined = Joined(name, send, partial(models.metrics.update, names))
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        tasks = [asyncio.create_task(work) for work in (self._serve(joined, models), self._ping(joined, models))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            models.leave(joined)
            joined.close()
            models.metrics.forget(names.values())
            await end(*tasks)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _serve(self, joined: Joined, models: Models) -> None:
        """List the model when it is open, and hand on what it says, until it says nothing more."""
        name, adapters = joined.name, self._joining.adapters
        try:
            with models.reserved([name, *adapters]):
                await joined.tell("limits", limits=models.limits)
                joined.open(await self._facts())
                models.join(joined, adapters)
            await joined.tell("listed")
            logger.info("%s has joined", name)
            while True:
                joined.take((await self._messages.next())["events"])
        except EOFError:
            if not joined.leaving:
                logger.warning("%s has left, as its process has ended", name)
        except SILENT:
            logger.warning("%s has said nothing for %g s, and is taken for dead", name, SILENT_SECONDS)
        except WRONG as error:
            logger.warning("%s has sent what is no message: %.200r", name, error)

    async def _facts(self) -> Mapping[str, Any]:
        """Wait until the model is open."""
        while True:
            for event in (await self._messages.next())["events"]:
                if event["event"] == "ready":
                    return Facts.model_validate(event["facts"]).model_dump()

    async def _ping(self, joined: Joined, models: Models) -> None:
        """Tell that the server lives, until the model is to go and nothing of it runs."""
        while not ((joined.leaving or self._server.draining) and not joined.num_wanted):
            await joined.tell("ping")
            await asyncio.sleep(PING_SECONDS)
            if joined.leaving:
                models.leave(joined)
        await joined.tell("leave" if joined.leaving else "end")


def add_join_routes(app: FastAPI, server: Server) -> None:
    async def join_model(request: Request) -> Response:
        if request.headers.get("content-type") != CONTENT_TYPE:
            raise APIError(415, "a model joins by longview serve --model MODEL --to ADDRESS", code="not_a_worker")
        if not server.keys and not _is_local(request):
            message = "without keys models join from this machine only; start the server with --api-key"
            raise APIError(403, message, code="join_not_allowed")
        messages = Messages(request.receive)
        try:
            joining = Joining.model_validate((await messages.next())["join"])
        except (EOFError, *SILENT, *WRONG):
            raise invalid("this is no model that joins", code="not_a_worker") from None
        with server.models.reserved([joining.name, *joining.adapters]):
            return Connection(server, messages, joining)

    # not of the API: one version of longview speaks to the same
    app.add_route("/v1/models", join_model, methods=["POST"], include_in_schema=False)

    @app.delete("/v1/models/{name:path}")
    async def delete_model(name: str) -> Response:
        """Remove a model that has joined; what it answers now it answers to the end."""
        model = server.models.find(name)
        if not isinstance(model, Joined):
            message = f"{name} was started with the server; only a model that has joined it (--to) is removed"
            raise APIError(403, message, "model", "model_not_removable")
        model.leaving = True
        server.models.leave(model)
        return JSONResponse({"id": name, "object": "model", "deleted": True})


def _is_local(request: Request) -> bool:
    """Whether a request comes from this machine, and for nobody else."""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for"))
    host = request.client.host if request.client is not None else ""
    try:
        return ipaddress.ip_address(host).is_loopback and not forwarded
    except ValueError:
        return False
