"""The server's side of a model's process (`worker.py`): starts it, hands jobs over, watches it, starts it again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from longview.deadlines import end, within
from longview.errors import CheckpointError
from longview.serve import wire
from longview.serve.backend import Channel, StatsTaker
from longview.serve.errors import APIError

MAX_RESTARTS, RESTART_WINDOW = 5, 60.0
"""A process that dies is started again no more often than so many times in so many seconds."""
END_SECONDS = 5.0
logger = logging.getLogger("longview.serve")


class ModelProcess(Channel):
    """A model in a process of its own.

    Args:
        config: Its first message: arguments of `longview.load`, and the limits of media.
    """

    def __init__(self, name: str, config: Mapping[str, Any], on_stats: StatsTaker = lambda _: None) -> None:
        super().__init__(name, on_stats)
        self.config = config
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._restarts: deque[float] = deque()

    @property
    def is_started(self) -> bool:
        return self._watcher is not None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        reader = await self._spawn()
        self._watcher = asyncio.create_task(self._watch(reader), name=f"watch {self.name}")

    async def stop(self) -> None:
        if self._watcher is not None:
            watcher, self._watcher = self._watcher, None
            await end(watcher)
            if not watcher.cancelled():
                watcher.result()  # it never ends by itself
        await self._end()

    def _down(self) -> APIError:
        return APIError(
            503,
            f"the process of {self.name} is being started; try again in a few seconds",
            code="model_down",
            retry_after=5,
        )

    async def _send(self, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
        assert self._writer is not None
        self._writer.writelines(wire.encode(header, blobs))
        with contextlib.suppress(ConnectionError):  # the watcher notices, too
            await self._writer.drain()

    # ── the process ──

    async def _spawn(self) -> asyncio.StreamReader:
        """Start a process, and wait until its model is open; returns what it writes."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "longview.serve.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        await self._send(self.config)
        try:
            header, _ = await wire.read(reader)
        except (EOFError, ConnectionError):
            status = await self._process.wait()
            raise CheckpointError(
                f"the process of {self.name} ended with status {status} while it opened the model"
            ) from None
        except BaseException:
            await self._end()
            raise
        (event,) = header["events"]
        if event["event"] == "failed":
            await self._end()
            raise CheckpointError(event["text"])
        self.facts.update(event["facts"])
        self.ready = True
        return reader

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Hand events to the streams of their jobs; when the process ends, start another."""
        while True:
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    header, _ = await wire.read(reader)
                    for event in header["events"]:
                        self._dispatch(event)
            await self._end()
            assert self._process is not None
            logger.warning("the process of %s ended with status %s", self.name, self._process.returncode)
            reader = await self._restart()

    async def _restart(self) -> asyncio.StreamReader:
        while True:
            now = time.monotonic()
            while self._restarts and self._restarts[0] <= now - RESTART_WINDOW:
                self._restarts.popleft()
            if len(self._restarts) >= MAX_RESTARTS:
                await asyncio.sleep(self._restarts[0] + RESTART_WINDOW - now)
                continue
            self._restarts.append(now)
            try:
                return await self._spawn()
            except CheckpointError as error:
                logger.error("%s cannot be started again: %s", self.name, error)

    async def _end(self) -> None:
        """Close the connection, and wait for the process, which ends then; and end its jobs."""
        self._lose()
        if self._writer is not None:
            self._writer.close()
        if self._process is not None and self._process.returncode is None:
            try:
                await within(self._process.wait(), END_SECONDS)
            except asyncio.TimeoutError:
                self._process.kill()
                await self._process.wait()
