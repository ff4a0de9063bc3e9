"""The models of a server by name, each in a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

from longview.serve.errors import APIError
from longview.serve.metrics import Metrics
from longview.serve.process import Job, ModelProcess

QUEUE_RETRY_SECONDS = 2


class Models:
    """Finds the process of a model, and refuses what it has no room for.

    Args:
        configs: By name: the first message of each model's process.
        max_queue: Requests of one model that may wait, beside those that run.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]], max_queue: int) -> None:
        self.metrics = Metrics()
        self._processes = {
            name: ModelProcess(name, config, partial(self.metrics.update, name)) for name, config in configs.items()
        }
        self._max_queue = max_queue
        self.created = int(time.time())

    @property
    def names(self) -> list[str]:
        return list(self._processes)

    @property
    def all_ready(self) -> bool:
        return all(process.ready for process in self._processes.values())

    async def start(self) -> None:
        """Start all models.

        Raises:
            CheckpointError: one cannot be opened.
        """
        await asyncio.gather(*(process.start() for process in self._processes.values()))

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._processes.values()))

    def find(self, name: str) -> ModelProcess:
        """
        Raises:
            APIError: there is no such model; names the nearest.
        """
        found = self._processes.get(name)
        if found is None:
            near = get_close_matches(name, self._processes, n=1, cutoff=0)[0]
            known = ", ".join(self._processes)
            message = f"there is no model {name!r:.80}; did you mean {near!r}? There are {known}"
            raise APIError(404, message, "model", "model_not_found")
        return found

    def events(self, name: str, job: Job) -> AsyncGenerator[dict[str, Any]]:
        """
        Raises:
            APIError: no such model, or too many requests wait for it.
        """
        process = self.find(name)
        if process.num_running >= self._max_queue + process.facts.get("max_requests", 0):
            message = f"{process.num_running} requests wait for {name}; try again later"
            raise APIError(429, message, code="queue_full", retry_after=QUEUE_RETRY_SECONDS)
        return self.metrics.watch(name, process.events(job))

    def describe(self) -> list[dict[str, Any]]:
        """As `/v1/models` lists them."""
        return [self._card(process) for process in self._processes.values()]

    def _card(self, process: ModelProcess) -> dict[str, Any]:
        facts = process.facts
        return {
            "id": process.name,
            "object": "model",
            "created": self.created,
            "owned_by": "longview",
            "family": facts.get("family"),
            "release": facts.get("release"),
            "context_length": facts.get("context_length"),
            "max_model_len": facts.get("context_length"),
            "architecture": {"input_modalities": ["text", "image", "video"], "output_modalities": ["text"]},
            "capabilities": {"vision": True, "video": True},
            "ready": process.ready,
        }
