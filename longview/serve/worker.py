"""The process of a model: one engine, and a socket to the server (`process.py`).

Its event loop reads jobs (answer, cancel) and writes what the engine's streams yield; one thread steps the engine for
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from longview.engine import Budget, Engine, load
from longview.engine.loading import with_adapters
from longview.engine.prepare import parse_request, prepare
from longview.engine.score import Question
from longview.errors import CheckpointError, LongviewError, MediaError, RequestError
from longview.messages import Message, Part, Piece
from longview.requests import Limits, MediaOptions
from longview.serve import wire

STATS_SECONDS = 0.25
logger = logging.getLogger("longview.serve.worker")


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
    """Answers the jobs of one server with one engine, and one more for each adapter.

    Attributes:
        engines: By the adapter's name; "" is the base.
    """

    engines: Mapping[str, Engine]

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._sender = Sender(writer)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._limits = Limits()

    async def run(self) -> None:
        """Open the model, and work until the server closes the connection."""
        config, _ = await wire.read(self._reader)
        self._limits = limits_of(config["limits"])
        try:
            self.engines = await asyncio.to_thread(open_engines, config)
        except LongviewError as error:
            self._sender.put({"event": "failed", "text": str(error)})
            await self._reader.read(1)  # until the server has read it
            return
        self._sender.put({"event": "ready", "facts": facts_of(self.engines[""])})
        stats = asyncio.create_task(self._send_stats())
        with contextlib.suppress(EOFError):
            while True:
                self._take(*await wire.read(self._reader))
        stats.cancel()

    def _take(self, job: dict[str, Any], blobs: Sequence[bytes]) -> None:
        request = job["request"]
        if job["do"] == "cancel":
            if request in self._tasks:
                self._tasks[request].cancel()
            return
        self._tasks[request] = asyncio.create_task(self._answer(request, job, blobs))

    async def _answer(self, request: int, job: Mapping[str, Any], blobs: Sequence[bytes]) -> None:
        def send(event: str, **more: Any) -> None:
            self._sender.put({"request": request, "event": event, **more})

        try:
            engine = self.engines[job["adapter"]]
            messages = [message_of(message, blobs) for message in job["messages"]]
            settings = {**job["settings"], "limits": self._limits}
            if job["do"] == "render":
                send("rendered", **await asyncio.to_thread(rendered, engine, messages, settings))
            elif job["do"] == "score":
                send("scored", **await self._score(engine, messages, job["questions"], blobs, settings))
            else:
                assert job["do"] == "answer", job["do"]
                pieces = engine.astream(messages, accepted=lambda: send("accepted"), **settings)
                async with contextlib.aclosing(pieces):
                    async for piece in pieces:
                        send("piece", **piece_of(piece))
        except Exception as error:  # noqa: BLE001 - whoever asked gets it, whatever it is
            send("ended", error=as_dict(error))
            if is_fatal(error):
                asyncio.get_running_loop().call_later(1.0, os._exit, 1)  # when all requests have got their error
        else:
            send("ended", error=None)
        finally:
            del self._tasks[request]

    async def _score(
        self,
        engine: Engine,
        messages: list[Message],
        given: Sequence[Mapping[str, Any]],
        blobs: Sequence[bytes],
        settings: Any,
    ) -> dict[str, Any]:
        """The log-probability of each answer of each question, and the receipt of each question's first answer."""
        questions = [
            Question(tuple(part_of(part, blobs) for part in each["parts"]), tuple(each["answers"])) for each in given
        ]
        sums = [0.0] * sum(len(question.answers) for question in questions)
        receipts: dict[int, dict[str, Any]] = {}
        pieces = engine.ascore(messages, questions, **settings)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                sums[piece.choice] += sum(each.logprob for each in piece.logprobs or ())
                if piece.receipt is not None:
                    receipts[piece.choice] = piece.receipt.as_dict()
        firsts = [0, *accumulate(len(question.answers) for question in questions)]
        return {
            "logprobs": [sums[begin:end] for begin, end in pairwise(firsts)],
            "receipts": [receipts[begin] for begin in firsts[:-1]],
            "output_tokens": sum(receipt["usage"]["completion_tokens"] for receipt in receipts.values()),
        }

    async def _send_stats(self) -> None:
        before: dict[str, dict[str, float]] = {}
        while True:
            stats = {name: stats_of(engine) for name, engine in self.engines.items()}
            if stats != before:
                self._sender.put({"event": "stats", "stats": stats})
            before = stats
            await asyncio.sleep(STATS_SECONDS)


def rendered(engine: Engine, messages: list[Message], settings: dict[str, Any]) -> dict[str, Any]:
    """What answering would take; media are opened, and nothing is computed."""
    requests = prepare(engine, parse_request(engine, messages, settings, (), None))
    inputs = requests[0].inputs
    for request in requests:
        request.release()
    return {
        "prompt_tokens": inputs.length,
        "visual_tokens": inputs.visual_tokens,
        "pictures": inputs.num_pictures,
        "max_completion_tokens": requests[0].max_generated,
        "frames": [asdict(frame) for frame in inputs.frames],
        "warnings": list(inputs.warnings),
    }


def piece_of(piece: Piece) -> dict[str, Any]:
    """A piece for the server."""
    found: dict[str, Any] = {"text": piece.text, "choice": piece.choice, "tokens": len(piece.tokens)}
    if piece.finish_reason is not None:
        found["finish_reason"] = piece.finish_reason
    if piece.receipt is not None:
        found["receipt"] = piece.receipt.as_dict()
    if piece.logprobs is not None:
        found["logprobs"] = [each.as_dict() for each in piece.logprobs]
    if piece.made is not None:
        found["made"] = dict(piece.made)
    return found


def message_of(message: Mapping[str, Any], blobs: Sequence[bytes]) -> Message:
    return Message(message["role"], tuple(part_of(part, blobs) for part in message["parts"]))


def part_of(part: Mapping[str, Any], blobs: Sequence[bytes]) -> Part:
    """A part of a job, whose long strings are blobs."""
    if part["type"] == "text":
        return Part("text", text=part["text"])
    media = part.get("media")
    return Part(
        part["type"],
        source=_source_of(part["source"], blobs),
        detail=part.get("detail", "auto"),
        media=None if media is None else MediaOptions(**media),
        name=part.get("name", ""),
    )


def _source_of(source: Any, blobs: Sequence[bytes]) -> Any:
    if isinstance(source, list):
        return [_source_of(each, blobs) for each in source]
    return source if isinstance(source, str) else blobs[source["blob"]].decode()


def limits_of(given: Mapping[str, Any]) -> Limits:
    roots = given["file_roots"]
    return Limits(**{**given, "file_roots": None if roots is None else tuple(map(Path, roots))})


def open_engines(config: Mapping[str, Any]) -> dict[str, Engine]:
    """
    Raises:
        CheckpointError: the model or an adapter cannot be opened.
    """
    base = load(**load_arguments(config["load"]))
    return {"": base, **(with_adapters(base, config["adapters"]) if config["adapters"] else {})}


def load_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `longview.load`, from JSON."""
    budget = dict(given.get("budget") or {})
    if budget.get("feature_folder") is not None:
        budget["feature_folder"] = Path(budget["feature_folder"])
    return {**given, "budget": Budget(**budget)}


def facts_of(engine: Engine) -> dict[str, Any]:
    """What the server tells of a model."""
    model = engine.model
    footprint = model.footprint(model.config, model.dtype)
    return {
        **asdict(footprint),
        "max_requests": engine.scheduler.max_requests,
        "context_length": engine.context_length,
        "device": str(engine.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def stats_of(engine: Engine) -> dict[str, float]:
    """What `metrics.py` shows of an engine."""
    scheduler, features, prefixes = engine.scheduler, engine.feature_cache, engine.prefix_cache
    return {
        "num_requests_running": scheduler.num_running,
        "num_requests_waiting": scheduler.num_waiting,
        "kv_cache_usage_perc": scheduler.kv_cache_bytes / scheduler.max_bytes if scheduler.max_bytes else 0.0,
        "vision_features_cache_bytes": features.nbytes,
        "prefix_cache_bytes": prefixes.nbytes,
        "prefix_cache_queries": prefixes.hits + prefixes.misses,
        "prefix_cache_hits": prefixes.hits,
        "mm_cache_queries": features.hits + features.misses,
        "mm_cache_hits": features.hits,
    }


KINDS = {MediaError: "media", RequestError: "request", CheckpointError: "checkpoint"}


def as_dict(error: Exception) -> dict[str, Any]:
    """An error for the server. What is no LongviewError is a bug, of which only the log tells."""
    if isinstance(error, LongviewError):
        kind = next((kind for known, kind in KINDS.items() if isinstance(error, known)), "request")
        place = {name: getattr(error, name, None) for name in ("medium", "limit")}
        return {"kind": kind, "text": str(error), **place}
    logger.error("a request failed", exc_info=error)
    return {"kind": "internal", "text": ""}


def is_fatal(error: Exception) -> bool:
    """Whether the device is of no use after an error, until another process opens it."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


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
