"""Messages between the server and the process of a model, over a socket pair: JSON, and bytes beside it.

    length (4 bytes) ── JSON header ── blobs, of which the header's `blobs` lists the lengths

No pickles. What is long (a picture in a data URI) travels as a blob, so that it is not escaped and parsed again.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

LENGTH = struct.Struct(">I")


def encode(header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> list[bytes]:
    """A message in parts, to be written one after the other."""
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}, ensure_ascii=False).encode()
    return [LENGTH.pack(len(text)) + text, *blobs]


async def read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], list[bytes]]:
    """
    Raises:
        EOFError: the other side is gone.
    """
    header = json.loads(await reader.readexactly(LENGTH.unpack(await reader.readexactly(LENGTH.size))[0]))
    return header, [await reader.readexactly(length) for length in header.pop("blobs")]
