"""Text in pictures, read by RapidOCR and written into the question: `--ocr`, `Engine.stream(ocr=True)`.

PaddleOCR's models on ONNX lie in RapidOCR's wheel, so this works offline. The text stands after the question in the
form that MGM was trained with; other models were not, and take it as any text:

    <image>
    What does the sign say?
    Reference OCR Token: STOP, 42
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from longview.errors import MissingExtraError
from longview.messages import Message, Part, Progress, TextRead

MIN_SCORE = 0.1
"""Texts with a lower score are left out, as MGM's authors do."""


class OpenedMedium(Protocol):
    """What is used of a `longview.media.Medium`."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def frames(self) -> Sequence[Any]: ...


class Recognizer:
    """RapidOCR. What it has found in a medium is kept, by content.

    Raises:
        MissingExtraError: RapidOCR is not installed.
    """

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR

            self._rapidocr = RapidOCR(params={"Global.log_level": "critical"})
        except ImportError as error:  # of itself, or of the runtime that it is told to use
            raise MissingExtraError("--ocr", "rapidocr", "onnxruntime") from error
        self._known: dict[tuple[str, tuple[int, ...]], tuple[str, ...]] = {}

    def recognize(self, image: Image.Image) -> list[str]:
        """The texts in one picture, from its top to its bottom."""
        found: Any = self._rapidocr(np.asarray(image.convert("RGB"))[:, :, ::-1])  # RapidOCR expects BGR
        texts, scores = found.txts or (), found.scores or ()
        return [text for text, score in zip(texts, scores, strict=True) if score > MIN_SCORE]

    def recognize_medium(self, medium: OpenedMedium, progress: Progress | None = None) -> tuple[str, ...]:
        """The texts in all chosen frames of a medium, each text once."""
        key = (medium.digest, tuple(frame.index for frame in medium.frames))
        if key not in self._known:
            texts: list[str] = []
            for number, frame in enumerate(medium.frames, 1):
                texts += self.recognize(frame.image)
                if progress is not None:
                    progress(number, len(medium.frames), "reading text")
            self._known[key] = tuple(dict.fromkeys(texts))
        return self._known[key]


@functools.cache
def recognizer() -> Recognizer:
    """The one recognizer of this process, loaded when it is first needed."""
    return Recognizer()


def reference(texts: Sequence[str]) -> str:
    """Texts as MGM was trained to see them; nothing for none."""
    return f"\nReference OCR Token: {', '.join(texts)}\n" if texts else ""


class OcrHook:
    """Appends the text of its pictures to each message."""

    reads_frames = True

    def check(self, engine: Any) -> None:
        """Any model reads text."""

    def before_model(
        self, messages: Sequence[Message], media: Sequence[OpenedMedium], progress: Progress | None
    ) -> tuple[list[Message], dict[str, Any]]:
        """The messages with the text of their pictures behind their own, and what was read, as the note `read`.

        Raises:
            MissingExtraError: RapidOCR is not installed.
        """
        read: list[TextRead] = []
        written: list[Message] = []
        opened = iter(enumerate(media))
        for message in messages:
            texts: list[str] = []
            for _ in message.media:
                number, medium = next(opened)
                found = recognizer().recognize_medium(medium, progress)
                read.append(TextRead(number, medium.name, found))
                texts += found
            extra = reference(texts)
            parts = (*message.parts, Part("text", text=extra)) if extra else message.parts
            written.append(replace(message, parts=parts))
        return written, {"read": tuple(read)}

    def after_answer(self, answer: Any, progress: Progress | None) -> dict[str, Any]:
        """Nothing."""
        return {}


hook = OcrHook
