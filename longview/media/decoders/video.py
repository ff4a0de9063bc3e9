"""Random access to the frames of a video file, exact to the frame, without decoding what lies between.

    index    demux the whole file once, decode nothing: every packet's time and key flag, so the true order and number
    plan     targets grouped by the key frame they need
    read     each group alone: seek to its key frame, feed the decoder up to its last target, drain it;
             on the way, frames that no other refers to are skipped (`skip_frame = NONREF`)

Demuxing two hours takes a fraction of a second, so frame count and duration are measured, not taken from the header.
Groups do not depend on each other, so several threads decode them, each with a file handle of its own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longview.errors import MediaError
from longview.media.decoders.track import Track
from longview.media.medium import Frame, FrameTransform
from longview.messages import Progress
from longview.requests import Limits

SEEK_DISTANCE = 48  # packets: demuxing that many costs less than a seek
PACKETS_PER_THREAD = 600  # to decode, before another thread pays for opening the file again
AHEAD_BYTES = 256 << 20  # decoded frames that are held for the caller, of all threads together
TRANSFORMED_AHEAD = 64  # frames a thread holds where they are made smaller first

NO_TIME = -(1 << 63)  # FFmpeg's own

Decoded = tuple[int, Image.Image]


class VideoReader:
    """A video file, open for reading single frames. Not to be shared between threads.

    Times are seconds after the first frame. Non-square pixels stay as they are stored. Frames that refer to a key frame
    before the file's first (a careless cut) cannot be decoded and are not counted.

    Attributes:
        width, height: pixels of the first frame, upright
        num_frames: frames really in the file
        seconds: presentation time of each frame, ascending, (num_frames,)
        duration: seconds, until the end of the last frame
        fps: average over the file
        warnings: what is wrong with the file although it can be decoded

    Raises:
        MediaError: no video in it, truncated, damaged beyond decoding, an unsupported codec, or over a limit.
    """

    def __init__(
        self,
        source: Path | bytes,
        limits: Limits | None = None,
        name: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.name = name or (source.name if isinstance(source, Path) else "video")
        self.warnings: list[str] = []
        self._source = source
        self._limits = limits or Limits()
        self._threads = threads or min(8, os.cpu_count() or 1)
        self._tracks = [self._track()]
        try:
            index = self._index = _read_index(self._tracks[0])
            self.num_frames, self.seconds = index.num_frames, index.seconds
            self.duration, self.fps = index.duration, index.fps
            if self._tracks[0].broken:
                self.warnings.append(f"{self.name} is damaged after {self.duration:.2f} s; the rest is left out")
            self._cursors = [_Cursor(self._tracks[0], index, at=index.num_packets)]
            self.width, self.height = next(self.read([0])).image.size
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for track in self._tracks:
            track.close()

    def reopen(self) -> VideoReader:
        """Open the same file once more."""
        return VideoReader(self._source, self._limits, self.name, self._threads)

    def read(
        self, indices: Sequence[int], progress: Progress | None = None, transform: FrameTransform | None = None
    ) -> Iterator[Frame]:
        """Yield exactly the frames asked for. `indices` ascends and may repeat; 0 is the first frame presented.

        The time that the caller takes between two frames does not count towards the decoding deadline.

        Raises:
            MediaError: a frame is damaged, over the pixel limit, or the decoding deadline has passed.
            IndexError: there is no such frame.
        """
        if any(a > b for a, b in pairwise(indices)):
            raise IndexError("the indices of the frames to read must ascend")
        if len(indices) and not 0 <= indices[0] <= indices[-1] < self.num_frames:
            raise IndexError(f"{self.name} has frames 0 to {self.num_frames - 1}, not {indices[0]} to {indices[-1]}")
        self._set_deadline(time.monotonic() + self._limits.decode_seconds)
        repeats = Counter(indices)
        done = 0
        with contextlib.closing(self._decode(sorted(repeats), transform)) as decoded:
            for index, image in decoded:
                done += repeats[index]
                begin = time.monotonic()
                for _ in range(repeats[index]):
                    yield Frame(image, index, self.seconds[index])
                self._set_deadline(self._tracks[0].deadline + time.monotonic() - begin)
                if progress:
                    progress(done, len(indices), self.name)

    def _decode(self, indices: list[int], transform: FrameTransform | None) -> Generator[Decoded]:
        index = self._index
        if not index.exact:
            for number, image in self._cursors[0].decode_in_order(indices):
                yield number, transform(image) if transform else image
            return
        groups = [(key, list(group)) for key, group in groupby(indices, index.key_of)]
        work = sum(int(index.position[targets[-1]]) - key + 1 for key, targets in groups)
        threads = min(self._threads, len(groups), 1 + work // PACKETS_PER_THREAD)
        if threads < 2:
            for key, targets in groups:
                for number, image in self._cursors[0].decode_group(key, targets):
                    yield number, transform(image) if transform else image
            return
        yield from self._decode_in_threads(groups, threads, transform)

    def _decode_in_threads(
        self, groups: list[tuple[int, list[int]]], threads: int, transform: FrameTransform | None
    ) -> Iterator[Decoded]:
        """Decode the groups in threads, and yield their frames in order.

        A thread waits when the frames that it holds for the caller reach its share of `AHEAD_BYTES`. The thread whose
        frames the caller takes next never waits for another: groups are begun in order.
        """
        while len(self._cursors) < threads:
            self._tracks.append(self._track())
            self._cursors.append(_Cursor(self._tracks[-1], self._index))
        idle = deque(self._cursors[:threads])
        share = AHEAD_BYTES // (3 * self.width * self.height * threads) if transform is None else TRANSFORMED_AHEAD
        stopped = threading.Event()

        def decode(key: int, targets: list[int], frames: queue.Queue[Decoded | Exception]) -> None:
            cursor = idle.popleft()  # never empty: as many cursors as threads
            try:
                for number, image in cursor.decode_group(key, targets):
                    put(frames, (number, transform(image) if transform else image))
            except Exception as error:  # noqa: BLE001 - raised again where the caller takes the frames
                put(frames, error)
            finally:
                idle.append(cursor)

        def put(frames: queue.Queue[Decoded | Exception], result: Decoded | Exception) -> None:
            while not stopped.is_set():
                with contextlib.suppress(queue.Full):
                    return frames.put(result, timeout=0.1)
            raise _Stopped

        pending = iter(groups)
        running: deque[tuple[int, queue.Queue[Decoded | Exception]]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="longview-video")
        try:
            while True:
                while len(running) < 2 * threads and (group := next(pending, None)):
                    frames: queue.Queue[Decoded | Exception] = queue.Queue(max(1, share))
                    running.append((len(group[1]), frames))
                    pool.submit(decode, *group, frames)
                if not running:
                    return
                count, frames = running.popleft()
                for _ in range(count):
                    result = frames.get()
                    if isinstance(result, Exception):
                        raise result
                    yield result
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _track(self) -> Track:
        return Track(self._source, self.name, self._limits, time.monotonic() + self._limits.decode_seconds)

    def _set_deadline(self, deadline: float) -> None:
        for track in self._tracks:
            track.deadline = deadline


class _Stopped(Exception):
    """The caller has stopped reading; ends a decoding thread."""


def _empty() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass
class _Index:
    """Result of demuxing the file once. Positions count packets in decoding order, indices frames as presented."""

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


def _read_index(track: Track) -> _Index:
    """Demux the file once. Eight bytes a packet and array: a day of video has millions."""
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
    pts_of = np.frombuffer(times, np.int64) if times else _empty()
    key_positions = np.frombuffer(keys, np.int64) if keys else _empty()
    timed = pts_of != NO_TIME
    presented = np.ones(len(times), dtype=bool)
    presented[hidden] = False
    if len(key_positions) and timed[key_positions[0]]:
        presented &= ~(timed & (pts_of < pts_of[key_positions[0]]))
    if not presented.any():
        raise MediaError(f"{track.name} has a video track without a frame to show; save or download it again")
    known = np.flatnonzero(presented & timed)
    in_order = not (np.diff(pts_of[known]) < 0).any() and not track.context.has_b_frames
    # AVI has no presentation times; FFmpeg's substitutes are wrong for codecs that reorder their frames.
    guessed = track.format == "avi" and track.codec in ("h264", "hevc", "mpeg4") and not in_order
    count, rate = int(presented.sum()), track.rate
    if guessed or len(np.unique(pts_of[known])) < count:
        return _Index(len(times), False, array("d", np.arange(count) / rate), count / rate, rate)
    known = known[np.argsort(pts_of[known], kind="stable")]
    pts_in_order = pts_of[known]
    key_positions = key_positions[timed[key_positions]]
    if not len(key_positions):
        key_positions = np.zeros(1, np.int64)
    unique, first, counts = np.unique(pts_of[timed], return_index=True, return_counts=True)
    seconds = (pts_in_order.astype(np.float64) - int(pts_in_order[0])) * track.time_base
    rest = (end - int(pts_in_order[-1])) * track.time_base
    if not 0 < rest <= 3600:  # the last frame does not say how long it stays: as long as the average
        rest = float(seconds[-1]) / (len(seconds) - 1) if len(seconds) > 1 else 1 / rate
    duration = float(seconds[-1]) + (rest or 1 / rate)
    measured = len(seconds) / duration
    return _Index(
        num_packets=len(times),
        exact=True,
        seconds=array("d", seconds),
        duration=duration,
        # Containers round times to milliseconds; a header that says nearly the same says it better.
        fps=rate if abs(measured - rate) < 0.01 * rate else measured,
        pts=pts_in_order,
        position=known,
        keys=key_positions,
        key_times=np.where(timed[key_positions], pts_of[key_positions], 0),
        unique_pts=unique[counts == 1],
        unique_position=np.flatnonzero(timed)[first[counts == 1]],
    )


class _Cursor:
    """A track, and the position of its next packet."""

    def __init__(self, track: Track, index: _Index, at: int = 0) -> None:
        self._track = track
        self._index = index
        self._at = at  # position of the next packet
        self._packets: Iterator[Any] = track.packets()
        self._seekable = True

    def decode_group(self, key: int, targets: list[int]) -> Iterator[Decoded]:
        """Yield the targets, which share the key frame at position `key`."""
        track, index = self._track, self._index
        wanted = {int(index.pts[target]): target for target in targets}
        last = int(index.position[targets].max())
        found: dict[int, Image.Image] = {}
        due = 0
        for packet in self._packets_from(key, last):
            if packet is not None:
                track.context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            for frame in track.decode(packet):
                if frame.pts in wanted:
                    found[wanted[frame.pts]] = track.upright(frame)
            while due < len(targets) and targets[due] in found:
                yield targets[due], found.pop(targets[due])
                due += 1
        if due < len(targets):
            missed = targets[due]
            raise track.damaged(f"frame {missed:,}, at {index.seconds[missed]:.2f} s, cannot be decoded")

    def decode_in_order(self, targets: list[int]) -> Iterator[Decoded]:
        """Decode from the beginning and count frames: for files whose packets have no presentation times."""
        track = self._track
        self._rewind()
        due = 0
        count = 0
        for packet in chain(self._packets, [None]):
            for frame in track.decode(packet):
                if due < len(targets) and count == targets[due]:
                    yield count, track.upright(frame)
                    due += 1
                count += 1
            if due == len(targets):
                return
        raise track.damaged(f"frame {targets[due]:,} cannot be decoded")

    def _packets_from(self, key: int, last: int) -> Iterator[Any]:
        """Yield the packets from position `key` up to `last`, then None, which drains the decoder."""
        if not 0 <= key - self._at <= SEEK_DISTANCE:
            self._seek(key)
        self._track.context.flush_buffers()
        for packet in self._packets:
            position = self._at
            self._at += 1
            if position >= key:
                yield packet
            if position >= last:
                break
        yield None

    def _seek(self, key: int) -> None:
        """Move to the key frame at position `key`, or to a packet before it.

        Containers seek by decoding time, by presentation time, or by a wrong index. So the position after a seek is
        looked up by the first packet; if it is past the key frame, seek further back, at last to the beginning.
        """
        if not self._seekable and self._at <= key:
            return  # demux on from here
        number = bisect_right(self._index.keys, key) - 1
        for steps in (0, 1, 8):
            if not self._seekable or number < steps:
                break
            self._seekable = self._track.seek(int(self._index.key_times[number - steps]))
            packets = self._track.packets()
            first = next(packets, None)
            position = None if first is None else self._index.position_of(first.pts)
            if position is not None and position <= key:
                self._packets, self._at = chain([first], packets), position
                return
        else:
            self._seekable = False
        self._rewind()

    def _rewind(self) -> None:
        self._track.rewind()
        self._packets, self._at = self._track.packets(), 0
