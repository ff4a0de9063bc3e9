"""Answers from what an index holds: the nearest pieces of knowledge stand before the question; and which it rests on.

    question, pictures ── Index.find ── pieces ── "Knowledge 1: ▣ …  Knowledge 2: ▣ …  question" ── the model ── answer
                                          └── the same without piece 1, without piece 2, … ── how likely that answer is

A model may name a piece that it did not use. So each piece is left out in turn, and the log-probability of the answer
is compared: an answer rests on the piece without which it is least likely, if it is clearly less likely.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longview.errors import RequestError
from longview.evidence.deletion import CLEARLY, changes_without, wait_for
from longview.index.moments import Found
from longview.index.passages import read_passages
from longview.index.sheet import clock
from longview.messages import Answer, Message, Part
from longview.requests import MediaOptions

if TYPE_CHECKING:
    from longview.engine import Engine

INTRODUCTION = "Below are several multimodal knowledge retrieved for you to make a decision.\n"
CLAIM = "\nSay which knowledge the answer is based on, as in: based on knowledge 1."
MOMENT_FRAMES = 4
"""Frames of a moment that are shown."""
_CLAIMED = re.compile(r"\bknowledge\s+(\d+(?:\s*(?:,|&|and)\s*(?:knowledge\s+)?\d+)*)", re.IGNORECASE)


@dataclass(frozen=True)
class PieceUsed:
    """A piece of knowledge that stood before the question."""

    number: int
    """In the prompt, from 1."""
    found: Found
    claimed: bool
    """Whether the answer names it."""
    change: float | None
    """Nats that the answer's log-probability changes when it is left out; None: not checked."""
    rests: bool | None
    """Whether the answer rests on it; None: not checked."""


@dataclass(frozen=True)
class KnowledgeAnswer:
    """An answer, and what stood before its question."""

    answer: Answer
    pieces: tuple[PieceUsed, ...]
    warnings: tuple[str, ...] = ()
    """Pieces that were found and could not be shown."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        pieces = [
            {
                "number": piece.number,
                "path": piece.found.path,
                "kind": piece.found.kind,
                "score": piece.found.score,
                "begin": piece.found.begin,
                "end": piece.found.end,
                "text": piece.found.text,
                "source": piece.found.source,
                "claimed": piece.claimed,
                "change": piece.change,
                "rests": piece.rests,
            }
            for piece in self.pieces
        ]
        return {**self.answer.as_dict(), "knowledge": pieces, "knowledge_warnings": list(self.warnings)}

    def lines(self) -> list[str]:
        """For a terminal: a line for each piece."""
        return [_line(piece) for piece in self.pieces]


def _line(piece: PieceUsed) -> str:
    said = [f"score {piece.found.score:.3f}"]
    if piece.change is not None:
        said.append(f"{piece.change:+.2f} nats without it")
    said += ["named"] * piece.claimed + ["the answer rests on it"] * bool(piece.rests)
    return f"knowledge {piece.number}: {place_of(piece.found)} ({', '.join(said)})"


def place_of(found: Found) -> str:
    """File and time, or which passage of it."""
    if found.kind == "moment":
        return f"{found.path} {clock(found.begin or 0)}–{clock(found.end or 0)}"
    return f"{found.path} passage {found.place + 1}" if found.kind == "passage" else found.path


def parts_of(found: Found) -> list[Part]:
    """What is shown of a piece: a picture, frames of a moment, or a passage with its pictures.

    Raises:
        RequestError: a passage that is no longer where it was.
    """
    if found.kind == "moment":
        begin, end = found.begin or 0.0, found.end or 0.0
        options = MediaOptions(frames=MOMENT_FRAMES, select="uniform", start=begin, end=max(end, begin + 0.1))
        return [Part("video", source=found.path, media=options), Part("text", text=f" ({place_of(found)})")]
    if found.kind == "picture":
        return [Part("image", source=found.path)]
    path = Path(found.path)
    passage = next((each for number, each in enumerate(read_passages(path)) if number == found.place), None)
    if passage is None or passage.text != found.text:
        raise RequestError(f"{path} has changed since it was indexed; index its folder again")
    pictures = [Part("image", source=picture) for picture in passage.pictures]
    return [*pictures, Part("text", text=f" {passage.text}" if pictures else passage.text)]


def prompt(pieces: Mapping[int, Sequence[Part]], question: str, parts: Sequence[Part]) -> Message:
    """The user's message: pieces by their numbers, then the question with media of its own."""
    whole = [Part("text", text=INTRODUCTION)] if pieces else []
    for number, shown in pieces.items():
        whole += [Part("text", text=f"Knowledge {number}: "), *shown, Part("text", text="\n")]
    for medium in parts:
        whole += [medium, Part("text", text="\n")]
    return Message("user", (*whole, Part("text", text=question + (CLAIM if pieces else ""))))


def claimed_in(answer: str) -> set[int]:
    """Numbers of the pieces that an answer names."""
    return {int(number) for named in _CLAIMED.findall(answer) for number in re.findall(r"\d+", named)}


def answer_with(
    engine: Engine,
    found: Sequence[Found],
    question: str,
    parts: Sequence[Part] = (),
    before: Sequence[Message] = (),
    check: bool = True,
    **settings: Any,
) -> KnowledgeAnswer:
    """Answer a question with pieces of knowledge before it.

    Args:
        parts: Pictures and videos that the question is about itself.
        before: Messages before it, such as a system message.
        check: Leave each piece out in turn, and compare how likely the answer is: a prefill for each.
        settings: As of `Engine.answer`.

    Raises:
        RequestError, MediaError: as `Engine.answer`.
    """
    shown, warnings = [], []
    for each in found:
        try:
            shown.append((each, parts_of(each)))
        except (RequestError, OSError) as error:  # what remains is answered with
            warnings.append(str(error))
    pieces = {number: piece for number, (_, piece) in enumerate(shown, 1)}
    answer = engine.answer([*before, prompt(pieces, question, parts)], **settings)
    changes: dict[int, float] = {}
    if check and pieces and answer.text:
        conversation = [*before, prompt(pieces, question, parts)]
        kept = {name: settings[name] for name in ("media", "limits") if name in settings}
        others = [
            [*before, prompt({other: piece for other, piece in pieces.items() if other != number}, question, parts)]
            for number in pieces
        ]
        _, found_changes = wait_for(changes_without(engine, conversation, others, answer.text, **kept))
        changes = dict(zip(pieces, found_changes, strict=True))
    claimed = claimed_in(answer.text)
    lowest = min(changes, key=lambda number: changes[number], default=None)
    used = [
        PieceUsed(
            number,
            each,
            number in claimed,
            changes.get(number),
            (number == lowest and changes[number] <= -CLEARLY) if changes else None,
        )
        for number, (each, _) in enumerate(shown, 1)
    ]
    return KnowledgeAnswer(answer, tuple(used), tuple(warnings))
