"""Formats by their first bytes, and whether a container is all there. A file's extension proves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

from longview.errors import MediaError

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
READS = "JPEG, PNG, WebP, GIF, BMP, TIFF pictures, and MP4, MOV, MKV, WebM, AVI videos"

HEAD = 64  # bytes that tell any format

_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot")


def image_format_of(head: bytes) -> ImageFormat | None:
    """Return the picture format that the first bytes of a file show."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    # Two letters are weak evidence, so also the offset of the pixels, which no text has: below 64 KiB.
    if head.startswith(b"BM") and len(head) >= 14 and head[12:14] == b"\0\0":
        return "BMP"
    return None


def container_of(head: bytes) -> str | None:
    """Return the demuxer (`mp4`, `matroska` or `avi`) for the video container that the first bytes show."""
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[4:8] in _BOXES and not (
        head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")
    ):
        return "mp4"
    return None


def foreign_format_of(head: bytes) -> str:
    """Return what an unreadable file seems to be, for the error message."""
    if not head:
        return "an empty file"
    known = {b"%PDF": "a PDF", b"PK\3\4": "a ZIP archive", b"\x1f\x8b": "a gzip archive", b"FLV": "an FLV video"}
    for magic, name in known.items():
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp":
        return "an AVIF or HEIC picture"
    if head.lstrip()[:1] == b"<":
        return "a web page, SVG or XML"
    printable = sum(byte in b"\t\n\r" or byte >= 32 for byte in head)
    return "text" if printable == len(head) else "of an unknown format"


def missing_bytes(file: BinaryIO, container: str, size: int) -> int:
    """Return how many bytes a container says it has beyond the `size` that are there; 0 when complete or open-ended."""
    file.seek(0)
    end = {"mp4": _end_of_boxes, "matroska": _end_of_segment, "avi": _end_of_riff}[container](file, size)
    return max(0, end - size)


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    position = 0
    for _ in range(1 << 16):  # fragmented files have two boxes a fragment; beyond this, let the demuxer judge
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return position + 8 if header else position
        length = int.from_bytes(header[:4], "big")
        if length == 0:  # up to the end of the file
            return size
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # nonsense, not truncation
            return position
        position += length
        if position >= size:
            return position
    return position


def _end_of_segment(file: BinaryIO, size: int) -> int:
    position = 0
    for _ in range(4):  # the EBML header, perhaps void, then the segment
        file.seek(position)
        header = file.read(16)
        if len(header) < 2 or not header[0]:
            return position
        id_length = 9 - header[0].bit_length()
        if len(header) <= id_length or not header[id_length]:
            return position
        length_length = 9 - header[id_length].bit_length()
        raw = header[id_length : id_length + length_length]
        length = int.from_bytes(raw, "big") & (1 << 7 * length_length) - 1
        if length == (1 << 7 * length_length) - 1:  # unknown: a live recording
            return size
        position += id_length + length_length + length
        if header[:4] == b"\x18\x53\x80\x67" or position >= size:
            return position
    return position


def _end_of_riff(file: BinaryIO, size: int) -> int:
    header = file.read(8)
    length = int.from_bytes(header[4:8], "little")
    return 8 + length if 0 < length < 0xFFFFFFFF else size


def read_head(path: Path, name: str) -> bytes:
    """Return the first bytes of a file, enough to tell its format."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        raise MediaError(f"{name} cannot be read; check its permissions") from None
