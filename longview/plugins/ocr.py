"""Text in pictures, read by RapidOCR and written into the question: `--ocr`.

PaddleOCR's models on ONNX lie in RapidOCR's wheel, so this works offline. The words stand after the question in the
form that MGM was published with; other models have not been taught it, and read it as any text:

    <image>
    What does the sign say?
    Reference OCR Token: STOP, 42
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from longview.errors import MissingExtraError
from longview.messages import Message, Part, TextRead

SURE = 0.1
"""Texts that the reader is less sure of than this are left out, as the authors do."""

Progress = Callable[[int, int, str], None]


class Shown(Protocol):
    """What is asked of an opened picture or video."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def frames(self) -> Sequence[Any]: ...


class Reader:
    """Reads pictures, each once: what was read is kept by content.

    Raises:
        MissingExtraError: RapidOCR is not installed.
    """

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR

            self._engine = RapidOCR(params={"Global.log_level": "critical"})
        except ImportError as error:  # of itself, or of the runtime that it is told to use
            raise MissingExtraError("--ocr", "rapidocr", "onnxruntime") from error
        self._known: dict[tuple[str, tuple[int, ...]], tuple[str, ...]] = {}

    def read(self, image: Image.Image) -> list[str]:
        """The texts in one picture, from its top to its bottom."""
        found: Any = self._engine(np.asarray(image.convert("RGB"))[:, :, ::-1])  # it thinks in BGR
        texts, scores = found.txts or (), found.scores or ()
        return [text for text, score in zip(texts, scores, strict=True) if score > SURE]

    def read_medium(self, medium: Shown, progress: Progress | None = None) -> tuple[str, ...]:
        """The texts in all frames that are shown of a medium, each text once."""
        key = (medium.digest, tuple(frame.index for frame in medium.frames))
        if key not in self._known:
            texts: list[str] = []
            for number, frame in enumerate(medium.frames, 1):
                texts += self.read(frame.image)
                if progress is not None:
                    progress(number, len(medium.frames), "reading text")
            self._known[key] = tuple(dict.fromkeys(texts))
        return self._known[key]


@functools.cache
def reader() -> Reader:
    """The one reader of this process, loaded when it is first needed."""
    return Reader()


def reference(texts: Sequence[str]) -> str:
    """Texts in the published form; nothing for none."""
    return f"\nReference OCR Token: {', '.join(texts)}\n" if texts else ""


def read_into(
    messages: Sequence[Message], media: Sequence[Shown], progress: Progress | None = None
) -> tuple[list[Message], tuple[TextRead, ...]]:
    """The messages with the text of their pictures behind their words, and what was read for the receipt.

    Args:
        media: What the messages show, opened, in order.

    Raises:
        MissingExtraError: RapidOCR is not installed.
    """
    read: list[TextRead] = []
    written: list[Message] = []
    queue = iter(enumerate(media))
    for message in messages:
        texts: list[str] = []
        for _ in message.media:
            number, medium = next(queue)
            found = reader().read_medium(medium, progress)
            read.append(TextRead(number, medium.name, found))
            texts += found
        extra = reference(texts)
        parts = (*message.parts, Part("text", text=extra)) if extra else message.parts
        written.append(replace(message, parts=parts))
    return written, tuple(read)
