"""The pictures that evidence is about, as JPEGs of bounded size."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from PIL import Image

from longview.answer_evidence import Evidence
from longview.evidence.deletion import without
from longview.evidence.view import MOST_DETAILED
from longview.media import open_media
from longview.messages import Message
from longview.requests import Limits, MediaOptions

LARGE, SMALL = (560, 64 << 10), (176, 8 << 10)
"""Pixels of the longer side, and bytes, at most, of the pictures that are shown large, and of the others."""


def jpegs(messages: Sequence[Message], evidence: Evidence, limits: Limits | None = None) -> dict[int, bytes]:
    """Each picture by its number.

    Raises:
        MediaError: a file can no longer be read.
    """
    large = set(evidence.ranked[:MOST_DETAILED])
    by_place = {(picture.frame.medium, picture.frame.index): picture.number for picture in evidence.pictures}
    found = {}
    for medium, index, image in frames_of(messages, evidence, limits):
        number = by_place.get((medium, index))
        if number is not None:
            found[number] = jpeg(image, *(LARGE if number in large else SMALL))
    return found


def frames_of(
    messages: Sequence[Message], evidence: Evidence, limits: Limits | None
) -> Iterator[tuple[int, int, Image.Image]]:
    """The number of its medium, its index there, and each picture that was shown."""
    exactly = without(messages, evidence, frozenset())  # of videos those frames that were chosen
    parts = [part for message in exactly for part in message.media]
    media = open_media(parts, MediaOptions(), limits or Limits())
    try:
        for number, medium in enumerate(media):
            for frame in medium.read():
                yield number, frame.index, frame.image
    finally:
        for medium in media:
            medium.close()


def jpeg(image: Image.Image, side: int, most: int) -> bytes:
    """A small copy, of worse quality where it would have more bytes than `most`."""
    small = image.convert("RGB")
    while True:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in (85, 70, 50):
            data = io.BytesIO()
            small.save(data, "JPEG", quality=quality)
            if data.tell() <= most:
                return data.getvalue()
        side = side * 3 // 4
