"""The engines of a model, one for its base and one for each adapter, and how they answer jobs; see `backend.Job`.

What they say are events: accepted, piece, rendered, scored, evidence, and `ended` as the last.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longview.engine import Budget, Engine, load
from longview.engine.loading import with_adapters
from longview.engine.prepare import parse_request, prepare
from longview.engine.score import Question
from longview.errors import CheckpointError, LongviewError, MediaError, RequestError
from longview.evidence.deletion import acheck
from longview.evidence.pictures import jpegs
from longview.evidence.report import Report
from longview.media import Medium
from longview.messages import Message, Part, Piece
from longview.notebook import thumbnail
from longview.plugins.draw import Painter, PaintingHook
from longview.requests import Limits, MediaOptions
from longview.serve.backend import UNSEEN

THUMBNAIL_SIDE = 256
"""Pixels of the longer side of a frame that is shown."""
MAX_THUMBNAILS = 128
"""Of one video."""
logger = logging.getLogger("longview.serve.worker")


class Engines:
    """
    Args:
        config: Arguments of `longview.load`, the limits of media, and adapters: folders by name.

    Raises:
        CheckpointError: the model or an adapter cannot be opened.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._limits = limits_of(config["limits"])
        self._engines = open_engines(config)
        self._painter = painter_of(config.get("painter"), self._engines[""])
        gc.collect()
        gc.freeze()  # looking through all that stays as long as the process took 0.2 s, now and then

    @property
    def facts(self) -> dict[str, Any]:
        return {**facts_of(self._engines[""]), "paints": self._painter is not None}

    @property
    def stats(self) -> dict[str, dict[str, float]]:
        """By adapter; "" is the base."""
        return {name: stats_of(engine) for name, engine in self._engines.items()}

    async def answer(
        self, job: Mapping[str, Any], blobs: Sequence[bytes], put: Callable[[dict[str, Any]], None]
    ) -> None:
        """Answer a job until it has ended; cancelling this cancels it.

        Args:
            put: Takes its events.
        """

        def send(event: str, **more: Any) -> None:
            put({"request": job["request"], "event": event, **more})

        try:
            if not all(map(is_seen, sources_of(job))):
                send("ended", error={"kind": UNSEEN, "text": "", "medium": None, "limit": None})
                return
            engine = self._engines[job["adapter"]]
            messages = [message_of(message, blobs) for message in job["messages"]]
            settings = {**job["settings"], "limits": self._limits}
            if job["do"] == "render":
                send("rendered", **await asyncio.to_thread(rendered, engine, messages, settings, job["thumbnails"]))
            elif job["do"] == "score":
                send("scored", **await self._score(engine, messages, job["questions"], blobs, settings))
            elif job["do"] == "evidence":
                send("evidence", **await self._evidence(engine, messages, settings))
            else:
                assert job["do"] == "answer", job["do"]
                settings |= self._painting(settings)
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

    def _painting(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The hook of a request whose answer is painted, in the place of the one that asks for a description alone."""
        if self._painter is None or not settings.get("gen"):
            return {}
        return {"gen": False, "hooks": [PaintingHook(self._painter, settings["params"].get("seed"))]}

    async def _evidence(self, engine: Engine, messages: list[Message], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The evidence of an answer with its check, and its pictures by number, JPEGs in base64."""
        answer = await engine.aanswer(messages, **{**settings, "evidence": True})
        assert answer.evidence is not None
        ocr = bool(settings.get("ocr"))
        deletion = await acheck(engine, messages, answer, limits=self._limits, ocr=ocr)
        found = await asyncio.to_thread(jpegs, messages, answer.evidence, self._limits)
        shown = {str(number): base64.b64encode(jpeg).decode() for number, jpeg in found.items()}
        return {"report": Report(tuple(messages), answer, deletion).as_dict(), "jpegs": shown}

    async def _score(
        self,
        engine: Engine,
        messages: list[Message],
        given: Sequence[Mapping[str, Any]],
        blobs: Sequence[bytes],
        settings: Any,
    ) -> dict[str, Any]:
        """The log-probability of each answer of each question, the receipt of the first, and what all of them used."""
        questions = [
            Question(tuple(part_of(part, blobs) for part in each["parts"]), tuple(each["answers"])) for each in given
        ]
        scores = await engine.ascore(messages, questions, **settings)
        usages = [each.receipt.usage for each in scores]
        return {
            "logprobs": [list(each.logprobs) for each in scores],
            "receipt": scores[0].receipt.as_dict(),
            "input_tokens": sum(usage.prompt_tokens for usage in usages),
            "cached_tokens": sum(usage.cached_tokens for usage in usages),
            "output_tokens": sum(usage.completion_tokens for usage in usages),
        }


def rendered(engine: Engine, messages: list[Message], settings: dict[str, Any], thumbnails: bool) -> dict[str, Any]:
    """What answering would take; media are opened, and nothing is computed."""
    requests = prepare(engine, parse_request(engine, messages, settings, (), None))
    inputs = requests[0].inputs
    try:
        shown = shown_media(inputs.media) if thumbnails else None
    finally:
        for request in requests:
            request.release()
    return {
        "prompt_tokens": inputs.length,
        "visual_tokens": inputs.visual_tokens,
        "pictures": inputs.num_pictures,
        "max_completion_tokens": requests[0].max_generated,
        "frames": [asdict(frame) for frame in inputs.frames],
        "warnings": list(inputs.warnings),
        "media": shown,
    }


def shown_media(media: Sequence[Medium]) -> list[dict[str, Any]]:
    """Each medium with thumbnails of the frames that were chosen, JPEGs in base64; "" for those behind the first."""
    found = []
    for medium in media:
        places = range(min(len(medium.frames), MAX_THUMBNAILS))
        jpegs = [base64.b64encode(thumbnail(frame.image, THUMBNAIL_SIDE)).decode() for frame in medium.read(places)]
        jpegs += [""] * (len(medium.frames) - len(jpegs))
        frames = [
            {"index": frame.index, "seconds": frame.seconds, "jpeg": jpeg}
            for frame, jpeg in zip(medium.frames, jpegs, strict=True)
        ]
        relevance = None if medium.relevance is None else asdict(medium.relevance)
        facts = {"name": medium.name, "kind": medium.kind, "duration": medium.duration}
        found.append({**facts, "frames": frames, "relevance": relevance})
    return found


def piece_of(piece: Piece) -> dict[str, Any]:
    """A piece for the server."""
    found: dict[str, Any] = {"text": piece.text, "choice": piece.choice, "tokens": len(piece.tokens)}
    if piece.finish_reason is not None:
        found["finish_reason"] = piece.finish_reason
    if piece.receipt is not None:
        found["receipt"] = piece.receipt.as_dict()
    if piece.logprobs is not None:
        found["logprobs"] = [each.as_dict() for each in piece.logprobs]
    if piece.evidence is not None:
        found["evidence"] = piece.evidence.as_dict()
    if piece.made is not None:
        found["made"] = dict(piece.made)
    return found


def sources_of(job: Mapping[str, Any]) -> Iterator[str]:
    """The sources of a job's media, but for those that are blobs."""
    for each in (*job["messages"], *job["questions"]):
        for part in each["parts"]:
            given = [] if part["type"] == "text" else part["source"]
            yield from (source for source in (given if isinstance(given, list) else [given]) if isinstance(source, str))


def is_seen(source: str) -> bool:
    """Whether a source can be read here, if it is a path; a file of a server's is named by its content."""
    return not source.startswith("/") or os.access(source, os.R_OK)


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


def painter_of(given: Mapping[str, Any] | None, engine: Engine) -> Painter | None:
    """What paints the descriptions of a model, opened; None where the model describes nothing.

    Args:
        given: Arguments of `Painter`, but for its device.

    Raises:
        MissingExtraError, CheckpointError: the pipeline cannot be opened.
    """
    if given is None or not engine.processor.draws:
        return None
    painter = Painter(**given, device=str(engine.device))
    painter.open()
    return painter


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
        "draws": engine.processor.draws,
        "device": str(engine.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def stats_of(engine: Engine) -> dict[str, float]:
    """What `metrics.py` shows of an engine."""
    scheduler, features, prefixes = engine.scheduler, engine.feature_cache, engine.prefix_cache
    return {
        "num_replicas": 1.0,
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
