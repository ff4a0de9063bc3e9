"""`longview serve --model C --to ADDRESS`: models join a running server, and stay until either side ends (`joined.py`).

The process of a model is started and watched here, as the server does with its own; what the server asks is handed to
it. When the server ends, or is started again, the model waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from longview import deadlines
from longview.errors import RequestError
from longview.serve.backend import Backend, Job
from longview.serve.duplex import LOST, Duplex, Refused
from longview.serve.errors import APIError
from longview.serve.joined import CONTENT_TYPE, PING_SECONDS, SILENT_SECONDS
from longview.serve.models import MakeBackend
from longview.serve.process import ModelProcess
from longview.serve.settings import ServedModel

RETRY_SECONDS = 2.0
logger = logging.getLogger("longview.serve")


class Joiner:
    """One model, and the server that it joins.

    Args:
        key: Of the server; "" where it needs none.
        make: Makes what answers for the model.
    """

    def __init__(self, name: str, model: ServedModel, address: str, key: str, make: MakeBackend = ModelProcess) -> None:
        self.name, self._model, self._address, self._make = name, model, address, make
        self._headers = {"Content-Type": CONTENT_TYPE, **({"Authorization": f"Bearer {key}"} if key else {})}
        self._backend: Backend | None = None
        self._limits: Mapping[str, Any] = {}
        self._link: Duplex | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._listed = self._has_joined = self._leaving = False

    async def run(self) -> None:
        """Join, again where the server is lost, until the server removes the model or `leave` is called.

        Raises:
            RequestError: the server is not there at first, or refuses the model.
            CheckpointError: the model cannot be opened.
        """
        try:
            while not await self._stay() and not self._leaving:
                logger.warning("the server at %s is gone; %s waits for it", self._address, self.name)
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            if self._backend is not None:
                await self._backend.stop()

    def leave(self) -> None:
        """Ask to be removed; what runs is answered to its end. Where the model is not listed, end at once."""
        self._leaving = True
        if self._link is None:
            return
        if self._listed:
            self._link.put({"event": "leaving"})
        else:
            self._link.close()

    async def _stay(self) -> bool:
        """Be connected once; returns whether that was all."""
        try:
            self._link = await Duplex.open(self._address, "/v1/models", self._headers, SILENT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            if self._has_joined:
                return False
            why = getattr(error, "strerror", None) or "no answer"
            raise RequestError(f"no server answers at {self._address} ({why}); start one with longview serve") from None
        link, limits = self._link, asyncio.get_running_loop().create_future()
        reading = asyncio.create_task(self._read(link, limits))
        opening = asyncio.create_task(self._open(link, limits))
        beating = asyncio.create_task(self._beat(link))
        try:
            await asyncio.wait([reading, opening], return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                opening.result()
            return await reading
        except Refused as error:
            if self._has_joined and error.status in (409, 429, 503):  # its name is still taken by its last connection
                return False
            raise RequestError(f"the server at {self._address} has not taken {self.name}: {error}") from None
        except LOST:
            if self._has_joined or self._leaving:
                return self._leaving
            raise RequestError(f"the server at {self._address} has ended the connection; see its log") from None
        finally:
            self._link, self._listed = None, False
            link.close()
            await deadlines.end(reading, opening, beating, *self._tasks.values())

    async def _beat(self, link: Duplex) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            link.send({"events": []})

    async def _read(self, link: Duplex, limits: asyncio.Future[Mapping[str, Any]]) -> bool:
        """Do what the server says; returns whether the model is removed, rather than the server ending."""
        link.send({"join": {"name": self.name, "adapters": list(self._model.adapters)}})
        while True:
            header, blobs = await link.read()
            if header["do"] == "limits":
                limits.set_result(header["limits"])
            elif header["do"] in ("leave", "end"):
                return header["do"] == "leave"
            else:
                self._take(link, header, blobs)

    async def _open(self, link: Duplex, told: asyncio.Future[Mapping[str, Any]]) -> None:
        """Load the model under the server's limits, unless it is loaded so already, and tell what it is."""
        limits = await told
        if self._backend is None or limits != self._limits:
            if self._backend is not None:
                await self._backend.stop()
            self._warn_of_files(limits["file_roots"])
            config = self._model.config(self._model.load, limits)
            self._backend, self._limits = self._make(self.name, config, self._tell_stats), limits
            await self._backend.start()
        link.put({"event": "ready", "facts": self._backend.facts})

    def _warn_of_files(self, folders: Sequence[str]) -> None:
        for folder in folders:
            if not os.access(folder, os.R_OK | os.X_OK):
                logger.warning("%s is not readable here: the server sends the files that are asked about along", folder)

    def _tell_stats(self, stats: Mapping[str, Any]) -> None:
        if self._link is not None and self._listed:
            self._link.put({"event": "stats", "stats": stats})

    def _take(self, link: Duplex, header: dict[str, Any], blobs: Sequence[bytes]) -> None:
        if header["do"] == "listed":
            self._listed = self._has_joined = True
            print(f"longview serves {', '.join([self.name, *self._model.adapters])} at {self._address}", flush=True)
        elif header["do"] == "cancel":
            if header["request"] in self._tasks:
                self._tasks[header["request"]].cancel()
        elif header["do"] != "ping":
            self._tasks[header["request"]] = asyncio.create_task(self._answer(link, header, blobs))

    async def _answer(self, link: Duplex, header: dict[str, Any], blobs: Sequence[bytes]) -> None:
        """Hand a job to the model, and its events to the server."""
        request, adapter = header.pop("request"), header.pop("adapter")
        assert self._backend is not None
        try:
            async with contextlib.aclosing(self._backend.events(Job(blobs=blobs, **header), adapter)) as events:
                async for event in events:
                    link.put({**event, "request": request})
        except APIError:
            link.put({"request": request, "event": "ended", "error": {"kind": "process", "text": ""}})
        finally:
            self._tasks.pop(request, None)


def run(models: Mapping[str, ServedModel], address: str, key: str, make: MakeBackend = ModelProcess) -> None:
    """Join a server with some models until it removes them, or until SIGTERM or Ctrl-C; a second signal ends at once.

    Raises:
        CheckpointError: a model cannot be opened.
        RequestError: no server is there, or it refuses a model.
    """
    address = address.rstrip("/").removesuffix("/v1")
    asyncio.run(_run([Joiner(name, model, address, key, make) for name, model in models.items()]))


async def _run(joiners: Sequence[Joiner]) -> None:
    loop = asyncio.get_running_loop()
    running = [asyncio.ensure_future(joiner.run()) for joiner in joiners]

    def end() -> None:
        if any(joiner._leaving for joiner in joiners):
            for task in running:
                task.cancel()
        for joiner in joiners:
            joiner.leave()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        await asyncio.gather(*running)
    except asyncio.CancelledError:
        if not all(task.cancelled() or task.done() for task in running):
            raise
    finally:
        await deadlines.end(*running)
