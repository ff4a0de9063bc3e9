"""A chat without a terminal: its messages, the media of the next question, and how messages are kept as JSON."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.files import write_file
from longview.messages import Message, Part, Source, ask


@dataclass
class Chat:
    """A conversation as it grows.

    Args:
        system: The system message, before the first question.
    """

    system: str | None = None
    messages: list[Message] = field(init=False)
    pending: list[Part] = field(init=False)
    """Media for the next question."""
    failed: str | None = field(default=None, init=False)
    """What could not be added since the last question, which would be answered about older pictures."""

    def __post_init__(self) -> None:
        self.reset()

    @property
    def media(self) -> list[Part]:
        """The media of earlier questions."""
        return [part for message in self.messages for part in message.media]

    def reset(self, messages: Sequence[Message] | None = None) -> None:
        """Begin anew, or go on from these messages."""
        first = [] if self.system is None else [Message.of("system", self.system)]
        self.messages = first if messages is None else list(messages)
        self.pending, self.failed = [], None

    def add(self, parts: Sequence[Part]) -> None:
        """Show media with the next question."""
        self.pending += parts
        self.failed = None

    def ask(self, question: str) -> list[Message]:
        """The messages of the next request: all so far, and a question about the pending media.

        Raises:
            RequestError: media could not be added. Once; the same question again is asked without them.
        """
        if self.failed is not None:
            failed, self.failed = self.failed, None
            raise RequestError(
                f"{failed}, so the question was not asked; add what it is about, or send it again to ask without"
            )
        return [*self.messages, ask(question, *self.pending)]

    def commit(self, messages: Sequence[Message], answer: str) -> None:
        """What `ask` gave was answered: the next question comes after it, and its media have been shown."""
        self.messages = [*messages, Message.of("assistant", answer)]
        self.pending = []


def save_messages(messages: Sequence[Message], path: Path) -> None:
    """Write messages as JSON that `Engine.answer` takes. Paths of media become absolute.

    Raises:
        RequestError: the file cannot be written, or a medium is a decoded picture.
    """
    turns = [{"role": message.role, "content": [_as_dict(part) for part in message.parts]} for message in messages]
    write_file(path, f"{json.dumps(turns, ensure_ascii=False, indent=2)}\n".encode())


def load_messages(path: Path) -> list[Message]:
    """Read a conversation to go on with: one that ends with an answer, and whose files are still there.

    Raises:
        RequestError: it is missing, malformed, or not such a conversation.
    """
    try:
        turns = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); give the file of a saved conversation") from None
    except (ValueError, RecursionError):
        raise RequestError(f"{path} is not JSON; give the file of a saved conversation") from None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RequestError(f"{path} holds no list of messages; give the file of a saved conversation")
    try:
        messages = [Message.from_dict(turn) for turn in turns]
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    if not messages or messages[-1].role != "assistant":
        raise RequestError(f"the conversation in {path} does not end with an answer; give one that does")
    for file in (file for message in messages for part in message.media for file in _files(part.source)):
        if not os.path.isfile(os.path.expanduser(file)):
            raise RequestError(f"the conversation in {path} shows {file}, which is not there; put it back")
    return messages


def is_address(source: str) -> bool:
    """Whether a source is a URL or a data URI, and no path."""
    return re.match(r"(data|https?):|[a-z][a-z0-9+.-]+://", source, re.IGNORECASE) is not None


def _files(source: Source | None) -> Iterator[str]:
    """The paths of local files in a source."""
    if isinstance(source, (str, Path)):
        if not is_address(str(source)):
            yield str(source)
    elif isinstance(source, Sequence) and not isinstance(source, bytes):
        for each in source:
            yield from _files(each)


def _as_dict(part: Part) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if isinstance(part.source, bytes):
        return {"type": part.type, "base64": base64.b64encode(part.source).decode()}
    return {"type": part.type, "path": _portable(part.source)}


def _portable(source: Source | None) -> Any:
    """A source as JSON has it."""
    if isinstance(source, (str, Path)):
        return str(source) if is_address(str(source)) else os.path.abspath(os.path.expanduser(source))
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return [_portable(each) for each in source]
    raise RequestError(f"a medium that is {type(source).__name__} cannot be saved; show it as a file")
