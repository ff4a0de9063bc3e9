"""Video containers: whether a file is all there, and whether its tables claim more than it holds.

FFmpeg allocates what a header claims before a packet is read: an MP4 of 2 KiB may claim 89 million samples, which take
3 GiB. So the tables are read here first, and held against the size of the file and against limits.

    mp4        boxes inside boxes; moov, trak and moof hold the tables (ISO/IEC 14496-12)
    matroska   EBML elements; Tracks, Cues, Chapters and Tags hold many small ones (RFC 9559)
    avi        one RIFF chunk; its index has sixteen bytes an entry, so it needs no more than the file holds
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import unpack_from
from typing import BinaryIO

import numpy as np

from longview.errors import MediaError

MAX_TRACKS = 100
MAX_SAMPLES = 8_000_000  # of all tracks: FFmpeg takes 70 bytes for each; a day of video and sound has 6.6 million
MAX_BOXES = 1_000_000  # of an MP4: two a fragment
MAX_ELEMENTS = 1_000_000  # of the headers of an MKV or WebM: three a cue, one cue a key frame
MAX_FRAGMENTS = 1_000_000  # of an MP4, times its tracks
MAX_HEADER_BYTES = 128 << 20
MAX_DEPTH = 10  # as FFmpeg's

WHAT_TO_DO = "save or download it again, or re-encode it"


@dataclass(frozen=True)
class SampleTables:
    """What of the tables of an MP4 is of use beside FFmpeg's own reading of them."""

    composition: list[bytes] = field(default_factory=list)
    """Of each track that has one, the entries of its `ctts`: count and delay, four bytes each."""
    is_fragmented: bool = False


def check_container(file: BinaryIO, container: str, size: int, name: str) -> SampleTables:
    """Check a file of `size` bytes before it is given to FFmpeg.

    Raises:
        MediaError: bytes are missing at its end, by its own account; or it claims more than it can hold.
    """
    file.seek(0)
    tables = SampleTables()
    try:
        if container == "mp4":
            end, tables = _check_boxes(file, size)
        else:
            end = {"matroska": _check_elements, "avi": _check_riff}[container](file, size)
    except _FalseClaim as claim:
        raise MediaError(f"{name} is damaged: {claim}; {WHAT_TO_DO}") from None
    if end > size:
        missing = end - size
        # More boxes may have followed the one that is cut, and nothing says so.
        lost = f"at least {missing:,} byte{'s are' if missing > 1 else ' is'} missing at its end"
        raise MediaError(f"{name} is incomplete: {lost}; save or download it again")
    return tables


class _FalseClaim(Exception):
    """A header that claims more than the file holds, or more than any program writes; says which."""


def _check_claim(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise _FalseClaim(f"it claims {count:,} {what}, and there can be {limit:,}")


# ── MP4 and MOV ──────────────────────────────────────────────────────────────────────────────────────────────────────

_CONTAINERS = frozenset(b"moov trak edts mdia minf stbl dinf udta gmhd tref moof traf mvex meta".split())
_ENTRY_BYTES = {b"stts": 8, b"ctts": 8, b"stsc": 12, b"stco": 4, b"co64": 8, b"stss": 4, b"stps": 4}
_TABLES = frozenset([b"hdlr", b"stsd", b"stsz", b"stz2", b"trun", b"sidx", b"elst", *_ENTRY_BYTES])
_TABLE = re.compile(rb"stsz|stz2|stts|ctts|stsc|stco|co64|trak|trun|elst")


class _Tables:
    """What the tables of an MP4 claim, added up."""

    def __init__(self, size: int) -> None:
        self.size = size  # bytes of the file
        self.boxes = 0
        self.tracks = 0
        self.fragments = 0
        self.entries = 0  # that FFmpeg keeps of the tracks before this one, and of fragments
        self.sized = 0  # bytes of all samples that are said to have one size
        self.unsized = 0  # samples of fragments that say nothing of each
        self.composition: list[bytes] = []
        self._begin_track()

    def _begin_track(self) -> None:
        self.samples = 0
        self.edits = 1
        self.chunks = 0
        self.per_chunk = np.zeros((0, 3), np.int64)  # (first chunk, samples a chunk, …)
        self.is_sound = False
        self.one_tick = False  # whether each sample lasts one tick

    def end_track(self) -> None:
        """Add up what FFmpeg will keep of a track: an entry a sample, for each edit of it."""
        if self.is_sound and self.one_tick:  # uncompressed: an entry for some hundred samples of a chunk
            first, samples = self.per_chunk[:, 0], self.per_chunk[:, 1]
            chunks = np.diff(first, append=self.chunks + 1).clip(0, self.chunks)
            self.entries += int((chunks * (samples // 320 + 1)).sum())
        else:
            self.entries += self.samples * self.edits
        self._begin_track()
        _check_claim(self.entries, MAX_SAMPLES, "samples")

    def walk(self, data: bytes, at: int, end: int, depth: int = 0) -> None:
        """Check the boxes in a range of bytes, and those inside them."""
        _check_claim(depth, MAX_DEPTH, "levels of boxes")
        for kind, begin, until in self._boxes(data, at, end):
            if kind == b"trak":
                self.end_track()
                self.tracks += 1
                _check_claim(self.tracks, MAX_TRACKS, "tracks")
            elif kind == b"moof":
                self.fragments += 1
            if kind in _CONTAINERS:
                self.walk(data, begin + 4 * (kind == b"meta"), until, depth + 1)
            elif kind == b"cmov":
                self._walk_compressed(data[begin:until], depth)
            elif kind in _TABLES and until - begin >= 12:
                self._check_table(kind, data[begin:until])
        _check_claim(self.fragments * max(1, self.tracks), MAX_FRAGMENTS, "fragments of tracks")

    def _boxes(self, data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        while at + 8 <= end:
            self.boxes += 1
            _check_claim(self.boxes, MAX_BOXES, "boxes")
            length, header = int.from_bytes(data[at : at + 4], "big"), 8
            if length == 1 and at + 16 <= end:
                length, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
            elif length == 0:
                length = end - at
            if length < header:
                return
            yield data[at + 4 : at + 8], at + header, min(at + length, end)
            at += length

    def _walk_compressed(self, data: bytes, depth: int) -> None:
        """The header of an old MOV, which is deflated as a whole."""
        at = data.find(b"cmvd")
        if at >= 0:
            inflater = zlib.decompressobj()
            try:
                header = inflater.decompress(data[at + 8 :], MAX_HEADER_BYTES)
            except zlib.error:
                return
            if inflater.unconsumed_tail:
                raise _FalseClaim(f"its header inflates to more than {MAX_HEADER_BYTES:,} bytes")
            self.walk(header, 0, len(header), depth + 1)

    def _check_table(self, kind: bytes, body: bytes) -> None:
        """Add up one table. The body begins with a byte of version and three of flags."""
        count, room = int.from_bytes(body[4:8], "big"), len(body) - 8
        if kind == b"hdlr":
            self.is_sound = body[8:12] == b"soun" or (self.is_sound and body[8:12] != b"vide")
        elif kind == b"stsd":
            if _TABLE.search(body):  # FFmpeg would read it; no program writes it
                raise _FalseClaim("a table stands where none belongs")
        elif kind == b"stsz":
            sample_bytes, self.samples = unpack_from(">II", body, 4)
            # compressed sound of an old MOV counts samples before compression
            self.sized += self.samples * sample_bytes // (8 if self.is_sound else 1)
            _check_claim(self.sized, self.size, "bytes of samples")
            if not sample_bytes:
                _check_claim(4 * self.samples, room - 4, "bytes in its table stsz")
        elif kind == b"stz2":
            self.samples = int.from_bytes(body[8:12], "big")
            _check_claim(self.samples * (body[7] or 4), 8 * (room - 4), "bits in its table stz2")
        elif kind == b"trun":
            entry = 4 * (int.from_bytes(body[1:4], "big") >> 8 & 15).bit_count()
            _check_claim(count * entry, room, "bytes in its table trun")
            self.unsized += 0 if entry else count
            _check_claim(self.unsized, self.size, "samples in fragments")
            self.entries += count
            _check_claim(self.entries, MAX_SAMPLES, "samples")
        elif kind == b"sidx":
            self.fragments += int.from_bytes(body[22:24] if body[0] == 0 else body[30:32], "big")
        elif kind == b"elst":
            width = 8 if body[0] == 1 else 4
            edit = np.dtype([("duration", f">u{width}"), ("time", f">i{width}"), ("rate", ">u4")])
            _check_claim(count * edit.itemsize, room, "bytes in its table elst")
            times = np.frombuffer(body, edit, count, 8)["time"]
            self.edits = max(1, int((times != -1).sum()))  # -1: nothing is shown
        else:
            _check_claim(count * _ENTRY_BYTES[kind], room, f"bytes in its table {kind.decode()}")
            if kind == b"stts":
                self.one_tick = count == 1 and body[12:16] == b"\0\0\0\1"
            elif kind in (b"stco", b"co64"):
                self.chunks = count
            elif kind == b"stsc":
                self.per_chunk = np.frombuffer(body, ">u4", 3 * count, 8).reshape(-1, 3).astype(np.int64)
            elif kind == b"ctts":
                self.composition.append(body[8 : 8 + 8 * count])


def _check_boxes(file: BinaryIO, size: int) -> tuple[int, SampleTables]:
    """Check the tables of an MP4; return where it ends by its own account, and the tables."""
    tables = _Tables(size)
    headers: list[tuple[int, int]] = []
    position = 0
    while position < size:
        tables.boxes += 1
        _check_claim(tables.boxes, MAX_BOXES, "boxes")
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return position + 8, SampleTables()
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 0:  # up to the end of the file
            length = size - position
        elif length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # nonsense, not truncation
            break
        if kind in _CONTAINERS or kind in _TABLES or kind == b"cmov":
            headers.append((position, length))
        position += length
    if position > size:
        return position, SampleTables()
    for position_of_header, length in headers:
        _check_claim(length, MAX_HEADER_BYTES, "bytes of header")
        file.seek(position_of_header)
        tables.walk(file.read(length), 0, length)
    tables.end_track()
    return position, SampleTables(tables.composition, tables.fragments > 0)


# ── MKV and WebM ─────────────────────────────────────────────────────────────────────────────────────────────────────

_SEGMENT, _CLUSTER, _TRACKS, _TRACK_ENTRY = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"\xae"
_HEADERS = {
    _TRACKS: (_TRACK_ENTRY,),
    b"\x1c\x53\xbb\x6b": (b"\xbb",),  # Cues: CuePoint
    b"\x10\x43\xa7\x70": (b"\x45\xb9", b"\xb6"),  # Chapters: EditionEntry, ChapterAtom
    b"\x12\x54\xc3\x67": (b"\x73\x73", b"\x67\xc8"),  # Tags: Tag, SimpleTag
    b"\x19\x41\xa4\x69": (),  # Attachments
    b"\x11\x4d\x9b\x74": (),  # SeekHead
}
"""Elements of the segment that hold many small ones, and which of those hold others."""


def _check_elements(file: BinaryIO, size: int) -> int:
    """Check the headers of a Matroska file; return where it ends by its own account."""
    position = 0
    for _ in range(4):  # the EBML header, perhaps void, then the segment
        kind, begin, end = _element(file, position, size)
        if kind is None:
            return position
        if kind == _SEGMENT:
            _check_segment(file, begin, min(size, size if end is None else end))
            return size if end is None else end  # None: a live recording
        if end is None:
            return size
        position = end
        if position >= size:
            return position
    return position


def _check_segment(file: BinaryIO, position: int, size: int) -> None:
    counts = {"elements": 0, "tracks": 0}
    while position < size:
        kind, begin, end = _element(file, position, size)
        if kind is None or end is None:  # of unknown length: a live recording
            return
        counts["elements"] += 1
        if kind in _HEADERS:
            length = min(end, size) - begin
            _check_claim(length, MAX_HEADER_BYTES, "bytes of header")
            file.seek(begin)
            data = file.read(length)
            _count_elements(data, 0, len(data), _HEADERS[kind], counts)
        _check_claim(counts["elements"], MAX_ELEMENTS, "elements")
        position = end


def _count_elements(
    data: bytes, at: int, end: int, nested: tuple[bytes, ...], counts: dict[str, int], depth: int = 0
) -> None:
    """Count the elements in a range of bytes, and those inside the `nested` kinds."""
    while at < end - 1:
        id_length = 9 - data[at].bit_length()
        if id_length > 4 or at + id_length >= end or not data[at + id_length]:
            return
        kind = data[at : at + id_length]
        at += id_length
        length_length = 9 - data[at].bit_length()
        length = int.from_bytes(data[at : at + length_length], "big") & (1 << 7 * length_length) - 1
        at += length_length
        counts["elements"] += 1
        if counts["elements"] > MAX_ELEMENTS:
            break
        if kind == _TRACK_ENTRY:
            counts["tracks"] += 1
        if length and kind in nested and depth < MAX_DEPTH:
            _count_elements(data, at, min(at + length, end), nested, counts, depth + 1)
        at += length
    _check_claim(counts["elements"], MAX_ELEMENTS, "elements")
    _check_claim(counts["tracks"], MAX_TRACKS, "tracks")


def _element(file: BinaryIO, position: int, size: int) -> tuple[bytes | None, int, int | None]:
    """The kind of the element at a position, where its data begin, and where they end; None: unknown."""
    file.seek(position)
    return _parse_element(file.read(12), position)


def _parse_element(header: bytes, position: int) -> tuple[bytes | None, int, int | None]:
    if len(header) < 2 or not header[0]:
        return None, position, None
    id_length = 9 - header[0].bit_length()
    if id_length > 4 or len(header) <= id_length or not header[id_length]:
        return None, position, None
    length_length = 9 - header[id_length].bit_length()
    raw = header[id_length : id_length + length_length]
    length = int.from_bytes(raw, "big") & (1 << 7 * length_length) - 1
    begin = position + id_length + length_length
    return header[:id_length], begin, None if length == (1 << 7 * length_length) - 1 else begin + length


# ── AVI ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_riff(file: BinaryIO, size: int) -> int:
    """Check the header of an AVI; return where it ends by its own account."""
    header = file.read(1 << 20)
    _check_claim(header.count(b"strh"), MAX_TRACKS, "tracks")
    length = int.from_bytes(header[4:8], "little")
    return 8 + length if 0 < length < 0xFFFFFFFF else size
