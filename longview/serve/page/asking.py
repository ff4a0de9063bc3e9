"""A turn of a conversation → answers of its models, as they grow: the same jobs as those of the HTTP routes.

Turn ── request_of ── JobBuilder ── Server.events ── Answer       one task for each model
                                 └─ "render" ─────── the frames   as soon as the media are open
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longview.deadlines import end
from longview.serve.app import Server
from longview.serve.chat import Completion
from longview.serve.errors import APIError
from longview.serve.page.conversation import Answer, Conversation, Frames, Shown, request_of

SECONDS = 0.05
"""Between two states of an answer that are shown."""
DRAWING = "drawing.png"
Media = list[dict[str, Any]]
"""What was opened for an answer: `worker.shown_media`."""


@dataclass
class Asking:
    """One turn that is being answered.

    Attributes:
        opened: What each model is shown, when it is known.
        stopped: Set when the user has seen enough.
    """

    server: Server
    conversation: Conversation
    number: int
    tenant: str
    opened: dict[str, Media] = field(default_factory=dict)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> AsyncGenerator[None]:
        """Ask all models at once; yields whenever there is something new to show. Leaving early ends their requests."""
        turn = self.conversation.turns[self.number]
        fix_seed(turn.settings)
        turn.answers = {model: Answer() for model in self.conversation.models}
        tasks = [asyncio.create_task(self._answer(model)) for model in self.conversation.models]
        stopping = asyncio.create_task(self.stopped.wait())
        try:
            yield
            while not (all(task.done() for task in tasks) or stopping.done()):
                changing = asyncio.create_task(self._changed.wait())
                await asyncio.wait([*tasks, stopping, changing], return_when=asyncio.FIRST_COMPLETED)
                changing.cancel()
                self._changed.clear()
                yield
                await asyncio.wait([stopping], timeout=SECONDS)
        finally:
            await end(*tasks, stopping)
            for answer in turn.answers.values():
                answer.ended = answer.ended or "stopped"
        yield

    async def _answer(self, model: str) -> None:
        answer = self.conversation.turns[self.number].answers[model]
        looking: asyncio.Task[None] | None = None
        try:
            await self._keep_pinned(model)
            request = request_of(self.conversation, self.number, model)
            completion = self.server.completion(request)
            paints = bool(request.longview and request.longview.gen and completion.facts.get("paints"))
            job = self.server.jobs.chat(request, self.tenant)
            async with contextlib.aclosing(self.server.events(model, job)) as events:
                async for event in events:
                    if event["event"] == "accepted":
                        looking = asyncio.create_task(self._look(model))
                    elif event["event"] == "piece":
                        completion.add(event)
                        _fill(answer, completion)
                        answer.painting = bool(answer.ended) and paints
                        if "drawing" in event.get("made", {}):
                            await self._draw(answer, event["made"]["drawing"])
                    self._changed.set()
            if looking is not None:
                await looking
        except APIError as error:
            answer.ended, answer.error = "failed", error.message
        finally:
            answer.painting = False
            if looking is not None:
                await end(looking)
            self._changed.set()

    async def _draw(self, answer: Answer, drawing: Mapping[str, Any] | None) -> None:
        """Keep the picture that was painted of an answer as a file of this server."""
        answer.painting = False
        if drawing is None:
            answer.note = "nothing is painted, as the answer describes no picture"
            return
        with self.server.files.temporary() as painted:
            painted.write(base64.b64decode(drawing["png"]))
            painted.flush()
            stored = await self.server.files.add(Path(painted.name), DRAWING, self.tenant)
        answer.drawn = [Shown(file=stored.id, name=stored.filename, kind="image")]

    async def _look(self, model: str) -> None:
        """Find out which frames a model is shown."""
        with contextlib.suppress(APIError):  # the answer says it, too
            self.opened[model] = await look(self.server, self.conversation, self.number, model, self.tenant)
        self._changed.set()

    async def _keep_pinned(self, model: str) -> None:
        """Add the pinned frames of videos to those that the sampler chooses, and ask about exactly these."""
        media = self.conversation.media(self.number, model)
        if not any(shown.pinned and not shown.chosen.get(model) for shown in media):
            return
        found = await look(self.server, self.conversation, self.number, model, self.tenant)
        for shown, medium in zip(media, found, strict=True):
            if shown.pinned and not shown.chosen.get(model):
                shown.chosen[model] = sorted({*shown.pinned, *(frame["index"] for frame in medium["frames"])})


async def look(server: Server, conversation: Conversation, number: int, model: str, tenant: str) -> Media:
    """The frames that a model is shown for a turn, with thumbnails; nothing is answered.

    Raises:
        APIError: as the question itself.
    """
    request = request_of(conversation, number, model)
    if request.longview is not None:
        request.longview.ocr = None  # reading text takes as long as the answer
    job = server.jobs.chat(request, tenant)
    job.do, job.thumbnails = "render", True
    async with contextlib.aclosing(server.events(model, job)) as events:
        return (await anext(events))["media"]


def fix_seed(settings: dict[str, Any]) -> None:
    """Choose the seed of an answer that is drawn at random, so that it can be replayed."""
    if settings.get("temperature") and settings.get("seed") is None:
        settings["seed"] = secrets.randbelow(2**31)


def _fill(answer: Answer, completion: Completion) -> None:
    choice = completion.choices[0]
    answer.text = choice.text
    if choice.finish_reason is None:
        return
    answer.ended = choice.finish_reason  # type: ignore[assignment]
    receipt = completion.receipts[0]
    answer.warnings = list(receipt["warnings"])
    answer.frames = frames_of(receipt["frames"])
    answer.about = about(receipt)


def frames_of(used: list[Mapping[str, Any]]) -> list[Frames]:
    """The frames of a receipt by their medium."""
    count = max((frame["medium"] for frame in used), default=-1) + 1
    by_medium = [[frame for frame in used if frame["medium"] == medium] for medium in range(count)]
    return [
        Frames(indices=[frame["index"] for frame in frames], seconds=[frame["seconds"] for frame in frames])
        for frames in by_medium
    ]


def about(receipt: Mapping[str, Any]) -> str:
    """Tokens and seconds of an answer, in one line."""
    usage, timings = receipt["usage"], receipt["timings"]
    total = timings["first_token"] + timings["decode"]
    return f"{usage['prompt_tokens']:,} + {usage['completion_tokens']:,} tokens, {total:.1f} s"
