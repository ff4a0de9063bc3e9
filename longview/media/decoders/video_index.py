"""When the frames of a video are shown, and where they are stored: known before one of them is decoded.

packets    time, key frame or not, shown or not, of every packet: from the container's own table where that can be
           trusted (`sample_table.py`), by demuxing the whole file otherwise
index      the frames in the order in which they are shown
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from longview.errors import MediaError
from longview.media.decoders.sample_table import NO_TIME, Packets, read_sample_table
from longview.media.decoders.track import Track


def _empty() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass
class VideoIndex:
    """When which frame is shown, and from which packets it is decoded.

    Positions count packets in decoding order, indices frames as presented.
    """

    num_packets: int
    exact: bool  # whether each packet has a presentation time; if not, frames are found by counting decoded ones
    seconds: array[float]  # by index
    duration: float
    fps: float
    pts: NDArray[np.int64] = field(default_factory=_empty)  # by index
    position: NDArray[np.int64] = field(default_factory=_empty)  # by index
    keys: NDArray[np.int64] = field(default_factory=_empty)  # positions of the key frames
    key_times: NDArray[np.int64] = field(default_factory=_empty)  # their pts
    unique_pts: NDArray[np.int64] = field(default_factory=_empty)  # ascending; only those that one packet has
    unique_position: NDArray[np.int64] = field(default_factory=_empty)  # of each of them

    @property
    def num_frames(self) -> int:
        return len(self.seconds)

    def key_of(self, index: int) -> int:
        """Return the position of the key frame to decode from.

        A frame presented before a key frame but stored after it (open GOP) needs the key frame before that one.
        """
        return int(self.keys[max(0, bisect_right(self.key_times, self.pts[index]) - 1)])

    def position_of(self, pts: int | None) -> int | None:
        """Return the position of the packet with this pts; None where there is none, or more than one."""
        if pts is None:
            return None
        at = int(np.searchsorted(self.unique_pts, pts))
        return int(self.unique_position[at]) if at < len(self.unique_pts) and self.unique_pts[at] == pts else None


def read_index(track: Track) -> VideoIndex:
    """
    Raises:
        MediaError: no frame of the track can be shown.
    """
    return _index_of(read_sample_table(track) or demux_packets(track), track)


def demux_packets(track: Track) -> Packets:
    """Demux the file from its beginning to its end. Eight bytes a packet and array: a day of video has millions."""
    times, keys, hidden = array("q"), array("q"), array("q")
    end = 0
    may_hide = track.codec == "vp8"
    for position, packet in enumerate(track.packets()):
        pts = packet.pts
        times.append(NO_TIME if pts is None else pts)
        if packet.is_keyframe:
            keys.append(position)
        if packet.is_discard or (may_hide and not bytes(packet)[0] >> 4 & 1):  # bit 4: show_frame
            hidden.append(position)
        elif pts is not None and (until := pts + (packet.duration or 0)) > end:
            end = until
    pts, key_positions, hidden_positions = (
        np.frombuffer(each, np.int64) if each else _empty() for each in (times, keys, hidden)
    )
    return Packets(pts, key_positions, hidden_positions, end)


def _index_of(packets: Packets, track: Track) -> VideoIndex:
    pts_of, key_positions = packets.pts, packets.keys
    timed = pts_of != NO_TIME
    presented = np.ones(len(pts_of), dtype=bool)
    presented[packets.hidden] = False
    if len(key_positions) and timed[key_positions[0]]:
        presented &= ~(timed & (pts_of < pts_of[key_positions[0]]))
    if not presented.any():
        raise MediaError(f"{track.name} has a video track without a frame to show; save or download it again")
    known = np.flatnonzero(presented & timed)
    in_order = not (np.diff(pts_of[known]) < 0).any() and not track.context.has_b_frames
    # AVI has no presentation times; FFmpeg's substitutes are wrong for codecs that reorder their frames.
    guessed = track.format == "avi" and track.codec in ("h264", "hevc", "mpeg4") and not in_order
    count, rate = int(presented.sum()), track.rate
    known = known[np.argsort(pts_of[known], kind="stable")]
    pts_in_order = pts_of[known]
    if guessed or len(known) < count or (np.diff(pts_in_order) == 0).any():
        return VideoIndex(len(pts_of), False, array("d", np.arange(count) / rate), count / rate, rate)
    key_positions = key_positions[timed[key_positions]]
    if not len(key_positions):
        key_positions = np.zeros(1, np.int64)
    if len(known) == timed.sum():
        unique_pts, unique_position = pts_in_order, known
    else:  # packets that are not shown may have the time of one that is
        unique, first, counts = np.unique(pts_of[timed], return_index=True, return_counts=True)
        unique_pts, unique_position = unique[counts == 1], np.flatnonzero(timed)[first[counts == 1]]
    seconds = (pts_in_order.astype(np.float64) - int(pts_in_order[0])) * track.time_base
    rest = (packets.end - int(pts_in_order[-1])) * track.time_base
    if not 0 < rest <= 3600:  # the last frame does not say how long it stays: as long as the average
        rest = float(seconds[-1]) / (len(seconds) - 1) if len(seconds) > 1 else 1 / rate
    duration = float(seconds[-1]) + (rest or 1 / rate)
    measured = len(seconds) / duration
    return VideoIndex(
        num_packets=len(pts_of),
        exact=True,
        seconds=array("d", seconds),
        duration=duration,
        # Containers round times to milliseconds; a header that says nearly the same says it better.
        fps=rate if abs(measured - rate) < 0.01 * rate else measured,
        pts=pts_in_order,
        position=known,
        keys=key_positions,
        key_times=np.where(timed[key_positions], pts_of[key_positions], 0),
        unique_pts=unique_pts,
        unique_position=unique_position,
    )
