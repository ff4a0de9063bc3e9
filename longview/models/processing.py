"""What the families' processors share: checks of media, texts between pictures, padding, the receipt's frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch.nn.functional import pad

from longview.errors import RequestError
from longview.media import Medium
from longview.messages import FrameUsed, Message
from longview.models.base import IGNORED, ModelInputs
from longview.wording import counted

Segment = str | None
"""A text, or None where a picture stands."""
Text = TypeVar("Text")
TEMPLATE_TEXTS = ("\n", "system\n", "user\n", "assistant\n")
"""Of the chat template that Qwen's language models have."""


def special_ids(tokenizer: Any, tokens: Iterable[str]) -> dict[str, int]:
    """The ids of special tokens that a template is made of; one may be the tokenizer's unknown token, too.

    Raises:
        RequestError: the tokenizer lacks some of them.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}
    unknown, name = getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "unk_token", None)
    missing = [token for token, number in ids.items() if number is None or (number == unknown and token != name)]
    if missing:
        raise RequestError(f"the tokenizer lacks {', '.join(missing)}; use the one in the checkpoint's folder")
    return ids


class EncodesText:
    """Encodes texts of a prompt by `tokenizer`; those that stand in every prompt, once."""

    tokenizer: Any

    def _encode(self, text: str, parse_specials: bool = False) -> list[int]:
        """A text → ids, without tokens that the tokenizer itself would add.

        Args:
            parse_specials: Whether `<|im_end|>` and the like in the text are special tokens.
        """
        if parse_specials or text not in TEMPLATE_TEXTS:
            return self._ids(text, parse_specials)
        if text not in self._template_ids:
            self._template_ids[text] = self._ids(text, parse_specials)
        return list(self._template_ids[text])

    @cached_property
    def _template_ids(self) -> dict[str, list[int]]:
        return {}

    def _ids(self, text: str, parse_specials: bool) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not parse_specials)
        return list(encoded["input_ids"])


def join_texts(segments: Iterable[Text | None]) -> Iterator[list[Text] | None]:
    """Neighbouring texts as one list, and None for each picture; empty texts vanish.

    They are to be tokenised together, because a tokenizer may merge across their border.
    """
    segments = (segment for segment in segments if segment is None or segment)
    for is_picture, run in groupby(segments, key=lambda segment: segment is None):
        if is_picture:
            yield from (None for _ in run)
        else:
            yield [text for text in run if text is not None]


def check_media(messages: Sequence[Message], media: Sequence[Medium], family: str) -> None:
    """As many media as media parts, each with a frame, and all of them in the user's messages.

    Args:
        family: The model's name, for the error.

    Raises:
        RequestError: the numbers differ, a video has no frames, or another message than the user's holds media.
    """
    parts = sum(len(message.media) for message in messages)
    if parts != len(media):
        raise RequestError(f"the messages hold {counted(parts, 'medium', 'media')}, but {len(media)} were opened")
    if not all(medium.frames for medium in media):
        raise RequestError("a video without frames cannot be given to the model; choose at least one frame")
    stray = next((message.role for message in messages if message.media and message.role != "user"), None)
    if stray:
        raise RequestError(f"{family} takes pictures in the user's messages only, not in the {stray}'s")


def pad_rows(samples: Sequence[ModelInputs], fill: int, padding_side: str) -> tuple[dict[str, Any], list[int]]:
    """Rows padded to the longest, with the pixels of all; and how many positions each was padded by.

    Args:
        fill: The token id to pad with.

    Raises:
        RequestError: no samples, or no such side.
    """
    if padding_side not in ("left", "right") or not samples:
        raise RequestError(
            f"collate pads {len(samples)} samples on the side {padding_side!r}; give some, and left or right"
        )
    rows = [sample.load_pixels() for sample in samples]
    length = max(row["input_ids"].shape[1] for row in rows)
    pads = [length - row["input_ids"].shape[1] for row in rows]
    sides = [(pad, 0) if padding_side == "left" else (0, pad) for pad in pads]
    batch: dict[str, Any] = {}
    for key, value in {"input_ids": fill, "attention_mask": 0, "labels": IGNORED}.items():
        if key in rows[0]:
            padded = zip(rows, sides, strict=True)
            batch[key] = torch.cat([pad(row[key], side, value=value) for row, side in padded])
    pictures = [row["pixel_values"] for row in rows if "pixel_values" in row]
    if pictures:
        batch["pixel_values"] = torch.cat(pictures)
    return batch, pads


def frames_used(media: Sequence[Medium], crops: Sequence[int]) -> tuple[FrameUsed, ...]:
    """The receipt's list of frames; `crops` says how many pictures each medium's frames became."""
    return tuple(
        FrameUsed(
            medium=number,
            name=medium.name,
            kind=medium.kind,
            index=frame.index,
            seconds=frame.seconds,
            width=medium.width,
            height=medium.height,
            crops=crops[number],
        )
        for number, medium in enumerate(media)
        for frame in medium.frames
    )
