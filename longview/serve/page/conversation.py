"""A conversation of the page: what the browser keeps, what a saved file holds, and the request that a question becomes.

    Conversation ─ Turn ─ Shown     a picture or a video, by the id of its upload, with the frames chosen by hand
                        └ Answer    one for each model that was asked

It comes back from the browser with every event, so it is checked like any request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from longview.messages import Message, Part, ask
from longview.requests import MediaOptions, Plugins
from longview.serve.app import parse
from longview.serve.schema import ChatRequest, Strict
from longview.settings import settings_of

FORMS = {"regex": "regex", "json_schema": "json"}
"""What an answer has to be, as requests spell it."""
MAX_TURNS = 200
MAX_MODELS = 2
TITLE = 60

Indices = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8192)]


class Shown(Strict):
    """A picture or a video of a question."""

    file: str
    """The id of its upload."""
    name: str
    kind: Literal["image", "video"]
    chosen: dict[str, Indices] = Field(default_factory=dict)
    """The frames that were chosen by hand, by model."""
    pinned: Indices = Field(default_factory=list)
    """Frames that are shown whatever a sampler chooses."""


class Frames(Strict):
    """The frames of one medium that an answer is based on."""

    indices: Indices
    seconds: list[float | None]


class Answer(Strict):
    """What one model said to one question."""

    text: str = ""
    ended: Literal["", "stop", "length", "stopped", "failed"] = ""
    """Why it ended: "" while it has not, "stopped" by the user."""
    error: str = ""
    frames: list[Frames] = Field(default_factory=list)
    """Of each medium of the conversation, in order."""
    about: str = ""
    """Tokens and seconds, in one line."""
    warnings: list[str] = Field(default_factory=list)
    painting: bool = False
    """A picture of it is being painted."""
    drawn: list[Shown] = Field(default_factory=list)
    """What was painted of it."""
    note: str = ""
    """What else there is to say of it, in one line."""


class Turn(Strict):
    """A question, and its answers by model."""

    text: str
    shown: list[Shown] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of `longview.requests` that differ from their defaults, by name."""
    answers: dict[str, Answer] = Field(default_factory=dict)

    @property
    def files(self) -> list[Shown]:
        """All that it shows: what it asks about, and what was painted of its answers."""
        return [*self.shown, *(drawn for answer in self.answers.values() for drawn in answer.drawn)]

    def said_by(self, model: str) -> str:
        """What a model answered; where it was not asked, what another one did."""
        first = [self.answers[model]] if model in self.answers else []
        return next((answer.text for answer in (*first, *self.answers.values()) if answer.text), "")


class Conversation(Strict):
    """
    Attributes:
        models: The models that are asked.
    """

    id: str
    models: list[str] = Field(min_length=1, max_length=MAX_MODELS)
    system: str = ""
    turns: list[Turn] = Field(default_factory=list, max_length=MAX_TURNS)
    changed: float = Field(default_factory=time.time)

    @property
    def title(self) -> str:
        first = self.turns[0] if self.turns else None
        text = "New chat" if first is None else first.text.strip() or ", ".join(each.name for each in first.shown)
        return text if len(text) <= TITLE else f"{text[: TITLE - 1]}…"

    def told(self, number: int, model: str) -> list[tuple[Turn, str]]:
        """The turns that a model is told of when it answers one, with what was said to them: those without an answer,
        whose media may be what could not be opened, are left out."""
        found = [(turn, turn.said_by(model)) for turn in self.turns[:number]]
        return [*((turn, said) for turn, said in found if said), (self.turns[number], "")]

    def media(self, number: int, model: str) -> list[Shown]:
        """What a model is shown when it answers one turn, in order."""
        return [shown for turn, _ in self.told(number, model) for shown in turn.shown]

    def copy_for(self, id: str, models: list[str]) -> Conversation:
        """The same questions, which nobody has answered."""
        turns = [turn.model_copy(update={"answers": {}}, deep=True) for turn in self.turns]
        return Conversation(id=id, models=models, system=self.system, turns=turns)


def read(given: Any) -> Conversation | None:
    """A conversation as the browser sends it; None where it sends none, or something else."""
    try:
        return Conversation.model_validate(given)
    except ValidationError:
        return None


def request_of(conversation: Conversation, number: int, model: str) -> ChatRequest:
    """The request that one turn is for one model.

    Raises:
        APIError: the settings contradict each other.
    """
    messages: list[dict[str, Any]] = []
    if conversation.system.strip():
        messages.append({"role": "system", "content": conversation.system})
    for turn, said in conversation.told(number, model):
        messages.append({"role": "user", "content": list(_parts(turn, model))})
        if said:
            messages.append({"role": "assistant", "content": said})
    settings = dict(conversation.turns[number].settings)
    if not any(shown.kind == "video" for shown in conversation.media(number, model)):
        # they are left as they are on the page when the next question shows pictures
        settings = {name: value for name, value in settings.items() if name not in settings_of(MediaOptions)}
    known = {*settings_of(MediaOptions), *settings_of(Plugins)}
    beside = {name: value for name, value in settings.items() if name in known}
    forms = {FORMS[name]: value for name, value in settings.items() if name in FORMS}
    body: dict[str, Any] = {"model": model, "messages": messages, "longview": beside}
    body |= {name: value for name, value in settings.items() if name not in {*beside, *FORMS}}
    if forms:
        body["structured_outputs"] = forms
    return parse(json.dumps(body).encode(errors="replace"), ChatRequest)


def _parts(turn: Turn, model: str) -> Iterator[dict[str, Any]]:
    """A question as the models' authors write it, its media by the ids of their uploads."""
    by_name = {str(place): shown for place, shown in enumerate(turn.shown)}
    parts = [Part(shown.kind, source="", name=place) for place, shown in by_name.items()]
    question: Message = ask(turn.text, *parts)
    for part in question.parts:
        if part.type == "text":
            yield {"type": "text", "text": part.text}
            continue
        shown = by_name[part.name]
        found: dict[str, Any] = {"type": "file", "file": {"file_id": shown.file}}
        if shown.kind == "video" and shown.chosen.get(model):
            found["longview"] = {"indices": shown.chosen[model]}
        yield found
