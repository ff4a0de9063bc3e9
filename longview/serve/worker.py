"""The process of a model: its engines, and a socket to the server (`process.py`).

Its event loop reads jobs (answer, cancel) and writes what the engines' streams yield; one thread steps an engine for
all of them. It ends when the server's side of the socket closes, however the server ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from longview.errors import LongviewError
from longview.serve import wire
from longview.serve.engines import Engines
from longview.serve.memory import Trimmer

STATS_SECONDS = 0.25


class Sender:
    """Writes events to the server; those that come together are one message."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._events: list[dict[str, Any]] = []

    def put(self, event: dict[str, Any]) -> None:
        if not self._events:
            asyncio.get_running_loop().call_soon(self._flush)
        self._events.append(event)

    def _flush(self) -> None:
        events, self._events = self._events, []
        self._writer.writelines(wire.encode({"events": events}))


class Worker:
    """Answers the jobs of one server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._sender = Sender(writer)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._trimmer = Trimmer()

    async def run(self) -> None:
        """Open the model, and work until the server closes the connection."""
        config, _ = await wire.read(self._reader)
        try:
            engines = await asyncio.to_thread(Engines, config)
        except LongviewError as error:
            self._sender.put({"event": "failed", "text": str(error)})
            await self._reader.read(1)  # until the server has read it
            return
        self._sender.put({"event": "ready", "facts": engines.facts})
        stats = asyncio.create_task(self._send_stats(engines))
        with contextlib.suppress(EOFError):
            while True:
                self._take(engines, *await wire.read(self._reader))
        stats.cancel()

    def _take(self, engines: Engines, job: dict[str, Any], blobs: Sequence[bytes]) -> None:
        request = job["request"]
        if job["do"] == "cancel":
            if request in self._tasks:
                self._tasks[request].cancel()
            return
        task = self._tasks[request] = asyncio.create_task(engines.answer(job, blobs, self._sender.put))
        num_bytes = sum(map(len, blobs))

        def end(_: asyncio.Task[None]) -> None:
            del self._tasks[request]
            self._trimmer.note(num_bytes)

        task.add_done_callback(end)

    async def _send_stats(self, engines: Engines) -> None:
        before: dict[str, dict[str, float]] = {}
        while True:
            stats = engines.stats
            if stats != before:
                self._sender.put({"event": "stats", "stats": stats})
            before = stats
            await asyncio.sleep(STATS_SECONDS)


async def serve(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    await Worker(reader, writer).run()


def main() -> None:
    """Run as the process of a model, with the number of its socket as the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the socket
    logging.basicConfig(format="longview: %(name)s: %(message)s", level=logging.WARNING)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    async def serve_and_exit() -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            await serve(socket.socket(fileno=int(sys.argv[1])))
        os._exit(0)  # a thread that fetches or decodes for nobody is not waited for

    asyncio.run(serve_and_exit())


if __name__ == "__main__":
    main()
