"""What the headers of an encoded picture say, and limits on their number: read before Pillow is given the bytes.

Pillow reads headers in Python loops, and some formats repeat work as often as the file says: each scan of a progressive
JPEG costs as much as decoding all of its pixels. So the structure is walked first, in time proportional to what the
limits allow, and a file that no program would write is refused.

Nothing is decoded here. A walker raises EOFError where the bytes end early.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import unpack, unpack_from
from typing import Literal

from longview.errors import MediaError
from longview.media.formats import ImageFormat

MAX_GIF_BLOCKS = 1_000_000  # extensions, images and data sub-blocks; full ones hold 255 bytes
MAX_CHUNKS = 100_000  # of a PNG or WebP, pixels and frames included
MAX_METADATA_CHUNKS = 500  # of a PNG or WebP; each may inflate to a megabyte of text or colour profile
MAX_SEGMENTS = 4_000  # of a JPEG; a colour profile or a depth map may take hundreds
MAX_EXIF_SEGMENTS = 4
MAX_TABLE_BYTES = 1 << 20  # of a JPEG: quantisation and Huffman tables
MAX_JUNK_BYTES = 1 << 16  # between the segments of a JPEG
MAX_SCANS = 100  # of a JPEG; encoders write a dozen
SCANNED = 40  # times `Limits.max_pixels`: pixels in all scans of a JPEG or TIFF together
MAX_RLE_BYTES = 16 << 20  # of a run-length encoded BMP, which Pillow decodes in Python
MAX_TAG_BYTES = 4 << 20  # of the values of one TIFF directory (Exif), beyond four times the file's own size
MAX_STRIPS = 200_000  # strips or tiles of a TIFF
MAX_TILE_PIXELS = 1 << 24


@dataclass
class PictureHeader:
    """What the structure of a picture file says; fields that a format does not have stay as they are."""

    width: int = 0  # pixels of the largest canvas that a frame asks for; 0: unknown
    height: int = 0
    seconds: list[float] = field(default_factory=list)  # how long each frame of an animation is shown, as stored
    complete: bool = True  # whether no block or chunk is cut off
    scans: float = 1  # passes over all pixels


def read_header(data: bytes, form: ImageFormat | None, name: str) -> PictureHeader:
    """Walk the structure of an encoded picture.

    Raises:
        MediaError: it has more blocks, chunks, segments or scans than any program writes.
    """
    header = PictureHeader()
    walkers = {"GIF": _walk_gif, "PNG": _walk_png, "WEBP": _walk_webp, "JPEG": _walk_jpeg, "TIFF": _walk_tiff}
    try:
        if form in walkers:
            walkers[form](data, header)
        elif form == "BMP" and len(data) > MAX_RLE_BYTES and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
            raise _TooMany(f"{len(data):,} bytes of run-length encoded pixels")
    except _TooMany as found:
        raise MediaError(f"{name} holds {found}, more than any program writes; save it again as PNG or JPEG") from None
    except EOFError:
        header.complete = False
    return header


class _TooMany(Exception):
    """A count over its limit; the text says of what."""


def _check_count(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise _TooMany(f"more than {limit:,} {what}")


# ── GIF ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _GifBlocks:
    """The bytes of a GIF, read on from `at`; blocks are counted."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.count = 0

    def take(self, length: int) -> bytes:
        if self.at + length > len(self.data):
            raise EOFError
        self.at += length
        return self.data[self.at - length : self.at]

    def take_block(self) -> bytes:
        self.count += 1
        return self.take(self.take(1)[0])

    def skip_blocks(self) -> None:
        """Move behind the next empty block."""
        data, at, end = self.data, self.at, len(self.data)
        length = 1
        while length:
            if at >= end:
                raise EOFError
            length = data[at]
            at += 1 + length
            self.count += 1
            if self.count > MAX_GIF_BLOCKS:
                break
        if at > end:
            raise EOFError
        self.at = at

    def skip_colours(self, flags: int) -> None:
        if flags & 128:
            self.take(3 << (flags & 7) + 1)


def _walk_gif(data: bytes, header: PictureHeader) -> None:
    """Follow Pillow's reader step by step, its oddities included, so that it finds no frame that is missed here."""
    blocks = _GifBlocks(data)
    screen = blocks.take(13)
    header.width, header.height = unpack_from("<HH", screen, 6)
    blocks.skip_colours(screen[10])
    delay = 0
    while blocks.at < len(data) and (kind := blocks.take(1)) != b";":
        blocks.count += 1
        if kind == b"!":
            label = blocks.take(1)
            first = blocks.take_block()
            if label == b"\xf9" and len(first) >= 3:
                delay = unpack_from("<H", first, 1)[0]
            elif label == b"\xff" and not header.seconds and first.startswith(b"NETSCAPE2.0"):
                blocks.take_block()
            if first or label != b"\xfe":
                blocks.skip_blocks()
        elif kind == b",":
            x, y, width, height, flags = unpack("<HHHHB", blocks.take(9))
            header.width, header.height = max(header.width, x + width), max(header.height, y + height)
            blocks.skip_colours(flags)
            blocks.take(1)
            header.seconds.append(delay / 100)
            delay = 0
            blocks.skip_blocks()
        _check_count(blocks.count, MAX_GIF_BLOCKS, "blocks")


# ── PNG and WebP ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _walk_png(data: bytes, header: PictureHeader) -> None:
    seconds = header.seconds
    for kind, at, length in _bounded(_png_chunks(data), (b"IDAT", b"fdAT", b"fcTL")):
        if kind == b"fcTL" and length >= 26:
            ticks, rate = unpack_from(">HH", data, at + 20)
            seconds.append(ticks / (rate or 100))
        elif kind == b"IDAT" and not seconds:
            seconds.append(0.0)  # the default image, for viewers that play no animation; Pillow counts it as a frame


def _walk_webp(data: bytes, header: PictureHeader) -> None:
    for kind, at, length in _bounded(_riff_chunks(data), (b"ANMF",)):
        if kind == b"ANMF" and length >= 16:
            header.seconds.append(int.from_bytes(data[at + 12 : at + 15], "little") / 1000)
        elif kind == b"VP8X" and length >= 10 and not header.width:
            header.width = 1 + int.from_bytes(data[at + 4 : at + 7], "little")
            header.height = 1 + int.from_bytes(data[at + 7 : at + 10], "little")
        elif kind == b"VP8L" and length >= 5 and not header.width:
            sides = int.from_bytes(data[at + 1 : at + 5], "little")
            header.width, header.height = 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
        elif kind == b"VP8 " and length >= 10 and not header.width:
            header.width, header.height = (side & 0x3FFF for side in unpack_from("<HH", data, at + 6))


Chunk = tuple[bytes, int, int]  # kind, offset of its data, their length


def _bounded(chunks: Iterator[Chunk], unlimited: tuple[bytes, ...]) -> Iterator[Chunk]:
    """The same chunks, under a limit on their number, and a lower one on those that hold neither pixels nor frames."""
    metadata = 0
    for count, chunk in enumerate(chunks, 1):
        metadata += chunk[0] not in unlimited
        _check_count(count, MAX_CHUNKS, "chunks")
        _check_count(metadata, MAX_METADATA_CHUNKS, "chunks of metadata")
        yield chunk


def _riff_chunks(data: bytes) -> Iterator[Chunk]:
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > len(data):
            raise EOFError
        yield data[at : at + 4], at + 8, length
        at += 8 + length + length % 2


def _png_chunks(data: bytes) -> Iterator[Chunk]:
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if at + 12 + length > len(data):
            raise EOFError
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        at += 12 + length
    raise EOFError


# ── JPEG ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Not a stuffed zero, a fill byte or a restart marker, which belong to a scan."""
_START_OF_SCAN, _END_OF_IMAGE, _APP1, _ALONE = 0xDA, 0xD9, 0xE1, (0x01, 0xD8)


def _walk_jpeg(data: bytes, header: PictureHeader) -> None:
    scans, segments, exif, tables, junk = 0, 0, 0, 0, 0
    at = 2
    in_scan = False
    while (found := _MARKER.search(data, at)) is not None:
        if not in_scan:
            junk += found.start() - at
            _check_count(junk, MAX_JUNK_BYTES, "bytes between its segments")
        marker, at, in_scan = data[found.start() + 1], found.end(), False
        segments += 1
        _check_count(segments, MAX_SEGMENTS, "segments")
        if marker == _END_OF_IMAGE:
            break
        if marker in _ALONE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if marker == _START_OF_SCAN:
            scans += 1
            _check_count(scans, MAX_SCANS, "scans")
            in_scan = True
        elif marker == _APP1:
            exif += data[at + 2 : at + 6] == b"Exif"
            _check_count(exif, MAX_EXIF_SEGMENTS, "segments of Exif")
        elif marker < 0xE0:
            tables += length
            _check_count(tables, MAX_TABLE_BYTES, "bytes of tables")
        at += max(2, length)
    header.scans = max(1, scans)


# ── TIFF, and the Exif block of other formats ────────────────────────────────────────────────────────────────────────

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def _walk_tiff(data: bytes, header: PictureHeader) -> None:
    """Check the first directory, which is the only one that is used."""
    tags = read_directory(data)
    if tags is None:
        raise _TooMany(f"more than {MAX_TAG_BYTES:,} bytes of tags")

    def values(tag: int) -> list[int]:
        kind, count, at = tags.get(tag, (3, 0, 0))
        size = _TYPE_BYTES.get(kind, 1)
        _check_count(count, MAX_STRIPS, "strips or tiles")
        whole = data[at : at + count * size]
        return [int.from_bytes(whole[i : i + size], order) for i in range(0, len(whole), size)]

    def value(tag: int) -> int:
        return (values(tag) or [0])[0]

    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    offsets, lengths = values(273) + values(324), values(279) + values(325)
    width, height = value(256), value(257)
    _check_count(value(322) * value(323), max(MAX_TILE_PIXELS, 4 * width * height), "pixels in a tile")
    if value(259) == 7 and offsets:  # each strip is a JPEG, in which only a marker has these two bytes
        _check_count(sum(lengths), 4 * len(data), "bytes of overlapping strips")
        scans = sum(data.count(b"\xff\xda", at, at + length) for at, length in zip(offsets, lengths, strict=False))
        header.scans = max(1.0, scans / len(offsets))
    elif value(259) == 6:  # the obsolete form: one JPEG, beside the tags
        _walk_jpeg(data[value(513) :], header)


def read_directory(data: bytes) -> dict[int, tuple[int, int, int]] | None:
    """The first directory of a TIFF or of an Exif block: tag → (type, count, offset of its values).

    None where its values, which readers copy, take far more bytes than there are.
    """
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 8:
        raise EOFError
    (at,) = unpack_from(f"{order}I", data, 4)
    if at + 2 > len(data):
        raise EOFError
    (count,) = unpack_from(f"{order}H", data, at)
    tags: dict[int, tuple[int, int, int]] = {}
    total = 0
    for entry in range(at + 2, min(at + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, length = unpack_from(f"{order}HHI", data, entry)
        size = length * _TYPE_BYTES.get(kind, 1)
        offset = entry + 8 if size <= 4 else unpack_from(f"{order}I", data, entry + 8)[0]
        total += max(0, min(size, len(data) - offset))
        if total > MAX_TAG_BYTES + 4 * len(data):
            return None
        tags[tag] = (kind, length, offset)
    return tags
