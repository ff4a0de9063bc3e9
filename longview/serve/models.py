"""The models of a server by name: each in a process of its own, and adapters beside their base.

Where not all may be loaded at once, a model is loaded when it is asked, and the least recently used one leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

from longview.errors import LongviewError
from longview.serve.errors import APIError
from longview.serve.metrics import Metrics
from longview.serve.process import Job, ModelProcess
from longview.serve.settings import ServedModel

QUEUE_RETRY_SECONDS = 2
BUSY_RETRY_SECONDS = 10


class Models:
    """Finds the process of a model, loads it where need be, and refuses what it has no room for.

    Args:
        served: By name.
        limits: Of media, as JSON.
        max_queue: Requests of one model that may wait, beside those that run.
        max_loaded: Models that are loaded at a time; None: all.
    """

    def __init__(
        self,
        served: Mapping[str, ServedModel],
        limits: Mapping[str, Any],
        max_queue: int,
        max_loaded: int | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._max_queue, self._max_loaded = max_queue, min(max_loaded or len(served), len(served))
        self._processes: dict[str, ModelProcess] = {}
        self._adapters: dict[str, tuple[str, str]] = {}  # name → base, adapter
        for name, model in served.items():
            budget = {**(model.load.get("budget") or {}), "share": 1 / self._max_loaded}
            load = {**model.load, "budget": budget}
            config = {"load": load, "limits": limits, "adapters": dict(model.adapters)}
            names = {"": name, **{adapter: adapter for adapter in model.adapters}}
            self._processes[name] = ModelProcess(name, config, partial(self.metrics.update, names))
            self._adapters |= {shown: (name, adapter) for adapter, shown in names.items()}
        self._loading = asyncio.Lock()
        self.created = int(time.time())

    @property
    def names(self) -> list[str]:
        return list(self._adapters)

    @property
    def all_ready(self) -> bool:
        """Whether as many are loaded as may be."""
        return sum(process.ready for process in self._processes.values()) >= self._max_loaded

    async def start(self) -> None:
        """Load the first ones.

        Raises:
            CheckpointError: one cannot be opened.
        """
        first = list(self._processes.values())[: self._max_loaded]
        await asyncio.gather(*(process.start() for process in first))

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._processes.values()))

    def find(self, name: str) -> ModelProcess:
        """
        Raises:
            APIError: there is no such model; names the nearest.
        """
        if name not in self._adapters:
            near = get_close_matches(name, self._adapters, n=1, cutoff=0)[0]
            message = f"there is no model {name!r:.80}; did you mean {near!r}? There are {', '.join(self._adapters)}"
            raise APIError(404, message, "model", "model_not_found")
        return self._processes[self._adapters[name][0]]

    async def events(self, name: str, job: Job) -> AsyncGenerator[dict[str, Any]]:
        """As `ModelProcess.events`, of the process that has the model.

        Raises:
            APIError: no such model, too many requests wait for it, or there is no room to load it.
        """
        process = self.find(name)
        if process.num_wanted >= self._max_queue + process.facts.get("max_requests", 0):
            message = f"{process.num_wanted} requests wait for {name}; try again later"
            raise APIError(429, message, code="queue_full", retry_after=QUEUE_RETRY_SECONDS)
        process.num_wanted += 1
        try:
            if not process.is_started:
                await self._load(process)
            events = self.metrics.watch(name, process.events(job, self._adapters[name][1]))
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
        finally:
            process.num_wanted -= 1

    async def _load(self, process: ModelProcess) -> None:
        async with self._loading:
            if process.is_started:
                return
            loaded = [each for each in self._processes.values() if each.is_started]
            if len(loaded) >= self._max_loaded:
                idle = [each for each in loaded if not each.num_wanted]
                if not idle:
                    busy = ", ".join(each.name for each in loaded)
                    message = f"{process.name} is not loaded, and {busy} cannot leave, as requests run; try again later"
                    raise APIError(503, message, "model", "model_not_loaded", BUSY_RETRY_SECONDS)
                await min(idle, key=lambda each: each.last_used).stop()
            try:
                await process.start()
            except LongviewError as error:
                raise APIError(500, str(error), "model", "model_error") from None

    def describe(self) -> list[dict[str, Any]]:
        """As `/v1/models` lists them."""
        return [self._card(name, *place) for name, place in self._adapters.items()]

    def _card(self, name: str, base: str, adapter: str) -> dict[str, Any]:
        process = self._processes[base]
        facts = process.facts
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "longview",
            "parent": base if adapter else None,
            "family": facts.get("family"),
            "release": facts.get("release"),
            "context_length": facts.get("context_length"),
            "max_model_len": facts.get("context_length"),
            "architecture": {"input_modalities": ["text", "image", "video"], "output_modalities": ["text"]},
            "capabilities": {"vision": True, "video": True},
            "loaded": process.ready,
        }
