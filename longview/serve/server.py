"""Run the server: bind, open the models, print one address, serve until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from longview.errors import RequestError
from longview.serve.app import Server, create_app
from longview.serve.files import FileStore
from longview.serve.indexes import Indexes
from longview.serve.models import MakeBackend, Models
from longview.serve.process import ModelProcess
from longview.serve.security import MAX_HEADER_BYTES
from longview.serve.settings import ServedModel, ServerLimits, ServerOptions, keys_of
from longview.versions import missing

HEAD_SECONDS = 20.0
"""A connection on which no request's head is complete for so long is closed."""


class Protocol(H11Protocol):
    """HTTP/1.1 with a bound of time for heads, which uvicorn lacks; its httptools protocol has none of size, either."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._end_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Uvicorn(uvicorn.Server):
    """A second signal of either kind ends at once; by itself, uvicorn takes a second Ctrl-C only."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets and self.started:  # not before: a client that reads the line finds the server
            print(f"longview serves {', '.join(self._server.models.names)} at {address_of(sockets[0])}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        logging.getLogger("uvicorn.error").disabled = self.force_exit  # of tasks that end in the middle
        self.should_exit = self._server.draining = True


def bind(options: ServerOptions) -> socket.socket:
    """
    Raises:
        RequestError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # with its protocol named: only then asyncio turns Nagle's algorithm off, which delays each reply by 40 ms
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        raise RequestError(
            f"{options.host}:{options.port} cannot be listened on ({error.strerror}); choose another --host or --port"
        ) from None
    return listening


def address_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(models: Mapping[str, ServedModel], options: ServerOptions, limits: ServerLimits) -> None:
    """Serve until SIGTERM or Ctrl-C. What runs then may go on for a while; a second signal ends at once.

    Args:
        models: By the name that clients give.

    Raises:
        CheckpointError: a model cannot be opened.
        RequestError: the address cannot be listened on.
    """
    with bind(options) as listening, backends(options, len(models)) as make:
        asyncio.run(_serve(models, options, limits, listening, make))


@contextlib.contextmanager
def backends(options: ServerOptions, num_models: int) -> Iterator[MakeBackend]:
    """What makes the backends of models: processes, or replicas on a Ray cluster, which is connected meanwhile."""
    if not options.on_ray:
        yield ModelProcess
        return
    from longview.serve.ray import Cluster

    cluster = Cluster(options, num_models)
    try:
        yield cluster.make
    finally:
        cluster.stop()


async def _serve(
    models: Mapping[str, ServedModel],
    options: ServerOptions,
    limits: ServerLimits,
    listening: socket.socket,
    make: MakeBackend,
) -> None:
    indexes = Indexes(options.index)
    folder = None if options.files is None else Path(options.files).expanduser()
    files = FileStore(folder, limits, options.max_file_bytes, options.files_quota, options.files_seconds)
    roots = [str(files.folder), *([] if options.media_root is None else [options.media_root])]
    given = {**asdict(limits), "file_roots": roots, "allow_urls": not options.no_urls}
    pool = Models(models, given, options.max_queue, options.max_loaded, make)
    server = Server(options, limits, pool, files, keys_of(options), indexes)
    app = create_app(server)
    config = uvicorn.Config(
        app,
        http=Protocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(options.drain_seconds),
    )
    serving = Uvicorn(config, server)
    try:
        await _start(_open(pool, app, server), serving)
        if serving.should_exit:
            return
        await serving.serve([listening])
    finally:
        await pool.stop()
        indexes.stop()
        files.close()


async def _open(pool: Models, app: FastAPI, server: Server) -> None:
    """Open the models, and make the page for browsers, where its library is installed."""
    with_page = not server.options.no_page
    if with_page and missing(["gradio"]):
        with_page = False
        logging.getLogger("longview.serve").warning("gradio is not installed, so there is no page for browsers")
    if not with_page:
        await pool.start()
        return
    from longview.serve.page import Page, import_library

    await asyncio.gather(pool.start(), asyncio.to_thread(import_library, server))
    (await asyncio.to_thread(Page, server)).mount(app)


async def _start(opening: Coroutine[Any, Any, None], serving: Uvicorn) -> None:
    """Open what is served; a signal meanwhile ends that."""
    loop = asyncio.get_running_loop()
    starting = asyncio.ensure_future(opening)

    def end() -> None:
        serving.should_exit = True
        starting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        await starting
    except asyncio.CancelledError:
        if not serving.should_exit:
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
