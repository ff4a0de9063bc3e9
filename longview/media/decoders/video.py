"""Random access to the frames of a video file, exact to the frame, without decoding what lies between.

    index    every packet's time and key flag, so the true order and number (`video_index.py`); nothing is decoded
    plan     targets grouped by the key frame they need
    read     each group alone: seek to its key frame, feed the decoder up to its last target, drain it;
             on the way, frames that no other refers to are skipped (`skip_frame = NONREF`)

Frame count and duration are measured, not taken from the header.
Groups do not depend on each other, so several threads decode them, each with a file handle of its own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from longview.errors import MediaError
from longview.media.decoders.track import Track
from longview.media.decoders.video_index import VideoIndex, read_index
from longview.media.medium import Frame, FrameTransform
from longview.messages import Progress
from longview.requests import Limits

SEEK_DISTANCE = 48  # packets: demuxing that many costs less than a seek
PACKETS_PER_THREAD = 600  # to decode, before another thread pays for opening the file again
AHEAD_BYTES = 256 << 20  # decoded frames that are held for the caller, of all threads together
TRANSFORMED_AHEAD = 64  # frames a thread holds where they are made smaller first

Decoded = tuple[int, Image.Image]


class VideoReader:
    """A video file, open for reading single frames. Not to be shared between threads.

    Args:
        like: Another reader of the same file, whose index is used.

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

    _index: VideoIndex

    def __init__(
        self,
        source: Path | bytes,
        limits: Limits | None = None,
        name: str | None = None,
        threads: int | None = None,
        like: VideoReader | None = None,
    ) -> None:
        self.name = name or (source.name if isinstance(source, Path) else "video")
        self.warnings: list[str] = []
        self._source = source
        self._limits = limits or Limits()
        self._threads = threads or min(8, os.cpu_count() or 1)
        self._tracks = [self._track()]
        self.width = self.height = 0
        try:
            index = read_index(self._tracks[0]) if like is None else like._index
            self._index = index
            self.num_frames, self.seconds = index.num_frames, index.seconds
            self.duration, self.fps = index.duration, index.fps
            self._cursors = [_Cursor(self._tracks[0], index, at=index.num_packets)]
            if like is not None:
                self.warnings, self.width, self.height = like.warnings, like.width, like.height
                return
            if self._tracks[0].broken:
                self.warnings.append(f"{self.name} is damaged after {self.duration:.2f} s; the rest is left out")
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
        """Open the same file once more; what is known of it stays known."""
        return VideoReader(self._source, self._limits, self.name, self._threads, like=self)

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

    def write_clip(self, target: Path, begin: float, end: float) -> float:
        """Copy a part with its sound to a file, without encoding again; returns the second at which it begins.

        That is the last key frame before `begin`: without it, nothing can be shown.

        Raises:
            MediaError: the video has no times to cut by.
            RequestError: the file cannot be written.
        """
        index = self._index
        if not index.exact:
            raise MediaError(f"{self.name} has no times to cut it by; convert it to MP4")
        first = max(0, bisect_right(index.seconds, begin) - 1)
        key_time = max((int(time) for time in index.key_times if time <= index.pts[first]), default=int(index.pts[0]))
        origin, base = int(index.pts[0]), self._tracks[0].time_base
        with contextlib.closing(self._track()) as track:
            track.write_clip(target, key_time, origin + round(end / base))
        return (key_time - origin) * base

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


class _Cursor:
    """A track, and the position of its next packet."""

    def __init__(self, track: Track, index: VideoIndex, at: int = 0) -> None:
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
