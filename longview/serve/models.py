"""The models of a server by name: each in a process of its own, adapters beside their base, and what joins later.

Where not all may be loaded at once, a model is loaded when it is asked, and the least recently used one leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from longview.errors import CheckpointError, LongviewError
from longview.serve.backend import UNSEEN, Backend, Job, StatsTaker
from longview.serve.errors import APIError
from longview.serve.metrics import Metrics
from longview.serve.process import ModelProcess
from longview.serve.settings import ServedModel

QUEUE_RETRY_SECONDS = 2
BUSY_RETRY_SECONDS = 10
MAX_JOINED = 64
MAX_NAME = 128
MakeBackend = Callable[[str, Mapping[str, Any], StatsTaker], Backend]


class Models:
    """Finds what answers for a model, loads it where need be, and refuses what it has no room for.

    Args:
        served: By name.
        limits: Of media, as JSON; for models that join, too.
        max_queue: Requests of one model that may wait, beside those that run.
        max_loaded: Models that are loaded at a time; None: all.
        make: Makes what answers for a model of `served`.
    """

    def __init__(
        self,
        served: Mapping[str, ServedModel],
        limits: Mapping[str, Any],
        max_queue: int,
        max_loaded: int | None = None,
        make: MakeBackend = ModelProcess,
    ) -> None:
        self.metrics = Metrics()
        self.limits = limits
        self._max_queue, self._max_loaded = max_queue, min(max_loaded or len(served), len(served))
        self._own: list[Backend] = []
        self._models: dict[str, tuple[Backend, str]] = {}  # name → what answers for it, and the adapter
        for name, model in served.items():
            budget = {**(model.load.get("budget") or {}), "share": 1 / self._max_loaded}
            load = {**model.load, "budget": budget}
            names = {"": name, **{adapter: adapter for adapter in model.adapters}}
            backend = make(name, model.config(load, limits), partial(self.metrics.update, names))
            self._own.append(backend)
            self._add(backend, model.adapters)
        self._with_painter = any(model.painter is not None for model in served.values())
        self._coming: set[str] = set()
        self._gone: set[str] = set()
        self._loading = asyncio.Lock()
        self.created = int(time.time())

    @property
    def names(self) -> list[str]:
        return list(self._models)

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What is known of each model, by name: of one that was not loaded yet, nothing."""
        return {name: backend.facts for name, (backend, _) in self._models.items()}

    @property
    def all_ready(self) -> bool:
        """Whether as many of the server's own are loaded as may be."""
        return sum(backend.ready for backend in self._own) >= self._max_loaded

    async def start(self) -> None:
        """Load the first ones.

        Raises:
            CheckpointError: one cannot be opened.
        """
        await asyncio.gather(*(backend.start() for backend in self._own[: self._max_loaded]))
        known = [backend.facts for backend in self._own]
        if self._with_painter and all(known) and not any(facts["paints"] for facts in known):
            raise CheckpointError(
                f"--gen-model paints what a model describes, and none of {', '.join(self.names)} was taught that; "
                "serve an MGM model, or leave it out"
            )

    async def stop(self) -> None:
        await asyncio.gather(*(backend.stop() for backend in self._own))

    def find(self, name: str) -> Backend:
        """
        Raises:
            APIError: there is no such model; names the nearest.
        """
        if name in self._models:
            return self._models[name][0]
        if name in self._gone:
            message = f"the model {name!r} has left this server; it comes back by longview serve --model … --to ADDRESS"
            raise APIError(404, message, "model", "model_not_found")
        near = get_close_matches(name, self._models, n=1, cutoff=0)[0]
        message = f"there is no model {name!r:.80}; did you mean {near!r}? There are {', '.join(self._models)}"
        raise APIError(404, message, "model", "model_not_found")

    async def events(self, name: str, job: Job) -> AsyncGenerator[dict[str, Any]]:
        """As `Backend.events`, of what answers for the model.

        Raises:
            APIError: no such model, too many requests wait for it, or there is no room to load it.
        """
        backend, adapter = self.find(name), self._models[name][1]
        if backend.num_wanted >= self._max_queue + backend.facts.get("max_requests", 0):
            message = f"{backend.num_wanted} requests wait for {name}; try again later"
            raise APIError(429, message, code="queue_full", retry_after=QUEUE_RETRY_SECONDS)
        backend.num_wanted += 1
        try:
            if not backend.is_started:
                await self._load(backend)
            events = self.metrics.watch(name, with_files(backend, job, adapter))
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
        finally:
            backend.num_wanted -= 1

    async def _load(self, backend: Backend) -> None:
        async with self._loading:
            if backend.is_started:
                return
            loaded = [each for each in self._own if each.is_started]
            if len(loaded) >= self._max_loaded:
                idle = [each for each in loaded if not each.num_wanted]
                if not idle:
                    busy = ", ".join(each.name for each in loaded)
                    message = f"{backend.name} is not loaded, and {busy} cannot leave, as requests run; try again later"
                    raise APIError(503, message, "model", "model_not_loaded", BUSY_RETRY_SECONDS)
                await min(idle, key=lambda each: each.last_used).stop()
            try:
                await backend.start()
            except LongviewError as error:
                raise APIError(500, str(error), "model", "model_error") from None

    # ── models that come and go ──

    @contextlib.contextmanager
    def reserved(self, names: Sequence[str]) -> Iterator[None]:
        """Keep names for a model that is being opened elsewhere.

        Raises:
            APIError: one of them is taken or is none, or there are too many models.
        """
        for name in names:
            if not name or len(name) > MAX_NAME or not name.isprintable():
                raise APIError(400, f"{name!r:.80} is no name of a model: it is printable and short", "model")
            if name in self._models or name in self._coming or names.count(name) > 1:
                message = f"a model is called {name!r} already; give yours another name: --model NAME=MODEL"
                raise APIError(409, message, "model", "model_exists")
        if len(self._models) - len(self._own) + len(self._coming) + len(names) > MAX_JOINED:
            raise APIError(429, f"{MAX_JOINED} models have joined already; remove one", code="too_many_models")
        self._coming |= set(names)
        try:
            yield
        finally:
            self._coming -= set(names)

    def join(self, backend: Backend, adapters: Sequence[str]) -> None:
        """List a model, under names that are reserved."""
        self._gone -= {backend.name, *adapters}
        self._add(backend, adapters)

    def leave(self, backend: Backend) -> None:
        """List a model no longer, nor its adapters; what runs may go on."""
        for name in [name for name, (each, _) in self._models.items() if each is backend]:
            del self._models[name]
            self._gone.add(name)
        while len(self._gone) > MAX_JOINED:
            self._gone.pop()

    def _add(self, backend: Backend, adapters: Sequence[str] | Mapping[str, str]) -> None:
        self._models[backend.name] = (backend, "")
        self._models |= {adapter: (backend, adapter) for adapter in adapters}

    def describe(self) -> list[dict[str, Any]]:
        """As `/v1/models` lists them."""
        return [self._card(name, *place) for name, place in self._models.items()]

    def _card(self, name: str, backend: Backend, adapter: str) -> dict[str, Any]:
        facts = backend.facts
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "longview",
            "parent": backend.name if adapter else None,
            "family": facts.get("family"),
            "release": facts.get("release"),
            "context_length": facts.get("context_length"),
            "max_model_len": facts.get("context_length"),
            "architecture": {"input_modalities": ["text", "image", "video"], "output_modalities": ["text"]},
            "capabilities": {"vision": True, "video": True},
            "loaded": backend.ready,
        }


async def with_files(backend: Backend, job: Job, adapter: str) -> AsyncGenerator[dict[str, Any]]:
    """The events of a job; where its model does not see the files that it names, it is asked again with their bytes.

    Raises:
        APIError: as `Backend.events`, and `Job.with_bytes`.
    """
    unseen = False
    async with contextlib.aclosing(backend.events(job, adapter)) as events:
        async for event in events:
            unseen = event["event"] == "ended" and (event["error"] or {}).get("kind") == UNSEEN
            if not unseen:
                yield event
    if unseen:
        whole = await asyncio.to_thread(job.with_bytes)
        async with contextlib.aclosing(backend.events(whole, adapter)) as events:
            async for event in events:
                yield event
