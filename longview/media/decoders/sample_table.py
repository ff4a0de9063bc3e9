"""The packets of an MP4's video track from the container's own table, without reading them.

FFmpeg keeps an entry a sample (decoding time, place, size, key flag); how much later each is shown stands in the file's
`ctts` table (ISO/IEC 14496-12, 8.6.1.3). The two are trusted only where they are complete, lie inside the file, and say
what demuxing says at several places, the last group among them; else the whole file is demuxed, which stays the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longview.media.decoders.track import Track

NO_TIME = -(1 << 63)
"""FFmpeg's own."""
MIN_PACKETS = 2_000
"""Fewer are demuxed sooner than checked."""
CHECKS, CHECKED = 8, 4
"""Places at which packets are demuxed, besides the last group of pictures, and how many at each."""
MAX_LAST_GROUP = 2_000
KEY, DISCARD = 1, 2
"""Flags of entries."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Packets:
    """What is known of a track's packets, in decoding order. Positions count them."""

    pts: Ints
    """Presentation time of each, in the track's units; `NO_TIME` where it has none."""
    keys: Ints
    """Positions of the key frames."""
    hidden: Ints
    """Positions of packets that show nothing."""
    end: int
    """When the last frame ends."""


def read_sample_table(track: Track) -> Packets | None:
    """The packets by the container's table; the track is then anywhere. None where the table cannot be trusted."""
    if track.format != "mp4" or track.codec == "vp8" or track.is_fragmented:
        return None
    entries = track.index_entries()
    if len(entries) < MIN_PACKETS:
        return None
    dts, place, size, flags = entries.T
    if (size <= 0).any() or (place < 0).any() or (place + size > track.size).any() or (np.diff(dts) < 0).any():
        return None
    delays = _delays(track, len(entries))
    keys = np.flatnonzero(flags & KEY)
    if delays is None or not len(keys) or keys[0] != 0:
        return None
    checked = _checked(track, entries, delays, keys)
    if checked is None or track.broken:
        track.rewind()
        return None
    shift, last_end = checked
    pts = dts + delays + shift
    shown = flags & DISCARD == 0
    ends = (pts[:-1] + np.diff(dts))[shown[:-1]]
    return Packets(pts, keys, np.flatnonzero(~shown), max(0, last_end, int(ends.max(initial=0))))


def _delays(track: Track, num_packets: int) -> Ints | None:
    """By how much each packet is shown after it is decoded; None where the file has no table of that length."""
    tables = [table for table in track.composition if table]
    if not tables:
        return np.zeros(num_packets, np.int64)
    for table in tables:
        runs = np.frombuffer(table[: len(table) // 8 * 8], [("count", ">u4"), ("delay", ">i4")])
        counts = runs["count"].astype(np.int64)
        if counts.sum() == num_packets:
            return np.repeat(runs["delay"].astype(np.int64), counts)
    return None


def _checked(track: Track, entries: Ints, delays: Ints, keys: Ints) -> tuple[int, int] | None:
    """Hold the table against what demuxing says in some places.

    Returns:
        By how much FFmpeg shifts all delays, and when the last group of pictures ends; None where the two differ.
    """
    num_packets = len(entries)
    if num_packets - keys[-1] > MAX_LAST_GROUP:
        return None
    shift: int | None = None
    end = 0
    begins = sorted({0, int(keys[-1]), *(int(key) for key in keys[:: max(1, len(keys) // CHECKS)])})
    for begin in begins:
        is_last = begin == keys[-1]
        expected = range(begin, num_packets if is_last else min(begin + CHECKED, num_packets))
        found = _demuxed_from(track, int(entries[begin, 0]), len(expected) + 1)
        if len(found) < len(expected) or (is_last and len(found) > len(expected)):
            return None
        for position, packet in zip(expected, found, strict=False):
            dts, place, size, flags = (int(value) for value in entries[position])
            said = packet.dts, packet.pos, packet.size, packet.is_keyframe, packet.is_discard
            if said != (dts, place, size, bool(flags & KEY), bool(flags & DISCARD)) or packet.pts is None:
                return None
            of_packet = packet.pts - dts - int(delays[position])
            shift = of_packet if shift is None else shift
            if of_packet != shift:
                return None
            if not packet.is_discard:
                end = max(end, packet.pts + (packet.duration or 0))
    return None if shift is None else (shift, end)


def _demuxed_from(track: Track, dts: int, count: int) -> list[Any]:
    """So many packets from the one that is decoded at a time."""
    if not track.seek(dts):
        return []
    packets = track.packets()
    at = next((packet for packet in islice(packets, MAX_LAST_GROUP) if packet.dts is None or packet.dts >= dts), None)
    return [] if at is None else list(islice(chain([at], packets), count))
