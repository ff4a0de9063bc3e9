"""Questions to a model in this process: many at a time, through the engine, which decodes media ahead.

`longview.eval.server` asks a server in the same way.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from longview.errors import LongviewError, RequestError
from longview.eval.items import Item
from longview.eval.items import Protocol as Ask
from longview.messages import Message, Part, Receipt

T = TypeVar("T")
U = TypeVar("U")
AHEAD = 2048
"""Pictures of all questions that are under way at once."""
SCORED = 8
"""Questions whose options are scored at once."""


@dataclass(frozen=True)
class Reply:
    """What a model said to one question, and what it was shown."""

    text: str
    frames: Sequence[dict[str, Any]] = ()
    finish_reason: str | None = None
    tokens: int | None = None
    """Of the prompt."""
    logprobs: dict[str, float] = field(default_factory=dict)
    """Of each option's letter, where the choice is by probability."""
    warnings: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """As a journal keeps it."""
        kept: dict[str, Any] = {"answer": self.text, "frames": list(self.frames), "finish_reason": self.finish_reason}
        extra = {"tokens": self.tokens, "logprobs": self.logprobs, "warnings": list(self.warnings)}
        return kept | {name: value for name, value in extra.items() if value}


class Asker(Protocol):
    """A model that can be asked: in this process, or behind a server."""

    name: str
    family: str | None
    where: str
    """What of the model's place and weights is part of a job's identity."""

    @property
    def partitions(self) -> bool:
        """Whether its pictures are cut into as many crops as a protocol says."""

    def answers(self, items: Sequence[Item], protocol: Ask) -> Iterator[Reply | LongviewError]:
        """The answers to some items, in their order; an item that fails gives its error.

        Raises:
            LongviewError: the model cannot be asked at all.
        """

    def choices(self, items: Sequence[Item], protocol: Ask) -> Iterator[Reply | LongviewError]:
        """For each item the letter of the option that the model finds likeliest; no text is generated."""


class LazyMessages:
    """A conversation that is made when it is read: in the thread that prepares it, where its error is its own."""

    def __init__(self, protocol: Ask, item: Item) -> None:
        self._protocol, self._item = protocol, item

    def __iter__(self) -> Iterator[Message]:
        yield Message.of("user", *self._protocol.parts(self._item))


class EngineAsker:
    """An engine as an `Asker`."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.name = engine.name
        self.family = type(engine.model).__module__.split(".")[-2] if hasattr(engine, "model") else None
        self.where = fingerprint(engine.model) if hasattr(engine, "model") else ""

    @property
    def partitions(self) -> bool:
        return "max_partition" in self.engine.processor.crop_settings

    def answers(self, items: Sequence[Item], protocol: Ask) -> Iterator[Reply | LongviewError]:
        crops = crops_of(self, protocol)
        for some in slices(items):
            conversations = (LazyMessages(protocol, item) for item in some)
            for answer in self.engine.batch(conversations, max_tokens=protocol.max_tokens, **crops):
                if isinstance(answer, LongviewError):
                    yield answer
                    continue
                receipt = answer.receipt
                yield Reply(
                    answer.text, frames_of(receipt), answer.finish_reason, receipt.usage.prompt_tokens,
                    warnings=receipt.warnings,
                )  # fmt: skip

    def choices(self, items: Sequence[Item], protocol: Ask) -> Iterator[Reply | LongviewError]:
        def choose(item: Item) -> Reply:
            return asyncio.run(self._choose(item, protocol))

        for some in slices(items):
            yield from ordered(choose, some, SCORED)

    async def _choose(self, item: Item, protocol: Ask) -> Reply:
        from longview.engine.score import Question

        (message,) = LazyMessages(protocol, item)
        before, text = split_text(message.parts)
        question = Question((Part("text", text=text),), tuple(item.letters))
        conversation = [Message.of("user", *before)]
        (scores,) = await self.engine.ascore(conversation, [question], **crops_of(self, protocol))
        return likeliest(item, list(scores.logprobs), frames_of(scores.receipt), scores.receipt.warnings)


def crops_of(asker: Asker, protocol: Ask) -> dict[str, int]:
    """The number of crops of a picture as a request's setting, where the protocol says it and the model asks."""
    if protocol.max_partition is None or not asker.partitions:
        return {}
    return {"max_partition": protocol.max_partition}


def split_text(parts: Sequence[Part]) -> tuple[list[Part], str]:
    """A message's parts up to its last medium, and the text behind that, which a scored question ends with."""
    before = list(parts)
    texts: list[str] = []
    while before and before[-1].type == "text":
        texts.insert(0, before.pop().text)
    return before, "".join(texts)


def likeliest(item: Item, logprobs: Sequence[float], frames: Any, warnings: Sequence[str]) -> Reply:
    """The letter with the highest log-probability; the first of several."""
    best = max(range(len(logprobs)), key=lambda number: logprobs[number])
    named = dict(zip(item.letters, (round(each, 6) for each in logprobs), strict=True))
    return Reply(item.letters[best], frames, "stop", logprobs=named, warnings=warnings)


def slices(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items, so many at a time that their pictures fit into memory."""
    queue = list(items)
    while queue:
        pictures = itertools.accumulate(len(item.shown) for item in queue)
        count = max(1, sum(total <= AHEAD for total in pictures))
        some, queue = queue[:count], queue[count:]
        yield some


def ordered(work: Callable[[T], U], items: Sequence[T], threads: int) -> Iterator[U | LongviewError]:
    """Some work on each item, in threads; results in order, an error in the place of a result.

    Raises:
        GoneError: there is nobody left to do it.
    """

    def safely(item: T) -> U | LongviewError:
        try:
            return work(item)
        except GoneError:
            raise
        except LongviewError as error:
            return error

    pool = ThreadPoolExecutor(threads, thread_name_prefix="longview-eval")
    try:
        yield from pool.map(safely, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class GoneError(RequestError):
    """A server or a judge that does not answer: no further question can be asked."""


def frames_of(receipt: Receipt) -> list[dict[str, Any]]:
    """The frames of a receipt, short: a picture's name, or a video's name, frame and seconds."""
    found = []
    for frame in receipt.frames:
        place = {} if frame.kind == "image" else {"index": frame.index, "seconds": frame.seconds}
        found.append({"medium": frame.medium, "name": frame.name, **place})
    return found


def fingerprint(model: Any) -> str:
    """What tells one set of weights from another: some numbers of every parameter."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        some = parameter.detach().reshape(-1)[:64].cpu()
        some = some.float() if some.is_floating_point() else some
        digest.update(
            f"{name} {tuple(parameter.shape)}".encode() + some.contiguous().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]
