"""The nouns of evaluation: an item is one question of a benchmark with its media and true answer.

    reader ── Item ── Protocol.prompt ── messages ── the model ── answer ── parser ── Verdict ── metric ── numbers

Media are named, not opened: a picture inside a table is read from the disk when its question is asked.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from longview.messages import Detail, Part
from longview.requests import MediaOptions

LETTERS = string.ascii_uppercase
Load: TypeAlias = Callable[[], Any]
"""Gives what a part takes as its source: encoded bytes, a path, a picture, or a list of them for a video."""


@dataclass(frozen=True)
class Shown:
    """A picture or a video of an item."""

    kind: Literal["image", "video"]
    load: Load = field(compare=False, repr=False)
    name: str
    """What it is called in errors and reports; two of one name are the same medium."""
    start: float | None = None
    end: float | None = None
    """Seconds between which a video is shown."""
    digest: str = ""
    """Of what it shows, where that was read."""
    detail: Detail | None = None
    """Crops of a picture, where its row asks for them; default: as the protocol does."""

    @property
    def identity(self) -> str:
        """The same for two media that show the same."""
        return self.digest or self.name

    def part(self, detail: Detail = "auto", media: MediaOptions | None = None) -> Part:
        """The part of a message that shows it.

        Raises:
            LongviewError: what holds it cannot be read.
        """
        if self.kind == "image":
            return Part("image", source=self.load(), detail=self.detail or detail, name=self.name)
        if self.start is not None or self.end is not None:
            media = replace(media or MediaOptions(), start=self.start, end=self.end)
        return Part("video", source=self.load(), media=media, name=self.name)


def picture(path: Path, name: str = "") -> Shown:
    """A picture in a file."""
    return Shown("image", lambda: path, name or path.name)


def clip(path: Path, start: float | None = None, end: float | None = None) -> Shown:
    """A video in a file, or between two of its seconds."""
    return Shown("video", lambda: path, path.name, start, end)


@dataclass(frozen=True)
class Item:
    """One question of a benchmark."""

    id: str
    question: str
    answer: Any
    """The truth: an option's letter, a text, or what several people answered."""
    shown: tuple[Shown, ...] = ()
    options: tuple[str, ...] = ()
    """Of a multiple choice, in the order of their letters."""
    hint: str = ""
    group: str = ""
    """Items of one group count as one; default: each by itself."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """By which scores are told apart: category, length, subject, …"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a prompt or a parser of this benchmark needs."""

    @property
    def unit(self) -> str:
        """What is counted: the group, or the item alone."""
        return self.group or self.id

    @property
    def letters(self) -> str:
        """The letters of its options."""
        return LETTERS[: len(self.options)]


@dataclass(frozen=True)
class Verdict:
    """What a parser made of an answer."""

    value: Any
    understood: bool = True
    """False: no rule applied, and `value` is what the protocol counts then; None: nothing."""


@dataclass(frozen=True)
class Graded:
    """An item, what a parser made of its answer, and what that is worth, from 0 to 1."""

    item: Item
    verdict: Verdict
    score: float


Prompt: TypeAlias = "Callable[[Item], Sequence[str | Shown]]"
"""An item → the texts and media of the user's message, in their order."""
Parse: TypeAlias = "Callable[[Item, str], Verdict]"
"""What an answer to an item means."""


@dataclass(frozen=True)
class Protocol:
    """How one family's authors ask a benchmark's questions."""

    prompt: Prompt
    max_tokens: int = 100
    detail: Detail = "auto"
    """Crops of pictures: "low" none, "high" as many as the family makes, "auto" as it does for so many pictures."""
    max_partition: int | None = None
    """Ovis2: crops of a picture at most, where they are not those of its program."""
    frames: int | None = None
    select: str | None = None
    cut_behind: str = ""
    """Of an answer only what stands behind the first of this counts, as in chains of thought."""
    parse: Parse | None = None
    """What an answer means, where that is not as the task has it."""
    sizes: tuple[str, ...] = ()
    """The sizes, as "8B", of those of the family's models that are asked so unless another protocol is named."""
    note: str = ""
    """Where this differs from what the authors did, and why."""

    @property
    def media(self) -> MediaOptions:
        """Which frames of videos are shown."""
        return MediaOptions(frames=self.frames, select=self.select)

    def parts(self, item: Item) -> list[str | Part]:
        """The user's message.

        Raises:
            LongviewError: a medium cannot be read.
        """
        return [
            each if isinstance(each, str) else each.part(self.detail, self.media if each.kind == "video" else None)
            for each in self.prompt(item)
        ]

    def text(self, item: Item) -> str:
        """The prompt for people and journals: <image>, <video> in the place of each medium."""
        return "".join(each if isinstance(each, str) else f"<{each.kind}>" for each in self.prompt(item))

    def facts(self) -> dict[str, Any]:
        """What decides an answer beside the prompt."""
        settings = ("max_tokens", "detail", "max_partition", "frames", "select")
        return {name: getattr(self, name) for name in settings if getattr(self, name) is not None}
