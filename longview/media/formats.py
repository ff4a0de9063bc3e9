"""Formats of pictures and videos by their first bytes. A file's extension proves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from longview.errors import MediaError

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
SUPPORTED = "JPEG, PNG, WebP, GIF, BMP, TIFF pictures, and MP4, MOV, MKV, WebM, AVI videos"

HEAD = 64  # bytes by which any format is recognised

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot")


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
    if head[4:8] in _FIRST_BOXES and not (
        head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")
    ):
        return "mp4"
    return None


def foreign_format_of(head: bytes) -> str:
    """Return what a file of no supported format seems to be, for the error message."""
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


def read_head(path: Path, name: str) -> bytes:
    """Return the first `HEAD` bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        raise MediaError(f"{name} cannot be read; check its permissions") from None
