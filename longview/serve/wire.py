"""Messages between the server and the process of a model: JSON, and bytes beside it.

    length (4 bytes) ── JSON header ── blobs, of which the header's `blobs` lists the lengths

No pickles. What is long (a picture in a data URI) travels as a blob, so that it is not escaped and parsed again.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

Message = tuple[dict[str, Any], list[bytes]]

LENGTH = struct.Struct(">I")


def encode(header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> list[bytes]:
    """A message in parts, to be written one after the other."""
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}, ensure_ascii=False).encode()
    return [LENGTH.pack(len(text)) + text, *blobs]


async def read(reader: asyncio.StreamReader) -> Message:
    """
    Raises:
        EOFError: the other side is gone.
    """
    header = json.loads(await reader.readexactly(LENGTH.unpack(await reader.readexactly(LENGTH.size))[0]))
    return header, [await reader.readexactly(length) for length in header.pop("blobs")]


class Decoder:
    """Messages of bytes that come in pieces, from who is not trusted to keep to the form.

    Args:
        max_bytes: Of a message.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self._header: dict[str, Any] | None = None

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now.

        Raises:
            ValueError: one is too long, or is none.
        """
        self._bytes += data
        while True:
            if self._header is None:
                if len(self._bytes) < LENGTH.size:
                    return
                text = self._cut(LENGTH.unpack_from(self._bytes)[0], LENGTH.size)
                if text is None:
                    return
                self._header = self._checked(json.loads(text))
            blobs = self._cut(sum(self._header["blobs"]), 0)
            if blobs is None:
                return
            header, self._header = self._header, None
            lengths = header.pop("blobs")
            yield header, [blobs[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True)]

    def _cut(self, length: int, begin: int) -> bytes | None:
        """Take so many bytes out, and what is before them; None where they have not come yet."""
        if length > self._max_bytes:
            raise ValueError(f"a message of {length:,} bytes")
        if len(self._bytes) < begin + length:
            return None
        found = bytes(self._bytes[begin : begin + length])
        del self._bytes[: begin + length]
        return found

    def _checked(self, header: Any) -> dict[str, Any]:
        blobs = header.get("blobs") if isinstance(header, dict) else None
        if not isinstance(blobs, list) or not all(type(length) is int and length >= 0 for length in blobs):
            raise ValueError("a message is an object, with the lengths of its blobs")
        return header
